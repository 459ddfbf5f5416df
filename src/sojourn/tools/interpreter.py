"""The program behind the `python` tool. It runs inside the sandbox, never in a process of ours.

`shell.py` sends this file's source into the sandbox once per call, with the code on standard input. `main` hands the
code to an interpreter that lives as long as the sandbox, starting that one first if need be, and copies what it prints.
The rules: a time-out (SIGTERM) interrupts the code and keeps the interpreter with its variables; and where those of
earlier calls are gone with an earlier sandbox, the first call in the next one says so.

On the socket: the code, end of input; back come the interpreter's pid, the output, and four bytes of exit code.
"""

import ast
import contextlib
import os
import signal
import socket
import struct
import sys
import traceback
from typing import Any

PATH = "/tmp/.python-session"  # noqa: S108 - the sandbox's own /tmp
NUMBER = struct.Struct("<i")
INTERRUPT_S = 1


def main() -> None:
    """Run one piece of code in the lasting interpreter and exit as it says."""
    source = sys.stdin.buffer.read()
    peer = _connect()
    peer.sendall(source)
    peer.shutdown(socket.SHUT_WR)
    number = peer.recv(NUMBER.size, socket.MSG_WAITALL)
    if len(number) == NUMBER.size:
        _interrupt_on_term(*NUMBER.unpack(number))
        tail = b""
        while piece := peer.recv(65536):
            tail += piece
            os.write(1, tail[: -NUMBER.size])
            tail = tail[-NUMBER.size :]
        if len(tail) == NUMBER.size:
            sys.exit(*NUMBER.unpack(tail))
    sys.exit("The interpreter ended; its variables are gone.")


def _connect() -> socket.socket:
    peer = socket.socket(socket.AF_UNIX)
    try:
        peer.connect(PATH)
    except OSError:
        if os.environ.get("SOJOURN_RESTORED"):
            print("[the interpreter was restarted: variables and imports of earlier calls are gone]", flush=True)
        _start()
        peer.connect(PATH)
    return peer


def _start() -> None:
    """Start the interpreter as a daemon, ready to be connected to."""
    with contextlib.suppress(OSError):
        os.unlink(PATH)  # noqa: PTH108
    door = socket.socket(socket.AF_UNIX)
    door.bind(PATH)
    door.listen()
    if child := os.fork():
        os.waitpid(child, 0)
        door.close()
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    _redirect(0)
    space: dict[str, Any] = {"__name__": "__main__"}
    while True:
        _serve(door.accept()[0], space)


def _serve(peer: socket.socket, space: dict[str, Any]) -> None:
    """Run one piece of code with its output going to `peer`."""
    source = b"".join(iter(lambda: peer.recv(65536), b""))
    peer.sendall(NUMBER.pack(os.getpid()))
    _redirect(peer.fileno())
    code = _execute(source.decode(errors="replace"), space)
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    with contextlib.suppress(OSError):
        peer.sendall(NUMBER.pack(code & 0xFF))
        peer.shutdown(socket.SHUT_RDWR)  # a process that the code left behind may hold the socket open
    _redirect(0)
    peer.close()


def _execute(source: str, space: dict[str, Any]) -> int:
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        tree = ast.parse(source, "<python>")
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, "<python>", "exec"), space)  # noqa: S102 - this is what it is for
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), "<python>", "eval"), space)  # noqa: S307
            if value is not None:
                print(repr(value))
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException as error:
        trace = error.__traceback__
        traceback.print_exception(type(error), error, trace.tb_next if trace else None)
        return 1
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return 0


def _redirect(fd: int) -> None:
    """Send output to `fd`, line by line; descriptor 0 of the interpreter is /dev/null."""
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    sys.stdout = open(1, "w", buffering=1, closefd=False, errors="replace")  # noqa: SIM115
    sys.stderr = sys.stdout


def _interrupt_on_term(pid: int) -> None:
    def interrupt(*_: object) -> None:
        os.kill(pid, signal.SIGINT)
        signal.alarm(INTERRUPT_S)

    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGALRM, lambda *_: os.kill(pid, signal.SIGKILL))


if __name__ == "__main__":
    main()
