"""How long an attempt may take, and what ends it early, in both dialects against a real socket."""

import asyncio
from contextlib import aclosing

import msgspec
import pytest
from raw_server import RawServer, chunk, head, whole
from speaking import DIALECTS, REQUEST, Spoken, ask, speaking

from sojourn.loop.messages import Message
from sojourn.models.model import ModelFailed, TimeOuts

SHORT = TimeOuts(connect_s=5, first_token_s=0.2, idle_s=0.2, total_s=20)

pytestmark = pytest.mark.parametrize("spoken", DIALECTS, ids=lambda spoken: spoken.dialect)


async def failing(spoken: Spoken, url: str, time_outs: TimeOuts) -> ModelFailed:
    async with speaking(spoken, url, time_outs=time_outs) as models:
        with pytest.raises(ModelFailed) as caught:
            await ask(models)
    return caught.value


async def test_silence_before_the_head_is_a_first_token_time_out(spoken: Spoken, raw: RawServer) -> None:
    raw.scripts = [["stall"]]
    failure = await failing(spoken, raw.url, SHORT)
    assert (failure.kind, failure.retry) == ("first_token", True)
    await asyncio.wait_for(raw.hung_up.wait(), 20)


async def test_silence_after_the_head_is_a_first_token_time_out(spoken: Spoken, raw: RawServer) -> None:
    raw.scripts = [[head(), "stall"]]
    failure = await failing(spoken, raw.url, SHORT)
    assert failure.kind == "first_token"
    await asyncio.wait_for(raw.hung_up.wait(), 20)


async def test_silence_in_the_middle_is_an_idle_time_out(spoken: Spoken, raw: RawServer) -> None:
    long_first = msgspec.structs.replace(SHORT, first_token_s=20)
    raw.scripts = [[head(), chunk(spoken.events[0]), "stall"]]
    failure = await failing(spoken, raw.url, long_first)
    assert (failure.kind, failure.retry) == ("idle", True)
    await asyncio.wait_for(raw.hung_up.wait(), 20)


async def test_a_drip_that_never_ends_is_a_total_time_out(spoken: Spoken) -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(head())
        while not writer.transport.is_closing():
            writer.write(chunk(b": still here\n\n"))
            await asyncio.wait({asyncio.ensure_future(reader.read(1))}, timeout=0.02)
        writer.close()

    server = await asyncio.start_server(drip, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    time_outs = TimeOuts(first_token_s=5, idle_s=5, total_s=0.3)
    async with server, speaking(spoken, url, time_outs=time_outs) as models:
        with pytest.raises(ModelFailed) as caught:
            await ask(models)
    assert (caught.value.kind, caught.value.retry) == ("total", True)


async def test_the_time_of_a_slow_reader_is_not_counted_as_silence(spoken: Spoken, raw: RawServer) -> None:
    raw.scripts = [whole(spoken.stream)]
    async with speaking(spoken, raw.url, time_outs=TimeOuts(idle_s=0.05)) as models:
        stream = models.resolve("p:m-1")[0].stream(REQUEST, message_id="r1")
        items = [await anext(stream)]
        busy = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(0.2, busy.set_result, None)
        await busy  # four idle time-outs long, in which nothing is read
        items += [item async for item in stream]
    assert isinstance(items[-1], Message)


async def test_closing_the_iterator_closes_the_connection(spoken: Spoken, raw: RawServer) -> None:
    raw.scripts = [[head(), *map(chunk, spoken.events[:4]), "stall"]]
    async with speaking(spoken, raw.url) as models:
        async with aclosing(models.resolve("p:m-1")[0].stream(REQUEST, message_id="r1")) as stream:
            await anext(stream)
        await asyncio.wait_for(raw.hung_up.wait(), 20)


async def test_cancelling_the_reader_closes_the_connection(spoken: Spoken, raw: RawServer) -> None:
    raw.scripts = [[head(), chunk(spoken.events[0]), "stall"]]
    async with speaking(spoken, raw.url) as models:
        task = asyncio.ensure_future(ask(models))
        async with asyncio.timeout(20):
            while not raw.seen:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(raw.hung_up.wait(), 20)
