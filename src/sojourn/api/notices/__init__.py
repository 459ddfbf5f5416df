"""Webhooks and alerts over HTTP: where a tenant wants to be told, and what there is to look at.

The rule: handlers read and write rows; workers send, and find out.
"""
