"""A run as a person watches it: text as it streams, one line a tool call, results dimmed and cut.

`run` and `logs` feed it what stream.py yields. The rule: every message is shown whole and once, whatever deltas came,
were lost or were taken back; where the output is no terminal, only what is durable is shown.
"""

import json
from typing import Any

from sojourn.cli import questions, stream
from sojourn.cli.running import TAIL_LINES, Running, Tail
from sojourn.cli.terminal import Out, between, count, cut, duration, money, one_line, status_style, tokens

RESULT_LINES = 10
SAID_LINES = 5
SAID_CHARS = 2000
_KINDS = {"delta.message": "message", "delta.thinking": "thinking"}
_STYLES = {"message": "", "thinking": "dim"}
_NOTES = {
    "run.resumed": "the run goes on",
    "run.cancelled": "the run was cancelled",
    "sandbox.restored": "the files were brought back into a new sandbox; programs that ran in it have ended",
}


class View:
    """The lines of one run. Sub-agents' lines are indented, and their text is shown when it is whole."""

    def __init__(self, out: Out) -> None:
        self.out = out
        self._attempt: tuple[Any, ...] | None = None
        self._shown: dict[str, str] = {}
        """What stands on the screen of the attempt that streams: text by kind, the latest kind last."""
        self._told: dict[str, str] = {}
        """What its deltas said since they last began."""
        self._calls: dict[str, str] = {}
        self._open: dict[str, dict[str, Any]] = {}
        """The questions that were shown and not answered, by their waits."""
        self._running = Running(out)

    def show(self, item: dict[str, Any]) -> None:
        """Show one event or delta; unknown ones are passed over."""
        self._show(item)
        self._running.show(self._calls)

    def _show(self, item: dict[str, Any]) -> None:
        match item["type"]:
            case "delta.tool_arguments" if _attempt(item)[0] == "/":
                self._running.write(item)
            case "delta.tool_output" if _attempt(item)[0] == "/":
                self._running.print(item)
            case stream.LOST:
                self._running.forget()
            case "delta.reset" if item.get("call"):
                self._running.printed(item["call"])
            case "delta.message" | "delta.thinking":
                self._stream(item)
            case "delta.reset":
                self._reset(item)
            case "agent.message":
                self._settle("message", item)
            case "agent.thinking":
                self._settle("thinking", item)
            case "user.message":
                self._said(item)
            case "agent.tool_use":
                self._tool_use(item)
            case "agent.tool_result":
                self._tool_result(item)
            case "model.request_started":  # whatever came of the calls before, nothing of them is to come
                below = item["frame"].rstrip("/") + "/"
                self._calls = {call: label for call, label in self._calls.items() if not call.startswith(below)}
            case "model.request_finished" if item.get("error"):
                self._model_failed(item)
            case "approval.requested":
                self._question(item)
            case "approval.resolved":
                self._decided(item)
            case "run.held":
                self._line(item, f"{item['by']} put the run on hold{_because(item)}", "yellow")
            case "signal.received":
                data = cut(item.get("data") or "", SAID_LINES, SAID_CHARS)
                self._line(item, f"signal {one_line(item['name'], 200)} {data}".removesuffix(" null").rstrip(), "cyan")
            case "run.queued" if item.get("made_from"):
                self._line(item, f"this run goes on from {item['made_from']}", "dim")
            case "context.compacted":
                self._line(item, _shortened(item), "dim")
            case "agent.frame_started":
                self._line(item, f"▸ sub-agent {item.get('tool') or ''} begins", "dim")
            case "run.failed" | "run.quarantined" | "error":
                self._line(item, _reason(item["error"]), "yellow" if item["type"] == "error" else "red")
            case "run.suspended":
                self._open = {id_: asked for id_, asked in self._open.items() if id_ in item["waits"]}
                self._line(item, "… the run waits, and holds nothing meanwhile", "yellow")
            case kind if kind in _NOTES:
                self._line(item, _NOTES[kind], "yellow")

    # ---- text, streamed and whole --------------------------------------------------------------

    def _stream(self, item: dict[str, Any]) -> None:
        attempt = _attempt(item)
        if not self.out.tty or attempt[0] != "/":
            return
        if attempt != self._attempt:
            self._attempt, self._shown, self._told = attempt, {}, {}
        kind, style = _KINDS[item["type"]], _STYLES[_KINDS[item["type"]]]
        latest = next(reversed(self._shown), None)
        shown = self._shown.pop(kind, "")
        told = self._told[kind] = self._told.get(kind, "") + item.get("text", "")
        self._shown[kind] = shown if shown.startswith(told) else told
        if latest == kind and told.startswith(shown):
            self.out.write(told[len(shown) :], style)
        elif not shown.startswith(told):
            self.out.write("" if self.out.fresh else "\n")
            self.out.write(told[len(shown) :] if told.startswith(shown) else told, style)

    def _reset(self, item: dict[str, Any]) -> None:
        """The text is told anew: by another attempt, or because this reader came back in the middle."""
        if _attempt(item)[0] != "/":
            return
        if _attempt(item) != self._attempt and self._shown:
            self.out.line("… the answer broke off and begins anew", "dim")
            self._shown = {}
        self._running.written()
        self._attempt, self._told = _attempt(item), {}

    def _settle(self, kind: str, item: dict[str, Any]) -> None:
        """The text is whole and durable: show what is missing of it. A reply may hold several such texts."""
        text, style = item.get("text", ""), _STYLES[kind]
        latest = next(reversed(self._shown), None)
        shown = self._shown.pop(kind, "") if item.get("frame", "/") == "/" else ""
        if shown.startswith(text):
            if rest := shown[len(text) :]:
                self._shown[kind] = rest
        elif shown and latest == kind and text.startswith(shown):
            self.out.write(text[len(shown) :], style)
        else:
            self._line(item, text if kind == "message" else cut(text, RESULT_LINES, self.out.width * 4), style)

    # ---- one line each -------------------------------------------------------------------------

    def _line(self, item: dict[str, Any], text: str, style: str = "") -> None:
        """Write lines of their own, indented where a sub-agent is at work."""
        indent = "" if item.get("frame", "/") == "/" else "  "
        self.out.line("\n".join(indent + line for line in text.split("\n")), style)

    def _said(self, item: dict[str, Any]) -> None:
        self._line(item, "> " + cut(item.get("text", ""), SAID_LINES, SAID_CHARS).replace("\n", "\n> "), "cyan")

    def _question(self, item: dict[str, Any]) -> None:
        self._open[item["wait"]] = item
        if item["kind"] != "hold":  # that was told already
            self._line(item, questions.headline(item), "yellow")
        body = questions.shown(item)
        self._line(item, questions.indented(f"{body}\n{questions.how(item)}" if body else questions.how(item)))

    def _decided(self, item: dict[str, Any]) -> None:
        several = len(self._open) > 1
        asked = self._open.pop(item["wait"], {})
        about = f" ({one_line(asked['title'], 200)})" if asked and several else ""
        held = asked.get("kind") == "hold"
        fact = "ended the hold" if held else f"decided: {item['decision']}{about}"
        self._line(item, f"{item['by']} {fact}{_because(item)}", "yellow")

    def _tool_use(self, item: dict[str, Any]) -> None:
        self._shown = {}
        self._running.written()
        label = f"{item['tool']} {arguments(item.get('arguments') or '')}".rstrip()
        self._calls[item["call"]] = label
        asked = {"ask": "  (waits for approval)", "deny": "  (denied)"}.get(item.get("evaluated_permission", ""), "")
        self._line(item, "→ " + one_line(label, max(self.out.width - 6 - len(asked), 20)) + asked, "bold")

    def _tool_result(self, item: dict[str, Any]) -> None:
        label = self._calls.pop(item["call"], item.get("tool", ""))
        if self._calls:
            self._line(item, "  ↳ " + one_line(label, max(self.out.width - 8, 20)), "dim")
        text = (item.get("text") or "(no output)").rstrip("\n")
        seen = self._running.printed(item["call"]) and self.out.color
        kept = _end(text) if seen else cut(text, RESULT_LINES, RESULT_LINES * self.out.width)
        self._line(item, "  " + kept.replace("\n", "\n  "), "red" if item.get("error") else "dim")

    def _model_failed(self, item: dict[str, Any]) -> None:
        again = " It may be tried again." if item.get("retry") else ""
        self._line(item, f"! {item.get('model') or 'the model'}: {_reason(item['error'])}{again}", "yellow")


def _attempt(item: dict[str, Any]) -> tuple[Any, ...]:
    return item.get("frame", "/"), item.get("step"), item.get("attempt")


def arguments(raw: str) -> str:
    """A tool's arguments as one reads them: the lone string itself, else name=value."""
    try:
        values = json.loads(raw)
    except ValueError:
        return raw
    if not isinstance(values, dict):
        return raw
    if len(values) == 1 and isinstance(value := next(iter(values.values())), str):
        return value
    return " ".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in values.items())


def summary(run: dict[str, Any]) -> str:
    """The last line about a run: status, steps, tokens, cost, wall time and id."""
    wall_s = between(run.get("start_at") or run.get("created_at"), run.get("finished_at"))
    parts = [
        run["status"],
        count(int(run.get("steps") or 0), "step"),
        tokens(run.get("usage") or {}),
        money(run.get("cost")),
        "" if wall_s is None else duration(wall_s),
        run["id"],
    ]
    return " · ".join(part for part in parts if part)


def show_summary(out: Out, run: dict[str, Any]) -> None:
    out.line(summary(run), status_style(run["status"]) or "bold")


def _reason(error: Any) -> str:
    """The words of an error, whether it is a text or {code, detail}."""
    if isinstance(error, dict):
        return f"{error.get('detail') or ''} ({error.get('code') or 'error'})".strip()
    return str(error)


def _because(item: dict[str, Any]) -> str:
    return f" · {item['reason']}" if item.get("reason") else ""


def _shortened(item: dict[str, Any]) -> str:
    if not item.get("usage"):
        return "the model is shown less of what came before"
    return f"what came before was summed up for the model · {tokens(item['usage'])} · {money(item.get('cost'))}"


def _end(text: str) -> str:
    """The last lines of what was seen as it was printed, with a note of what is left out."""
    tail = Tail()
    tail.add(text)
    lines = tail.last(TAIL_LINES)
    left = f"{lines.pop(0)} (--json shows all)\n" if text.count("\n") >= TAIL_LINES else ""
    return left + "\n".join(lines)
