"""Guardrails as rows: versions that never change.

    versions   writing and reading them, by a key of a tenant or by the owner of the database
    changes    reading what has changed, of all tenants, for the processes that judge

The rule: what is in force is the latest version of each name, where that has rules.
"""

from sojourn.store.guardrails.changes import Latest, changes
from sojourn.store.guardrails.versions import EVERYBODY, Version, end, get, page, put, versions

__all__ = ["EVERYBODY", "Latest", "Version", "changes", "end", "get", "page", "put", "versions"]
