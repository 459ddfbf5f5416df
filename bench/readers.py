"""A thousand readers of streams, as cheap as can be: one thread, one epoll, and a look at the clock for every arrival.

`bench/stream.py` measures with them. The rule: what came is made sense of when all is over, so that the instrument
costs as little as it can of the machine that it measures.
"""

import gc
import re
import select
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Sequence

MADE = re.compile(rb'"text":"(\d+)"')
READ_BYTES_MAX = 1 << 16


class Readers:
    """One connection for each request, read until `close`."""

    def __init__(self, port: int, requests: Sequence[bytes]) -> None:
        self._came: list[tuple[int, int, bytes]] = []
        """When, on which socket, what."""
        self._closed = False
        self._sockets = [self._ask(port, request) for request in requests]
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _ask(self, port: int, request: bytes) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", port))
        connection.sendall(request)
        return connection

    def _read(self) -> None:
        gc.disable()  # what is kept here would make the instrument stop to look through it, again and again
        poll, connections = select.epoll(), {one.fileno(): one for one in self._sockets}
        for number in connections:
            poll.register(number, select.EPOLLIN)
        while not self._closed:
            for number, _ in poll.poll(0.1, len(connections)):
                self._came.append((time.monotonic_ns(), number, connections[number].recv(READ_BYTES_MAX)))
        poll.close()
        gc.enable()

    def have(self, mark: bytes) -> bool:
        """Say whether every reader has seen these bytes."""
        texts: defaultdict[int, bytes] = defaultdict(bytes)
        for _, number, data in tuple(self._came):
            texts[number] += data
        return len(texts) == len(self._sockets) and all(mark in text for text in texts.values())

    def forget(self) -> None:
        """Begin to measure."""
        self._came.clear()

    def count(self) -> int:
        """Count the events that came so far."""
        return len(self.late_ms())

    def late_ms(self) -> list[float]:
        """Say how long after it was made each event came."""
        late, tails = [], dict[int, bytes]()
        for at_ns, number, data in tuple(self._came):
            text, end = tails.pop(number, b"") + data, 0
            for made in MADE.finditer(text):
                late.append((at_ns - int(made[1])) / 1e6)
                end = made.end()
            tails[number] = text[end:]
        return late

    def close(self) -> None:
        """Hang up."""
        self._closed = True
        self._thread.join()
        for connection in self._sockets:
            connection.close()
