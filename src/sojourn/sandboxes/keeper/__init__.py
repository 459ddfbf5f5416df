"""The keeper: one small process per data folder that holds the sandboxes, so that they outlive workers.

`bwrap.py` starts it (`python -m sojourn.sandboxes.keeper`) and speaks to it (`protocol.py`). The rule: it imports
little, listens to its own uid alone, and dies with nothing of its own left behind. Why it exists:
docs/decisions/0005-sandbox-keeper.md.
"""
