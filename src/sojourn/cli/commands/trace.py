"""`sojourn trace`: where a run's time, tokens and money went, as a tree.

The rule: it shows what the journal holds and computes nothing but lengths of time.
"""

from argparse import Namespace
from collections.abc import Iterator
from typing import Any

from sojourn.cli.client import segment
from sojourn.cli.command import JSON, Command, Shell, flag
from sojourn.cli.exits import OK
from sojourn.cli.terminal import between, duration, money, one_line, tokens

Span = dict[str, Any]


def trace(args: Namespace, shell: Shell) -> int:
    """Show a run's spans."""
    found = shell.client().get(f"/v1/runs/{segment(args.run)}/trace")
    if args.json:
        shell.print_json(found)
        return OK
    spans = list(tree(found["spans"]))
    begin = spans[0][1].get("started_at") if spans else None
    for depth, span in spans:
        kind = "" if span["kind"] == "step" else f"{span['kind']} "
        shell.out.write("  " * depth + kind + one_line(span["name"], 120))
        shell.out.write("  " + " · ".join(facts(span, begin)), "dim")
        shell.out.line_end(f"  {reason(span['error'])}" if span.get("error") else "", "red")
    totals = found["totals"]
    shell.out.line(" · ".join(("total", tokens(totals["usage"]), money(totals["cost"]))), "bold")
    return OK


def tree(spans: list[Span]) -> Iterator[tuple[int, Span]]:
    """Yield each span with its depth, those below it right after it."""
    known = {span["id"] for span in spans}
    children: dict[str | None, list[Span]] = {}
    for span in spans:
        parent = span.get("parent")
        children.setdefault(parent if parent in known else None, []).append(span)
    todo = [(0, span) for span in reversed(children.pop(None, []))]
    while todo:
        depth, span = todo.pop()
        yield depth, span
        todo += [(depth + 1, child) for child in reversed(children.pop(span["id"], []))]


def facts(span: Span, begin: str | None) -> list[str]:
    """What a span says beside its name: when, how long, who, how much."""
    start, end = span.get("started_at"), span.get("ended_at")
    offset, length = between(begin, start) if start else None, between(start, end)
    first, wait = span.get("first_token_ms"), span["kind"] == "wait"
    return [
        fact
        for fact in (
            f"attempt {span['attempt']}" if span.get("attempt", 1) > 1 else "",
            "" if offset is None else f"+{duration(max(offset, 0))}",
            "" if length is None else ("open " if wait else "") + duration(max(length, 0)) + ("" if end else " so far"),
            "" if first is None else f"first token {duration(first / 1000)}",
            str(span.get("provider") or ""),
            tokens(span["usage"]) if span.get("usage") else "",
            money(span["cost"]) if span.get("cost") else "",
            f"{span['decision']} by {span.get('by')}" if span.get("decision") else str(span.get("status") or ""),
        )
        if fact
    ]


def reason(error: Any) -> str:
    """The words of a span's error."""
    return f"{error.get('detail') or ''} ({error.get('code')})".strip() if isinstance(error, dict) else str(error)


COMMANDS = {
    "trace": Command(
        "Show where a run's time, tokens and money went",
        trace,
        flags=(flag("run", metavar="RUN", help="the run's id"), JSON),
        about="A tree of the run's steps, model calls, tool calls and waits. +TIME is when it began, counted from the\n"
        "run's beginning; a second attempt at the same thing is a line of its own. A wait says how long it was\n"
        "open, and who answered what.",
        examples=("sojourn trace run_01J...", "sojourn trace run_01J... --json | jq .totals"),
    )
}
