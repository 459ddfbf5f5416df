"""The event parser against the standard, whatever the chunks."""

import itertools
import random
import time

import pytest

from sojourn.models.wire.sse import Event, EventParser, EventTooLarge


def parsed(stream: bytes, cuts: list[int] | None = None, *, bytes_max: int = 1 << 20) -> list[Event]:
    parser = EventParser(event_bytes_max=bytes_max)
    places = [0, *sorted(cuts or []), len(stream)]
    return [event for start, end in itertools.pairwise(places) for event in parser.feed(stream[start:end])]


def datas(stream: bytes) -> list[bytes]:
    return [event.data for event in parsed(stream)]


CASES: dict[str, tuple[bytes, list[Event]]] = {
    "one event": (b"data: a\n\n", [Event(b"", b"a")]),
    "only one space is taken off": (b"data:  a\ndata:b\n\n", [Event(b"", b" a\nb")]),
    "a name": (b"event: ping\ndata: {}\n\n", [Event(b"ping", b"{}")]),
    "a name lasts for one event": (b"event: x\ndata: 1\n\ndata: 2\n\n", [Event(b"x", b"1"), Event(b"", b"2")]),
    "a name without data is no event": (b"event: x\n\ndata: 2\n\n", [Event(b"", b"2")]),
    "comments": (b": hello\ndata: a\n:\n\n:\n\n", [Event(b"", b"a")]),
    "CRLF": (b"data: a\r\ndata: b\r\n\r\n", [Event(b"", b"a\nb")]),
    "CR": (b"data: a\rdata: b\r\r", [Event(b"", b"a\nb")]),
    "all three": (b"data: a\r\ndata: b\rdata: c\n\r\n", [Event(b"", b"a\nb\nc")]),
    "a BOM": (b"\xef\xbb\xbfdata: a\n\n", [Event(b"", b"a")]),
    "a BOM only at the start": (b"data: a\n\n\xef\xbb\xbfdata: b\n\n", [Event(b"", b"a")]),
    "id and retry": (b"id: 1\nretry: 5\ndata: a\n\n", [Event(b"", b"a")]),
    "a field without a colon": (b"data\n\n", [Event(b"", b"")]),
    "an unfinished event": (b"data: a\n\ndata: b\n", [Event(b"", b"a")]),
    "characters that only Python ends lines with": (
        "data: a\x0b\x0c\x1c\x85\u2028b\n\n".encode(),
        [Event(b"", "a\x0b\x0c\x1c\x85\u2028b".encode())],
    ),
    "nothing": (b"", []),
}


@pytest.mark.parametrize("name", CASES)
def test_a_stream_is_read_as_the_standard_says(name: str) -> None:
    stream, events = CASES[name]
    assert parsed(stream) == events
    assert parsed(stream, list(range(len(stream)))) == events


def test_chunks_may_be_cut_anywhere() -> None:
    for seed in range(500):
        dice = random.Random(seed)
        pieces = [
            b"data: x",
            b"data:",
            b"event: e",
            b":",
            b"\n",
            b"\r",
            b"\r\n",
            b"\n\n",
            b"\xff",
            b"\xef\xbb\xbf",
            b"id: 1",
        ]
        stream = b"".join(dice.choice(pieces) for _ in range(dice.randrange(40)))
        cuts = [dice.randrange(len(stream) + 1) for _ in range(dice.randrange(12))]
        assert parsed(stream, cuts) == parsed(stream), (seed, stream, cuts)


def test_whatever_is_written_is_read_back() -> None:
    for seed in range(300):
        dice = random.Random(seed)
        events = [
            Event(dice.choice([b"", b"ping"]), bytes(dice.choices(b"abc \n:\xc3\xa9{}", k=dice.randrange(1, 30))))
            for _ in range(dice.randrange(1, 8))
        ]
        end = dice.choice([b"\n", b"\r", b"\r\n"])
        written = b"".join(
            (b"event: " + event.name + end if event.name else b"")
            + b"".join(b"data: " + line + end for line in event.data.split(b"\n"))
            + end
            for event in events
        )
        assert parsed(written, [dice.randrange(len(written)) for _ in range(20)]) == events


@pytest.mark.parametrize("cuts", [[], list(range(200))])
@pytest.mark.parametrize("stream", [b"data: " + b"x" * 100, b"data: 1\n" * 13, b"event: " + b"x" * 100 + b"\n\n"])
def test_an_event_beyond_the_bound_is_refused(stream: bytes, cuts: list[int]) -> None:
    with pytest.raises(EventTooLarge):
        parsed(stream, [cut for cut in cuts if cut < len(stream)], bytes_max=90)


def test_the_bound_is_for_one_event_and_not_for_the_stream() -> None:
    stream = b": beat\n" * 100 + b"data: 1\n\n" * 100
    assert len(parsed(stream, list(range(len(stream))), bytes_max=20)) == 100


def test_a_large_event_in_tiny_chunks_takes_linear_time() -> None:
    parser = EventParser()
    began = time.process_time()
    for _ in range(1_000_000):
        parser.feed(b"x")
    assert parser.feed(b"\n\n") == []
    assert time.process_time() - began < 20  # one second; quadratic time would copy half a terabyte
