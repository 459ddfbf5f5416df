"""A PostgreSQL server of our own, from a wheel, in the data folder. Called by `wiring` when no database URL is set.

    home      the folders, their modes, and the user id that the server runs as
    initdb    makes the data folder once: databases, roles, passwords
    keeper    a small process that runs the server and stops it when its last user has gone
    cluster   starts all this, or joins it when another process did

The rule: nothing outside `<data_dir>/postgres` is created or changed.
"""

from sojourn.store.embedded.cluster import Cluster, running, start

__all__ = ["Cluster", "running", "start"]
