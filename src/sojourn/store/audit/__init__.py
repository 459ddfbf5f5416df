"""The audit log: who did what, in chains of rows whose hashes tell when one was changed.

    writing    append a row in the transaction of what it tells; called by the API and by the operator's commands
    reading    pages, whole chains and their heads
    operator   the transactions in which the operator acts on every tenant

The rule: rows are only added, each in the transaction of the act itself.
"""
