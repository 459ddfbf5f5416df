"""Runs as callers see them, through a scoped connection. Called by the API.

    creation    a run, its first event and its agent, in one statement
    reading     one run, pages of runs, runs that wait for somebody
    journal     events, snapshots and transcripts; how they are stored
    deciding    what a decision is judged by
    mailing     what callers say to a run that goes on
    adoption    runs made of other runs
    quarantine  dead letters: runs that no worker can go on with
    snapshots   a continuation without bodies, and the bodies put back

The rule: nothing here looks past the tenant of the connection's handle.
"""

from sojourn.store.runs.adoption import adopt, arrive, source
from sojourn.store.runs.creation import create
from sojourn.store.runs.deciding import Asked, asked, decided
from sojourn.store.runs.journal import (
    Conversation,
    More,
    continuation,
    conversation,
    events,
    more,
    transcript,
    verify_chain,
)
from sojourn.store.runs.mailing import post
from sojourn.store.runs.quarantine import quarantine, retry
from sojourn.store.runs.reading import dead, get, page, waiting

__all__ = [
    "Asked", "Conversation", "More", "adopt", "arrive", "asked", "continuation", "conversation", "create", "dead",
    "decided", "events", "get", "more", "page", "post", "quarantine", "retry", "source", "transcript", "verify_chain",
    "waiting",
]  # fmt: skip
