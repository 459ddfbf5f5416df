"""One structured line for each log event, as JSON or as text. `wiring` sets it up once for a process.

The rule: a line holds an event's name and the ids and numbers given with it; prompts, arguments and secrets are never
given to a logger at all.
"""

import logging
import sys
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

_OWN = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


class JsonLines(logging.Formatter):
    """{"at", "level", "logger", "event", ...the fields given as `extra`}"""

    def format(self, record: logging.LogRecord) -> str:
        line = {"at": _at(record), "level": record.levelname.lower(), "logger": record.name, **_fields(record)}
        return msgspec.json.encode(line, enc_hook=str).decode()


class TextLines(logging.Formatter):
    """The same for a person: time, level, event, fields as name=value."""

    def format(self, record: logging.LogRecord) -> str:
        fields = _fields(record)
        event, trouble = fields.pop("event"), fields.pop("traceback", "")
        rest = "".join(f" {name}={value}" for name, value in fields.items())
        return f"{_at(record)[11:23]} {record.levelname.lower():7} {event}{rest}" + (f"\n{trouble}" if trouble else "")


def _at(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields = {"event": record.getMessage()}
    fields |= {name: value for name, value in record.__dict__.items() if name not in _OWN}
    if record.exc_info:
        fields["traceback"] = logging.Formatter().formatException(record.exc_info)
    return fields


def set_up(level: str, format: Literal["auto", "json", "text"]) -> None:
    """Send this process's log to standard error."""
    as_text = format == "text" or (format == "auto" and sys.stderr.isatty())
    handler = logging.StreamHandler()
    handler.setFormatter(TextLines() if as_text else JsonLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
