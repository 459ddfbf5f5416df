"""The real `sojourn` as a process of its own, with pipes or in a terminal."""

import asyncio
import codecs
import fcntl
import json
import os
import pty
import struct
import sys
import termios
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TIMEOUT_S = 60.0
SCRIPT = (str(Path(sys.executable).parent / "sojourn"),)
MODULE = (sys.executable, "-m", "sojourn.cli")


@dataclass
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        """The JSON lines of standard output."""
        return [json.loads(line) for line in self.out.splitlines()]


class Running:
    """A command that is going on; `text` is what its terminal or its two pipes have shown so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.text = ""
        self._read_all = asyncio.Event()
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def take(self, piece: bytes) -> None:
        """Add what it wrote; a character may come in two pieces, and a terminal ends its lines with CR LF."""
        self.text = (self.text + self._decoder.decode(piece)).replace("\r\n", "\n")

    @property
    def ended(self) -> bool:
        """Whether it has gone, and all that it wrote is read."""
        return self._read_all.is_set()

    async def shows(self, words: str) -> None:
        """Wait until it has shown these words."""
        await until(lambda: words in self.text or self.ended, lambda: f"{words!r} not in {self.text!r}")
        assert words in self.text, f"it ended without {words!r}: {self.text!r}"

    async def shows_more_than(self, chars: int) -> None:
        """Wait until it has shown more than so many characters in all."""
        await until(lambda: len(self.text) > chars, lambda: f"no more than {self.text!r}")

    async def end(self) -> int:
        """Wait for its exit code, and for the last of its output."""
        async with asyncio.timeout(TIMEOUT_S):
            await self._read_all.wait()
            return await self.process.wait()


class Console:
    """Starts commands with an environment that holds nothing but what a test gives."""

    def __init__(self, home: Path, url: str, command: tuple[str, ...] = SCRIPT) -> None:
        self.home = home
        self.command = command
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "SOJOURN_DATA_DIR": str(home / "data"),
            "SOJOURN_API_URL": url,
            "SOJOURN_API_KEY": "sk_test",
            "TERM": "xterm-256color",
            "PYTHONWARNINGS": "error",
        }

    async def __call__(self, *args: str, stdin: bytes = b"", **env: str | None) -> Result:
        """Run a command to its end, with pipes."""
        process = await asyncio.create_subprocess_exec(
            *self.command, *args, stdin=-1, stdout=-1, stderr=-1, env=self._env(env)
        )
        async with asyncio.timeout(TIMEOUT_S):
            out, err = await process.communicate(stdin)
        return Result(process.returncode or 0, out.decode(), err.decode())

    @asynccontextmanager
    async def in_terminal(self, *args: str, columns: int = 100, **env: str | None) -> AsyncIterator["Terminal"]:
        """Run a command in a terminal of its own."""
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
        process = await asyncio.create_subprocess_exec(
            *self.command, *args, stdin=slave, stdout=slave, stderr=slave, env=self._env(env),
            preexec_fn=lambda: os.login_tty(slave),
        )  # fmt: skip
        os.close(slave)
        terminal = Terminal(process, master)
        try:
            yield terminal
        finally:
            await terminal.close()

    @asynccontextmanager
    async def with_pipes(self, *args: str, **env: str | None) -> AsyncIterator[Running]:
        """Run a command whose output, both kinds, goes into one pipe that is read as it comes."""
        process = await asyncio.create_subprocess_exec(
            *self.command, *args, stdin=asyncio.subprocess.DEVNULL, stdout=-1, stderr=-2, env=self._env(env)
        )
        running = Running(process)

        async def read() -> None:
            assert process.stdout
            while piece := await process.stdout.read(1 << 16):
                running.take(piece)
            running._read_all.set()

        reading = asyncio.ensure_future(read())
        try:
            yield running
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
            await reading

    def _env(self, changes: dict[str, str | None]) -> dict[str, str]:
        return {name: value for name, value in {**self.env, **changes}.items() if value is not None}


class Terminal(Running):
    """A command in a pseudo-terminal: what it wrote, byte for byte, and the keys that a person presses."""

    def __init__(self, process: asyncio.subprocess.Process, master: int) -> None:
        super().__init__(process)
        self._master = master
        asyncio.get_running_loop().add_reader(master, self._read)

    def _read(self) -> None:
        try:
            piece = os.read(self._master, 1 << 16)
        except OSError:  # EIO: the last writer has gone
            piece = b""
        self.take(piece)
        if not piece:
            asyncio.get_running_loop().remove_reader(self._master)
            self._read_all.set()

    def press(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    async def close(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
            await self.end()
        asyncio.get_running_loop().remove_reader(self._master)
        os.close(self._master)


async def until(condition: Callable[[], Any], why: Callable[[], str] = lambda: "it did not come true") -> None:
    """Wait until a condition holds, and fail when it does not in time."""
    try:
        async with asyncio.timeout(TIMEOUT_S):
            while not condition():  # noqa: ASYNC110 (what we wait for happens in other processes)
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(why()) from None


def operators(data_dir: Path, url: str = "http://127.0.0.1:1", **env: str) -> Console:
    """A console on the machine of a server: with its data folder, and the key that lies there."""
    made = Console(data_dir, url)
    del made.env["SOJOURN_API_KEY"], made.env["PYTHONWARNINGS"]
    made.env |= {"SOJOURN_DATA_DIR": str(data_dir), **env}
    return made
