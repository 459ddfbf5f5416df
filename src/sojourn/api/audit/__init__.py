"""The audit log over HTTP: what routes write into it, and how it is read.

acts     the row of a route's act, and of one that its caller may not do; called by `once` and the guard
routes   /v1/audit
"""
