"""A simulated model: a real HTTP server for the OpenAI and Anthropic dialects that thinks what a script tells it to.

Tests, benches, `make demo` and `sojourn simulate` run it, and users may, for load tests and for failures on demand.
docs/simulator.md explains scripts. A tour, in the order in which a request passes:

    server     the routes, Simulator for tests, serve for the command line
    endpoint   one request, from its bytes to its log line
    asked      what a request asks, in words for rules and templates
    openai     reads and renders POST /v1/chat/completions
    anthropic  reads and renders POST /v1/messages
    script     rules, replies, pacing and faults as data
    replies    which rule answers, and the built-in sim-* models
    player     the pace on the wire, and the faults that strike there
    ledger     the prompt cache, the bill and the log of requests

The rule: it shares no code with the adapters that it tests, and the same script, seed and request give the same bytes.
"""

from sojourn.models.simulator.ledger import Entry, RequestLog
from sojourn.models.simulator.script import (
    Call,
    Charge,
    Cut,
    Drip,
    ErrorEvent,
    Garbage,
    Pacing,
    Pattern,
    Range,
    Reset,
    Rule,
    Script,
    Stall,
    Status,
    TooLong,
    Truncate,
    When,
    load,
    parse,
)
from sojourn.models.simulator.server import Simulator, serve

__all__ = [
    "Call",
    "Charge",
    "Cut",
    "Drip",
    "Entry",
    "ErrorEvent",
    "Garbage",
    "Pacing",
    "Pattern",
    "Range",
    "RequestLog",
    "Reset",
    "Rule",
    "Script",
    "Simulator",
    "Stall",
    "Status",
    "TooLong",
    "Truncate",
    "When",
    "load",
    "parse",
    "serve",
]
