"""What the story stands on: processes that always end, and the API as anybody would call it.

The rule: processes are ended by their id, whatever happens; nothing of the product is imported, only started and asked.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from http.client import HTTPResponse
from pathlib import Path
from typing import Any, TypeVar

SOJOURN = str(Path(sys.executable).with_name("sojourn"))
T = TypeVar("T")
START_S = 60.0
STOP_S = 20.0


class Failed(Exception):
    """The story cannot go on."""


class Refused(Failed):
    """The server answered with an error; the message has its own words."""

    def __init__(self, request: str, status: int, words: str) -> None:
        super().__init__(f"{request} was answered {status}: {words}")
        self.status = status


class Processes:
    """The processes of one story, each with a log file of its own. Leaving the context ends them all."""

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        self.folder = folder
        self.environ = dict(environ)
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_: object) -> None:
        for name in reversed(list(self.running)):
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                self.running[name].send_signal(signal.SIGTERM)
                self.running[name].wait(STOP_S)
        for process in self.running.values():
            if process.poll() is None:
                process.kill()
                process.wait()

    def start(self, name: str, *command: str) -> int:
        """Start a program in a process group of its own, away from the terminal's Ctrl-C. Returns its id."""
        with self.log(name).open("ab") as log:
            self.running[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environ, process_group=0
            )
        return self.running[name].pid

    def kill(self, name: str) -> int:
        """Kill a process at once, without a chance to tidy up. Returns what it ended with."""
        process = self.running.pop(name)
        process.kill()
        return process.wait()

    def said(self, name: str, marker: str) -> str:
        """Wait until a process has written `marker`, and return the rest of that line."""

        def found() -> str | None:
            lines = self.log(name).read_text(errors="replace").splitlines()
            return next((line.partition(marker)[2].strip() for line in lines if marker in line), None)

        return self.until(found, f"{name} to say {marker!r}")

    def until(self, probe: Callable[[], T | None], what: str, *, within_s: float = START_S) -> T:
        """Wait until `probe` returns something. Raises Failed when it takes too long or a process has died."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            if (found := probe()) is not None:
                return found
            for name, process in self.running.items():
                if process.poll() is not None:
                    tail = self.log(name).read_text(errors="replace")[-2000:]
                    raise Failed(f"{name} ended with {process.returncode}:\n{tail}")
            time.sleep(0.05)
        raise Failed(f"waited {within_s:.0f} s for {what}; the logs are in {self.folder}")

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"


class Api:
    """A server and a key."""

    def __init__(self, url: str, key: str) -> None:
        self.url = url.rstrip("/")
        self.key = key

    def open(self, method: str, path: str, body: bytes | None = None, **headers: str) -> HTTPResponse:
        """Send a request and leave its answer open. Raises Refused."""
        sent = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json", **headers}
        request = urllib.request.Request(self.url + path, data=body, method=method, headers=sent)
        try:
            response: HTTPResponse = urllib.request.urlopen(request, timeout=120)
        except urllib.error.HTTPError as error:
            raise Refused(f"{method} {path}", error.code, error.read().decode(errors="replace")) from None
        return response

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Send and receive JSON."""
        with self.open(method, path, None if body is None else json.dumps(body).encode()) as response:
            return json.load(response)

    def file(self, session: str, name: str) -> str | None:
        """A file of a session as text; None while there is none."""
        try:
            with self.open("GET", f"/v1/sessions/{session}/files/{name}") as response:
                return response.read().decode()
        except Refused as refused:
            if refused.status == 404:
                return None
            raise

    def put(self, session: str, name: str, data: bytes) -> None:
        """Write a file into a session."""
        kind = {"Content-Type": "application/octet-stream"}
        self.open("PUT", f"/v1/sessions/{session}/files/{name}", data, **kind).close()

    def follow(self, run: str) -> Iterator[dict[str, Any]]:
        """Yield a run's events as the server sends them, deltas too, until the run has ended."""
        with self.open("GET", f"/v1/runs/{run}/events", Accept="text/event-stream") as stream:
            kind = ""
            for raw in stream:
                name, _, value = raw.decode().rstrip("\n").partition(": ")
                if name == "event":
                    kind = value
                elif name == "data":
                    yield {"type": kind, **json.loads(value)}


def new_folder() -> Path:
    """Make a temporary folder, through which root's database server, which is not root, may pass."""
    folder = Path(tempfile.mkdtemp(prefix="sojourn-demo-"))
    folder.chmod(0o711)
    return folder


def environment(data_dir: Path) -> dict[str, str]:
    """The environment of every process: ours, without settings that would lead to another server."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SOJOURN_")}
    return {**kept, "SOJOURN_DATA_DIR": str(data_dir), "SOJOURN_PORT": "0", "PYTHONUNBUFFERED": "1"}


def survivors(folder: Path, *, within_s: float = STOP_S) -> list[str]:
    """Wait for the processes that mention `folder` to end, and kill those that do not. Returns their command lines.

    The keeper of the sandboxes ends by itself a minute after the last sandbox; it is told not to wait.
    """
    for pid, command in _mentioning(folder).items():
        if "sojourn.sandboxes.keeper" in command:
            _signal(pid, signal.SIGTERM)
    deadline = time.monotonic() + within_s
    while (left := _mentioning(folder)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in left:
        _signal(pid, signal.SIGKILL)
    return list(left.values())


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _mentioning(folder: Path) -> dict[int, str]:
    """Process ids and command lines, of those whose command line names `folder`. Empty where there is no /proc."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            if str(folder) in command and int(entry.name) != os.getpid():
                found[int(entry.name)] = command
    return found
