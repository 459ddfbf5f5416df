"""A run that moves: to another installation as an export, or into a branch of its own as a fork.

document   what an export is, and the bytes that its signature is over
reading    bytes that somebody sent into a run, or a refusal
versions   older forms of a continuation into the present one
adoption   a new run made of an exported or a living one
"""
