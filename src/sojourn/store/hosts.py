"""Which server to speak to, where a URL names several: the one that can be written to. Called by `db`.

The rule: a host that says nothing costs its share of the time and no more; and a connection whose other side has gone
without a word ends by itself, long before a statement's time is over.
"""

import socket
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import asyncpg  # type: ignore[import-untyped]

WRITABLE = "read-write"
SILENCE_S = 10
"""After this time without an answer from the other side's machine a connection is given up."""
WATCH = (
    (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
    (socket.IPPROTO_TCP, "TCP_KEEPIDLE", SILENCE_S // 2),
    (socket.IPPROTO_TCP, "TCP_KEEPINTVL", 2),
    (socket.IPPROTO_TCP, "TCP_KEEPCNT", 3),
    (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", SILENCE_S * 1000),
)


class Hosts:
    """The hosts of one URL, the last that was good first."""

    def __init__(self, dsn: str) -> None:
        self._urls = each(dsn)

    async def connect(self, *, timeout_s: float, **arguments: Any) -> asyncpg.Connection:
        """Connect to the first host that answers and suits. Raises the driver's errors, the most telling one."""
        told: Exception | None = None
        for url in tuple(self._urls):
            try:
                connection = await asyncpg.connect(url, timeout=timeout_s / len(self._urls), **arguments)
            except (OSError, asyncpg.PostgresError, asyncpg.TargetServerAttributeNotMatched) as error:
                told = error if told is None or _tells_more(error, told) else told
                continue
            self._urls.remove(url)
            self._urls.insert(0, url)
            watch(connection)
            return connection
        raise told or ValueError("the URL names no host")


def each(dsn: str) -> list[str]:
    """Write a URL for each host of a URL, which stand before the path or in its query."""
    parts = urlsplit(dsn)
    login, at, places = parts.netloc.rpartition("@")
    if places:
        return [parts._replace(netloc=f"{login}{at}{place}").geturl() for place in places.split(",")]
    query = dict(parse_qsl(parts.query))
    hosts, ports = query.get("host", "").split(","), query.get("port", "5432").split(",")
    if len(hosts) == 1:
        return [dsn]
    ports = ports * len(hosts) if len(ports) == 1 else ports
    named = ({**query, "host": host, "port": port} for host, port in zip(hosts, ports, strict=True))
    return [parts._replace(query=urlencode(one, quote_via=quote)).geturl() for one in named]


def watch(connection: asyncpg.Connection) -> None:
    """Let the system look after a connection over a network: a machine that has died does not say so."""
    wire = connection._transport.get_extra_info("socket")
    if wire.family == socket.AF_UNIX:
        return
    for level, name, value in WATCH:
        if number := getattr(socket, name, None):  # not every system has all of them
            wire.setsockopt(level, number, value)


def _tells_more(error: Exception, than: Exception) -> bool:
    """Whether an error says more than another."""
    return _says(error) > _says(than)


def _says(error: Exception) -> int:
    """How much an error says: that a host is not there less than that it only reads, and a refusal most."""
    match error:
        case asyncpg.CannotConnectNowError() | asyncpg.TargetServerAttributeNotMatched():
            return 1
        case asyncpg.PostgresError():
            return 2
    return 0
