"""The agent loop, pure: no clock, no randomness, no I/O. It can be imported alone.

messages       what is said               events    what has happened
agent, policy  what a run is pinned to    effects   what the world must do next
continuation   what a run is              machine   begin, apply, due (with steps, decisions, budget)
"""
