"""Pools of the day: what a tenant and each of its users may spend, in 0017_budgets.sql.

pools      the bounds, and what is spent, held and left; called by the API and the command line
reserving  a model call's place in the pools; called by the worker before the call
tally      what a commit says to them, read off the run; called by the worker, and by stops
settling   that in the statement of the commit; called by the Committer
waking     the runs that wait for room; called by the worker now and then
"""
