"""A URL that names several hosts: the first that can be written to is used, and one that says nothing costs little."""

import asyncio
import socket
from urllib.parse import urlsplit

import pytest
from tests.postgres_wire import cut_wire

from sojourn.errors import StoreUnavailable
from sojourn.store.db import Options, connect
from sojourn.store.hosts import SILENCE_S, each
from sojourn.store.roles import Dsns


@pytest.mark.parametrize(
    ("url", "urls"),
    [
        ("postgresql://u:p@a/d", ["postgresql://u:p@a/d"]),
        ("postgresql://u:p@a:1,[::1]:2/d?x=y", ["postgresql://u:p@a:1/d?x=y", "postgresql://u:p@[::1]:2/d?x=y"]),
        ("postgresql://u@/d?host=/s", ["postgresql://u@/d?host=/s"]),
        (
            "postgresql://u@/d?host=/r,/s&port=1,2",
            ["postgresql://u@/d?host=%2Fr&port=1", "postgresql://u@/d?host=%2Fs&port=2"],
        ),
        ("postgresql://u@/d?host=a,b", ["postgresql://u@/d?host=a&port=5432", "postgresql://u@/d?host=b&port=5432"]),
    ],
)
def test_a_url_is_taken_apart(url: str, urls: list[str]) -> None:
    assert [one.replace("host=/", "host=%2F") for one in each(url)] == [
        one.replace("host=/", "host=%2F") for one in urls
    ]


async def test_hosts_that_are_silent_or_gone_are_passed_over_and_come_last_from_then_on(dsns: Dsns) -> None:
    heard = 0

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal heard
        heard += 1
        await reader.read()
        writer.close()

    def named(dsn: str, *ports: int) -> str:
        hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
        return (
            urlsplit(dsn)
            ._replace(netloc=f"{urlsplit(dsn).netloc.rpartition('@')[0]}@{hosts}", query="sslmode=disable")
            .geturl()
        )

    async with cut_wire(dsns) as (wire, _):
        servers = [await asyncio.start_server(hear, "127.0.0.1", 0) for hear in (say_nothing, wire.connected)]
        (silent, good), gone = (server.sockets[0].getsockname()[1] for server in servers), 9
        urls = Dsns(*(named(dsn, gone, silent, good) for dsn in (dsns.migrate, dsns.api, dsns.engine)))
        async with await connect(urls, Options(connect_timeout_s=4.5)) as database:
            assert 1 <= heard <= 3  # each login finds out by itself
            before = heard  # and knows from then on
            listener = await database.listener()
            wires = [listener._transport.get_extra_info("socket")]
            assert wires[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == SILENCE_S * 1000
            assert wires[0].getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            again = await database.listener()
            assert heard == before
            for connection in (listener, again):
                await connection.close()
        with pytest.raises(StoreUnavailable, match="does not answer"):
            await connect(named(dsns.migrate, gone, silent), Options(connect_timeout_s=0.2))
        for server in servers:
            server.close()
