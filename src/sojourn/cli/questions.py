"""What a run asks: how a question is shown, which command answers it, and asking the person at the terminal.

`view`, `get` and `approvals` show with it; `run` has a `Desk`. The rule: what was typed before a question stood on the
screen does not answer it, and a yes is bound to the arguments that were shown.
"""

import json
import re
import shlex
from typing import Any

from sojourn.cli.client import Client, Refusal, segment
from sojourn.cli.stream import look
from sojourn.cli.terminal import Out, cut, one_line

Json = dict[str, Any]

DISPLAY_LINES = 15
DISPLAY_CHARS = 1500
LIMIT = re.compile(r"all of its (\w+)\.")
GO_ON = ("turns", "seconds", "loop_guard", "timer")
"""Kinds whose question is whether an agent goes on."""
GONE = ("run.not_waiting", "run.ended", "approval.already_decided")
"""What the server says of a question that somebody else has answered."""
COMMANDS = {
    "approve": "sojourn approve {id}",
    "answer": "sojourn answer {id} TEXT",
    "extend": "sojourn decide {id} extend --limit {limit}=N",
    "retry": "sojourn decide {id} retry",
}
"""How each answer is given that stands first in what a question takes."""


def sleeps(wait: Json) -> bool:
    """Whether it ends by itself, and nobody is needed."""
    return wait["kind"] in ("timer", "day_budget") and bool(wait.get("expires_at"))


def body(wait: Json) -> str:
    """What is asked, beside the title: the arguments as the server shows them, or the agent's question in its words."""
    display = wait.get("display") or ""
    if wait["kind"] in ("event", "timer", "day_budget"):
        return ""
    if wait["kind"] != "answer":
        return display
    try:
        asked = json.loads(display)
        return "\n".join((asked["question"], *(f"- {choice}" for choice in asked.get("choices", ()))))
    except (ValueError, KeyError, TypeError, AttributeError):
        return display


def shown(wait: Json) -> str:
    """Its body, cut where it is long."""
    return cut(body(wait), DISPLAY_LINES, DISPLAY_CHARS, whole=f"sojourn approvals {wait['approval']} shows all")


def indented(text: str) -> str:
    return "\n".join("  " + line for line in text.split("\n"))


def headline(wait: Json) -> str:
    """Its title, marked where somebody must answer."""
    return ("… " if wait["kind"] in ("event", "client_tool") or sleeps(wait) else "? ") + one_line(wait["title"], 200)


def how(wait: Json) -> str:
    """The command that answers, to be copied, and the other ways."""
    id_, kind, title = wait["approval"], wait["kind"], wait.get("title") or ""
    run_id = id_.partition(".")[0]
    if kind == "hold":
        return f"sojourn resume {run_id}"
    if kind == "client_tool":
        return f"sojourn result {run_id} {shlex.quote(wait.get('call') or 'CALL')} TEXT"
    if kind == "event":
        name = one_line(title.removeprefix("Waits for the event ").removesuffix("."), 200)
        return f"sojourn signal {run_id} {shlex.quote(name)} DATA"
    if sleeps(wait):
        return f"sojourn approve {id_}   (goes on now)"
    first, *others = wait.get("allowed") or ("approve", "reject")
    limit = LIMIT.search(title)
    name = limit[1].removesuffix("_micros") if limit else "steps"
    others = [word for word in others if word != "extend"]
    until = "until " + re.sub(r"\.\d+", "", wait["expires_at"]) if wait.get("expires_at") else ""
    more = "; ".join(words for words in ("or " + ", ".join(others) if others else "", until) if words)
    return COMMANDS.get(first, COMMANDS["approve"]).format(id=id_, limit=name) + (f"   ({more})" if more else "")


class Desk:
    """The questions of a run that is watched: they are asked here, if `screen` is where somebody sits."""

    def __init__(self, client: Client, run_id: str, screen: Out | None) -> None:
        self.client = client
        self.run_id = run_id
        self.screen = screen
        self.earlier: list[Json] = []
        """The open questions that do not stand at the end of what was shown."""
        self._asked: dict[str, Json] = {}
        self._shown: set[str] = set()
        self._done: set[str] = set()
        """Those that were answered here, or left to others."""
        self._suspended = False

    def stuck(self, item: Json) -> bool:
        """Take an event; say whether the run stands still now, and nobody here lets it go on. May ask the person."""
        match item["type"]:
            case "approval.requested":
                self._asked[item["wait"]] = item
                self._shown.add(item["wait"])
            case "run.suspended":
                self._suspended, self._shown = True, set()
            case "run.resumed":
                self._suspended = False
            case "approval.resolved":
                pass
            case "run.quarantined":
                return True
            case _:
                return False
        return self._suspended and self._stands(item["seq"])

    def _stands(self, seq: int) -> bool:
        run = look(self.client, self.run_id)
        open_ = [self._asked.get(wait["id"]) for wait in run["waits"]]
        if run["status"] != "suspended" or run["rev"] > seq or None in open_:
            return False  # there is more to come in the stream
        waits = [wait for wait in open_ if wait is not None]
        if all(map(sleeps, waits)):
            return False
        answered = [self._ask(wait, alone=len(waits) == 1) for wait in waits]
        self.earlier = [wait for wait in waits if wait["wait"] not in self._shown]
        return not any(answered)

    def _ask(self, wait: Json, *, alone: bool) -> bool:
        """Ask the person, once; whether there is an answer now."""
        kind = wait["kind"]
        here = kind == "answer" or ("approve" in wait["allowed"] and kind != "hold" and not sleeps(wait))
        if self.screen is None or not here or wait["wait"] in self._done:
            return False
        self._done.add(wait["wait"])
        path = f"/v1/approvals/{segment(wait['approval'])}"
        try:
            seen = {**wait, **self.client.get(path)}
            if not alone or wait["wait"] not in self._shown or body(seen) != shown(wait):
                self.screen.line(indented(body(seen)))
            said = _heard(self.screen, seen)
            if said is None:
                return False
            self.client.post(path, {**said, "arguments_digest": seen.get("arguments_digest")})
            more = seen.get("need", 1) - len(seen.get("votes") or ()) - 1
            if said["decision"] == "approve" and more > 0:
                self.screen.line(f"It needs {more} more yes, of somebody else.", "yellow")
        except Refusal as refusal:
            self.screen.line(str(refusal), "yellow")
            return refusal.error_code in GONE
        return True


def _heard(screen: Out, wait: Json) -> Json | None:
    """What the person says to a question, as the body of a decision; None where it stays open."""
    title = one_line(wait["title"], 200)
    if wait["kind"] == "answer":
        text = screen.ask(f"{title} Answer it (empty leaves it open, /reject WHY refuses): ")
        if text.split(" ")[0] == "/reject":
            return {"decision": "reject", "reason": text.removeprefix("/reject").strip()}
        return {"decision": "answer", "text": text} if text else None
    no = "n WHY (ends it)" if wait["kind"] in GO_ON else "n WHY"
    while True:
        word, _, why = screen.ask(f"{title} y, {no} or skip: ").partition(" ")
        match word.lower():
            case "y" | "yes":
                return {"decision": "approve"}
            case "n" | "no":
                return {"decision": "reject", "reason": why.strip()}
            case "" | "s" | "skip":
                return None
