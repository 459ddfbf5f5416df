"""Agents: immutable versions, and the pointer that says which one new runs get.

shapes   what callers send and get      specs   a public spec into a version of the loop
routes   the handlers
"""
