"""The texts in a call's arguments, and the hosts that its URLs name.

`judging` looks at them. The rule: what is read is what the tool would read, so escapes are undone first; and a URL
whose host cannot be told for certain has none that is allowed.
"""

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from sojourn.loop.step.waits import parsed

URL = re.compile(r"[a-z][a-z0-9+.\-]{1,20}:[/\\]{2,}[^\s\"'<>`|]*", re.IGNORECASE)
STRANGE = re.compile(r"[\\@\t\r\n%]")
"""Programs do not agree about where a host ends that has one of these before it."""


def texts(args: str) -> str | None:
    """All names and values of the arguments, a line each; None where they are no arguments, and nothing would run."""
    try:
        return "\n".join(_leaves(parsed(args)))
    except (ValueError, RecursionError):
        return None


def _leaves(value: Any) -> Iterator[str]:
    left = [value]
    while left:
        one = left.pop()
        match one:
            case dict():
                left.extend(reversed([part for pair in one.items() for part in pair]))
            case list():
                left.extend(reversed(one))
            case str():
                yield one
            case bool() | None:
                pass
            case _:
                yield str(one)


def hosts(text: str) -> set[str]:
    """The hosts of all URLs in a text, in lower case; empty for one that cannot be told."""
    return {_host(found[0]) for found in URL.finditer(text)}


def _host(url: str) -> str:
    _, _, rest = url.partition(":")
    authority = re.split(r"[/?#]", rest.lstrip("/\\"), maxsplit=1)[0]
    if STRANGE.search(authority) or not authority.isascii():
        return ""
    try:
        return (urlsplit(f"//{authority}").hostname or "").rstrip(".")
    except ValueError:
        return ""
