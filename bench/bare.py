"""The floor of a model call: the same bytes over a plain socket, from a process of its own, by nobody's client.

`bench/run.py` calls `post` in another process and compares with what the endpoint noted; perf_counter is one clock for
all processes of a machine.
"""

import socket
import time

END = b"0\r\n\r\n"


def post(port: int, body: bytes, times: int) -> list[float]:
    """Post to a thinker, one request after the other, and tell when each began."""
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: bare\r\nContent-Length: %d\r\n\r\n" % len(body)
    began: list[float] = []
    with socket.create_connection(("127.0.0.1", port)) as connection:
        for _ in range(times):
            began.append(time.perf_counter())
            connection.sendall(head)
            connection.sendall(body)
            answer = b""
            while not answer.endswith(END):
                answer = answer[-len(END) :] + (connection.recv(1 << 16) or END)
    return began
