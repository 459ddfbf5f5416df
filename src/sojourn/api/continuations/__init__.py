"""Runs that move: exported, imported, forked.

routes    the handlers           gathering   a run that stands still, with all that it needs
issuers   who is let in          landing     a new run made of it, checked against what this server has
"""
