"""/metrics in Prometheus' text format, written by hand: it is forty lines, where the client library keeps global state.

The rule: labels are route templates, statuses and states, never what a caller wrote. Source: Prometheus' exposition
format 0.0.4.
"""

from collections.abc import Iterator, Mapping
from itertools import accumulate

from sojourn.api.http.meter import BUCKETS_S, Meter
from sojourn.api.route import Answer, Ask, Route
from sojourn.errors import StoreUnavailable
from sojourn.store import health
from sojourn.store.notices import alerts
from sojourn.store.notices.rules import RULES
from sojourn.store.retention import sizes
from sojourn.store.retention.sizes import Progress
from sojourn.store.rows import Counts

TYPE = "text/plain; version=0.0.4; charset=utf-8"


async def metrics(ask: Ask[None, None]) -> Answer:
    """Say what this process did, and how all runs stand; while the database is away only the former."""
    lines = list(_process(ask.live.meter, ask.live.hub.count))
    try:
        counts = await health.counts(ask.parts.database, tenant_runs_max=ask.parts.settings.tenant_runs_max)
        tidied = await sizes.progress(ask.parts.database)
        opened = await alerts.open_now(ask.parts.database)
    except StoreUnavailable:
        lines += _metric("sojourn_database_up", "gauge", "Whether the database answers.", {"": 0})
    else:
        now = ask.parts.now()
        oldest_s = max(0.0, (now - counts.oldest_due_at).total_seconds()) if counts.oldest_due_at else 0.0
        lines += _server(counts, oldest_s)
        by_kind = {f'kind="{kind}"': opened.get(kind, 0) for kind in RULES}
        lines += _metric("sojourn_alerts_open", "gauge", "Open alerts of all tenants, by kind.", by_kind)
        lines += _kept(tidied, (now - tidied.oldest_at).total_seconds() if tidied.oldest_at else 0.0)
    return Answer(body="\n".join([*lines, ""]).encode(), headers={"Content-Type": TYPE})


def _process(meter: Meter, streams: int) -> Iterator[str]:
    requests = {
        f'method="{method}",route="{route}",status="{status}"': count
        for (method, route, status), count in sorted(meter.requests.items())
    }
    yield from _metric("sojourn_http_requests_total", "counter", "Answered requests.", requests)
    limited = {f'class="{class_}",subject="{subject}"': count for (class_, subject), count in meter.limited.items()}
    yield from _metric("sojourn_rate_limited_total", "counter", "Requests that a rate limit refused.", limited)
    name = "sojourn_http_request_seconds"
    yield f"# HELP {name} How long answers took, event streams left out."
    yield f"# TYPE {name} histogram"
    total = sum(meter.buckets)
    for bound, count in zip((*BUCKETS_S, "+Inf"), accumulate(meter.buckets), strict=True):
        yield f'{name}_bucket{{le="{bound}"}} {count}'
    yield f"{name}_sum {meter.seconds:.6f}"
    yield f"{name}_count {total}"
    yield from _metric("sojourn_streams_open", "gauge", "Open event streams of this process.", {"": streams})


def _server(counts: Counts, oldest_s: float) -> Iterator[str]:
    by_status = {f'status="{status}"': count for status, count in sorted(counts.runs.items())}
    queued, running = counts.runs.get("queued", 0) - counts.delayed, counts.runs.get("running", 0)
    yield from _metric("sojourn_database_up", "gauge", "Whether the database answers.", {"": 1})
    yield from _metric("sojourn_runs", "gauge", "Unfinished runs by status, over all tenants.", by_status)
    yield from _metric("sojourn_queue_depth", "gauge", "Runs that wait for a worker.", {"": queued})
    yield from _metric("sojourn_runs_delayed", "gauge", "Queued runs that are to begin later.", {"": counts.delayed})
    yield from _metric("sojourn_queue_oldest_seconds", "gauge", "How long the oldest one waits.", {"": oldest_s})
    due = {'state="claimable"': counts.claimable, 'state="held_back"': counts.held_back}
    yield from _metric("sojourn_queue_due", "gauge", "Runs that are due, and whether a limit holds them back.", due)
    yield from _metric("sojourn_leases", "gauge", "Runs that a worker holds.", {"": running})
    dead = counts.runs.get("quarantined", 0)
    yield from _metric("sojourn_dead_letters", "gauge", "Runs that no worker could go on with.", {"": dead})
    yield from _metric("sojourn_workers", "gauge", "Workers alive.", {"": counts.workers})


def _kept(tidied: Progress, oldest_s: float) -> Iterator[str]:
    gone = {f'what="{what}"': number for what, number in sorted(tidied.gone.items())}
    yield from _metric("sojourn_tidied_total", "counter", "What was deleted, by kind.", gone)
    yield from _metric("sojourn_tidy_runs_left", "gauge", "Deleted runs that still have rows.", {"": tidied.left})
    yield from _metric("sojourn_oldest_session_seconds", "gauge", "The longest unused session.", {"": oldest_s})


def _metric(name: str, kind: str, help_: str, values: Mapping[str, float]) -> Iterator[str]:
    yield f"# HELP {name} {help_}"
    yield f"# TYPE {name} {kind}"
    for labels, value in values.items():
        yield f"{name}{{{labels}}} {value}" if labels else f"{name} {value}"


ROUTES = (
    Route(
        method="GET",
        path="/metrics",
        handler=metrics,
        summary="Metrics for Prometheus",
        tag="operations",
        scope="admin:metrics",
        answers={200: (None, "Metrics in text format")},
        media=("text/plain",),
    ),
)
