"""Stops: orders that something must not run, until they are lifted.

    matching   what a stop names, in SQL
    orders     making, lifting and reading them; by a key of a tenant, or by the owner of the database
    sweep      carrying them out, in workers
    report     what a stop has hit, and what of it is left

The rules: a stop is a row, and all that is done for it can be done again by anybody at any time, so nothing depends on
who made it; what is left is counted in the tables. That no run is created under a stop, the database sees to
(0010_stops.sql); that nothing begins of a run that is claimed under one, `queue.open` and the worker.
"""

from sojourn.store.audit.writing import EVERYBODY
from sojourn.store.stops.orders import Mode, NewStop, Stop, get, holding, lift, make, page, runs
from sojourn.store.stops.report import Left, Report, report
from sojourn.store.stops.sweep import note, ordered, sweep

__all__ = [
    "EVERYBODY", "Left", "Mode", "NewStop", "Report", "Stop", "get", "holding", "lift", "make", "note", "ordered",
    "page", "report", "runs", "sweep",
]  # fmt: skip
