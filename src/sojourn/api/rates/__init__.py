"""How often callers may ask: whose limits hold, what is known to be used up, and what an answer says of it.

The guard counts every request of a class that is limited; nothing else does.
"""
