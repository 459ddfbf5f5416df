"""The products, one adapter each; a module's name is the name of its venv and its requirements.

The rule: what is said of a product here was read in its documentation or seen when it ran.
"""
