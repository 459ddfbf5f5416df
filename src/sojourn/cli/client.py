"""The API as the commands see it: requests in, JSON out, and every refusal as one line that says what to do.

Commands ask through `Client`; stream.py reads its open answers. The rules: only the standard library is imported,
because every command pays for it at its start (its json takes 20 ms less than msgspec), and a local key never leaves
the machine.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode, urlsplit

from sojourn.cli.exits import FAILED, NOT_FOUND, UNAUTHENTICATED, UNREACHABLE, USAGE, Stop

DEFAULT_URL = "http://127.0.0.1:8420"
CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 60.0
TRIES = 3
PAGE = 200
RATE_ADVICE = "Try again then; on the server's machine, `sojourn tenants set TENANT --rate` raises the limit."

Json = dict[str, Any]
JSON_TYPE = {"Content-Type": "application/json"}
LISTS = {
    "runs": "runs", "agents": "agents list", "schedules": "schedules list",
    "sessions": "sessions list", "keys": "keys list", "approvals": "approvals",
}  # fmt: skip
"""The command that lists what a path names by id."""


class Refusal(Stop):
    """The server answered, with an error. `status` is its HTTP status, `detail` what happened, in its own words."""

    def __init__(
        self, message: str, *, status: int, error_code: str, retry_after_s: float | None, detail: str = ""
    ) -> None:
        codes = {401: UNAUTHENTICATED, 404: NOT_FOUND, 502: UNREACHABLE, 503: UNREACHABLE, 504: UNREACHABLE}
        super().__init__(message, codes.get(status, FAILED))
        self.status = status
        self.error_code = error_code
        self.retry_after_s = retry_after_s
        self.detail = detail


class Unreachable(Stop):
    """No answer came."""

    def __init__(self, message: str) -> None:
        super().__init__(message, UNREACHABLE)


class Key(NamedTuple):
    """The caller's API key, or why there is none."""

    token: str
    absence: str = ""


class Client:
    """One server and one key. Each request has a connection of its own."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.url = (environ.get("SOJOURN_API_URL") or DEFAULT_URL).rstrip("/")
        parts = urlsplit(self.url)
        try:
            self._address = (parts.hostname, parts.port)
        except ValueError:
            self._address = (None, None)
        if parts.scheme not in ("http", "https") or not self._address[0]:
            raise Stop(f"SOJOURN_API_URL is {self.url!r}; it must look like {DEFAULT_URL}.", USAGE)
        self._tls = parts.scheme == "https"
        self._prefix = parts.path.removesuffix("/v1")
        self._key = find_key(environ, local=parts.hostname in ("127.0.0.1", "localhost", "::1"))

    def get(self, path: str, /, **query: Any) -> Any:
        return self.json("GET", path, query=query)

    def post(self, path: str, body: Json) -> Any:
        """Send a body that may be sent again: the Idempotency-Key makes one object of it."""
        key = {"Idempotency-Key": os.urandom(16).hex()}
        return self.json("POST", path, body=json.dumps(body).encode(), headers={**JSON_TYPE, **key})

    def put(self, path: str, body: Json) -> Any:
        return self.json("PUT", path, body=json.dumps(body).encode(), headers=JSON_TYPE)

    def json(
        self,
        method: str,
        path: str,
        *,
        query: Json | None = None,
        body: bytes | None = None,
        headers: Json | None = None,
    ) -> Any:
        """Make a request and read its JSON answer; where a broken connection does no harm, make it again.

        Raises Refusal and Unreachable.
        """
        once = method == "POST" and "Idempotency-Key" not in (headers or {})
        for left in reversed(range(1 if once else TRIES)):
            try:
                with self.open(method, path, query=query, body=body, headers=headers) as response:
                    text = response.read()
                return json.loads(text) if text else {}
            except (HTTPException, OSError) as error:
                if not left:
                    raise Unreachable(f"The connection to {self.url} broke ({_reason(error)}). Try again.") from None
            except ValueError:
                raise Unreachable(f"{self.url} does not answer in JSON: is it a Sojourn server?") from None
            time.sleep(0.2)
        raise AssertionError("the last try returns or raises")

    def pages(self, path: str, /, *, limit: int | None = None, **query: Any) -> Iterator[Json]:
        """Yield the objects of a list, page after page, up to `limit`. Raises Stop for a limit that is none."""
        if limit is not None and limit < 1:
            raise Stop("--limit is a number from 1 on.", USAGE)
        while limit is None or limit > 0:
            page = self.get(path, limit=PAGE if limit is None else min(limit, PAGE), **query)
            yield from page["data"]
            if not page.get("has_more"):
                return
            limit = None if limit is None else limit - len(page["data"])
            query["after"] = page["next"]

    def open(
        self,
        method: str,
        path: str,
        *,
        query: Json | None = None,
        body: bytes | None = None,
        headers: Json | None = None,
    ) -> HTTPResponse:
        """Make one request and leave its answer open. Raises Refusal, Unreachable, HTTPException and OSError."""
        kind = HTTPSConnection if self._tls else HTTPConnection
        connection = kind(self._address[0] or "", self._address[1], timeout=CONNECT_TIMEOUT_S)
        try:
            connection.connect()
        except OSError as error:
            hint = "Start one with `sojourn serve`, or set SOJOURN_API_URL to the one you mean."
            if self._tls and not isinstance(error, ConnectionError):
                hint = f"Where it speaks no TLS, SOJOURN_API_URL begins with http://. {hint}"
            raise Unreachable(f"No server answers at {self.url} ({_reason(error)}). {hint}") from None
        connection.sock.settimeout(ANSWER_TIMEOUT_S)
        wanted = {name: str(value) for name, value in (query or {}).items() if value is not None}
        target = self._prefix + path + ("?" + urlencode(wanted) if wanted else "")
        auth = {"Authorization": f"Bearer {self._key.token}"} if self._key.token else {}
        sent = {"Accept": "application/json", "User-Agent": "sojourn-cli", "Connection": "close", **auth}
        connection.request(method, target, body=body, headers={**sent, **(headers or {})})
        response = connection.getresponse()
        if response.status >= 300:
            raise self._refusal(response, path)
        return response

    def _refusal(self, response: HTTPResponse, path: str) -> Refusal:
        """Read an error answer: what happened, what to do, code and request id, in one line."""
        with response:
            text = response.read(1 << 20)
        try:
            problem = json.loads(text)
            problem = problem if isinstance(problem, dict) else {}
        except ValueError:
            problem = {}
        stranger = f"{self.url} answered {response.status} {response.reason}: is it a Sojourn server?"
        detail = str(problem.get("detail") or stranger)
        words = [detail]
        words += [_fault(error, detail) for error in problem.get("errors") or ()]
        code = str(problem.get("code") or f"http.{response.status}")
        advice = RATE_ADVICE if code == "limit.rate" else self._advice(response.status, path)
        words.append(advice if problem else "SOJOURN_API_URL says which one is asked.")
        request = problem.get("request_id") or response.headers.get("X-Request-Id")
        words.append(f"({code}, request {request})" if request else f"({code})")
        return Refusal(
            " ".join(" ".join(words).split()),
            status=response.status,
            error_code=code,
            retry_after_s=_seconds(problem.get("retry_after_s") or response.headers.get("Retry-After")),
            detail=detail,
        )

    def _advice(self, status: int, path: str) -> str:
        if status == 401:
            return (
                f"{self._key.absence} On the server's machine, `env -u SOJOURN_API_KEY sojourn keys create NAME` makes "
                "a key; put it into SOJOURN_API_KEY. Where the local key is lost, `sojourn keys recover` makes it anew."
            ).strip()
        _, _, kind, *id_ = path.split("/")
        if status == 404 and id_ and kind in LISTS:
            return f"`sojourn {LISTS[kind]}` lists yours."
        return "Try again in a moment." if status in (429, 502, 503, 504) else ""


def find_key(environ: Mapping[str, str], *, local: bool) -> Key:
    """Find the key: SOJOURN_API_KEY, else, for a server on this machine, the one that its first start wrote."""
    token = environ.get("SOJOURN_API_KEY", "").strip()
    source = "SOJOURN_API_KEY"
    if not token:
        path = key_path(environ)
        source = str(path)
        if not local:
            return Key("", "SOJOURN_API_KEY is not set, and a local key is not sent to another machine.")
        try:
            token = path.read_text().strip()
        except FileNotFoundError:
            return Key("", f"SOJOURN_API_KEY is not set, and there is no local key at {path}.")
        except (OSError, UnicodeDecodeError) as error:
            return Key("", f"SOJOURN_API_KEY is not set, and the local key {path} cannot be read ({_reason(error)}).")
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise Stop(
            f"What {source} holds is not an API key: one is a word such as sj_..., and `sojourn keys create NAME` on "
            "the server's machine makes one.",
            UNAUTHENTICATED,
        )
    return Key(token)


def key_path(environ: Mapping[str, str]) -> Path:
    """Where the local key lies: in the data folder that `sojourn.settings` finds with the same environment."""
    named = environ.get("SOJOURN_DATA_DIR")
    if not named and os.geteuid() == 0:
        named = "/var/lib/sojourn"
    folder = Path(named) if named else Path(environ.get("XDG_DATA_HOME") or "~/.local/share") / "sojourn"
    return folder.expanduser().absolute() / "local.key"


def segment(name: str) -> str:
    """Quote a name for its place in a path. Raises Stop for one that cannot be there."""
    if name in ("", ".", ".."):
        raise Stop(f"{name!r} is not a name.", USAGE)
    return quote(name, safe="")


def file_path(name: str) -> str:
    """Quote a path in a session's workspace, slash by slash."""
    return "/".join(segment(part) for part in name.strip("/").split("/"))


def _reason(error: BaseException) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()


def _fault(error: Json, detail: str) -> str:
    """Where in the body something is wrong, and what, unless that was said."""
    said = error.get("detail")
    return f"[{error.get('pointer') or '/'}]" if said == detail else f"[{error.get('pointer') or '/'}: {said}]"


def _seconds(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
