"""A run as a person watches it: text as it streams, one line a tool call, results dimmed and cut.

`run` and `logs` feed it what stream.py yields. The rule: every message is shown whole and once, whatever deltas came,
were lost or were taken back; where the output is no terminal, only what is durable is shown.
"""

import json
from typing import Any

from sojourn.cli.terminal import Out, between, count, duration, money, one_line, status_style, tokens

RESULT_LINES = 10
SAID_LINES = 5
_KINDS = {"delta.message": "message", "delta.thinking": "thinking"}
_STYLES = {"message": "", "thinking": "dim"}
_NOTES = {
    "run.resumed": "the run goes on",
    "sandbox.restored": "the sandbox was lost; its files are restored",
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

    def show(self, item: dict[str, Any]) -> None:
        """Show one event or delta; unknown ones are passed over."""
        match item["type"]:
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
            case "model.request_finished" if item.get("error"):
                self._model_failed(item)
            case "approval.requested":
                self._line(item, f"? waits for you: sojourn approve {item.get('approval')}", "yellow")
            case "approval.resolved":
                self._line(item, f"decided: {item.get('decision', '')} {item.get('reason') or ''}".rstrip(), "yellow")
            case "agent.frame_started":
                self._line(item, f"▸ sub-agent {item.get('tool') or ''} begins", "dim")
            case "run.failed" | "error":
                self._line(item, _reason(item["error"]), "red" if item["type"] == "run.failed" else "yellow")
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
            self._line(item, text if kind == "message" else _cut(text, RESULT_LINES, self.out.width * 4), style)

    # ---- one line each -------------------------------------------------------------------------

    def _line(self, item: dict[str, Any], text: str, style: str = "") -> None:
        """Write lines of their own, indented where a sub-agent is at work."""
        indent = "" if item.get("frame", "/") == "/" else "  "
        self.out.line("\n".join(indent + line for line in text.split("\n")), style)

    def _said(self, item: dict[str, Any]) -> None:
        self._line(item, "> " + _cut(item.get("text", ""), SAID_LINES, 2000).replace("\n", "\n> "), "cyan")

    def _tool_use(self, item: dict[str, Any]) -> None:
        self._shown = {}
        label = f"{item['tool']} {arguments(item.get('arguments') or '')}".rstrip()
        self._calls[item["call"]] = label
        asked = {"ask": "  (waits for approval)", "deny": "  (denied)"}.get(item.get("evaluated_permission", ""), "")
        self._line(item, "→ " + one_line(label, max(self.out.width - 6 - len(asked), 20)) + asked, "bold")

    def _tool_result(self, item: dict[str, Any]) -> None:
        label = self._calls.pop(item["call"], item.get("tool", ""))
        if self._calls:
            self._line(item, "  ↳ " + one_line(label, max(self.out.width - 8, 20)), "dim")
        text = item.get("text") or "(no output)"
        cut = _cut(text.rstrip("\n"), RESULT_LINES, RESULT_LINES * self.out.width)
        self._line(item, "  " + cut.replace("\n", "\n  "), "red" if item.get("error") else "dim")

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
    wall_s = between(run.get("created_at"), run.get("finished_at"))
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


def _cut(text: str, lines: int, chars: int) -> str:
    """The beginning of a text, with a note of what is left out."""
    kept = "\n".join(text[:chars].split("\n")[:lines])
    rest = len(text) - len(kept)
    return kept if rest <= 0 else f"{kept.rstrip()}\n… {count(rest, 'character')} more (--json shows all)"
