"""Starts the keeper of a data folder, once: `python -m sojourn.sandboxes.keeper FOLDER`.

`bwrap.py` runs it and waits for it to end: with 0 when a keeper listens (this one or another), else with 1 and the
reason on stderr. The rule: the file lock decides who is the keeper, and the kernel gives it back when the keeper dies.
"""

import argparse
import asyncio
import contextlib
import fcntl
import gc
import logging
import os
import platform
import socket
import sys
import time
from pathlib import Path

from sojourn.errors import SandboxUnavailable
from sojourn.sandboxes.keeper import protocol
from sojourn.sandboxes.keeper.server import Keeper, Machine
from sojourn.sandboxes.kernel import calls, cgroups, filter, tree
from sojourn.sandboxes.start import stage
from sojourn.sandboxes.start.bubblewrap import find
from sojourn.sandboxes.start.forking import Forker

_START_S = 20.0
_BACKLOG = 128
_READY = "ready\n"
_LINE = "%(asctime)s %(levelname)s %(message)s session=%(session)s"


def main() -> int:
    parser = argparse.ArgumentParser(prog="sojourn.sandboxes.keeper")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bwrap", type=Path)
    parser.add_argument("--idle-s", type=float, default=60.0)
    parser.add_argument("--rest-s", type=float, default=60.0)
    parser.add_argument("--no-cgroups", action="store_true")
    arguments = parser.parse_args()
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # uvloop leaves a starter's pipes open, and would wait for us to end
    _leave_own_executable()
    os.umask(0o022)
    os.chdir(arguments.folder)
    Path().chmod(0o700)
    lock = os.open(protocol.LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if not _taken(lock):
        return 0
    heard, say = os.pipe()
    if os.fork():
        os.close(say)
        with os.fdopen(heard) as words:
            said = words.read()
        sys.stderr.write(said.removesuffix(_READY))
        return 0 if said.endswith(_READY) else 1
    os.setsid()
    try:
        machine, listener = _prepare(arguments)
    except (SandboxUnavailable, OSError) as error:
        os.write(say, f"{error}\n".encode())
        return 1
    _detach()
    os.write(say, _READY.encode())
    os.close(say)
    try:
        asyncio.run(_serve(machine, listener, arguments.idle_s))
    finally:
        Path(protocol.SOCKET).unlink(missing_ok=True)
        machine.cgroups.close()
    return 0


async def _serve(machine: Machine, listener: socket.socket, idle_s: float) -> None:
    keeper = Keeper(machine, idle_s=idle_s)
    gc.collect()
    gc.freeze()
    server = await asyncio.start_unix_server(keeper.serve, sock=listener, backlog=_BACKLOG)
    async with server:
        await _sweep()
        await keeper.until_idle()
        server.close()
    await keeper.close()


async def _sweep() -> None:
    """Finish what a keeper that was killed had begun to remove; what a restore is filling is left to it."""
    for entry in Path(protocol.TRASH).iterdir():
        with contextlib.suppress(OSError), tree.held(entry):
            for _ in tree.remove(entry):
                await asyncio.sleep(0)


def _prepare(arguments: argparse.Namespace) -> tuple[Machine, socket.socket]:
    """Everything that can fail, done before anybody is told that a keeper is here."""
    architecture = filter.machine()
    if architecture is None:
        raise SandboxUnavailable(f"there is no system call filter for {platform.machine()}, so no sandbox")
    binary, version = find(arguments.bwrap)
    for name in (protocol.WORKSPACES, protocol.TRASH, protocol.BEGUN):
        Path(name).mkdir(mode=0o700, exist_ok=True)
        tree.spread(Path(name))
    if os.geteuid() == 0:
        Path(protocol.WORKSPACES).chmod(0o711)
    here = Path.cwd()
    groups = cgroups.Cgroups() if arguments.no_cgroups else cgroups.find(cgroups.name_for(here))
    groups.remove_leftovers()
    Path(protocol.LOG).unlink(missing_ok=True)
    stage.leave_host()
    calls.prctl(calls.PR_SET_CHILD_SUBREAPER, 1)  # a porter's programs are ours when it dies
    forker = Forker(Path(protocol.LOG))
    built = stage.prepare(binary, workspaces=here / protocol.WORKSPACES, skeleton=here / "root")
    Path(protocol.SOCKET).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(protocol.SOCKET)
    Path(protocol.SOCKET).chmod(0o600)
    listener.listen(_BACKLOG)
    listener.setblocking(False)
    return Machine(built, forker, groups, architecture, version, arguments.rest_s), listener


def _taken(lock: int) -> bool:
    """Become the keeper; False when another one listens already."""
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.connect(protocol.SOCKET)
            return False
        time.sleep(0.02)
    raise SystemExit(f"another keeper holds {protocol.LOCK} and does not listen")


def _detach() -> None:
    """Leave the starter's descriptors; say what happens in the log file."""
    log = os.open(protocol.LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    null = os.open(os.devnull, os.O_RDWR)
    for target, source in enumerate((null, log, log)):
        os.dup2(source, target)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(_LINE, defaults={"session": "-"}))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def _leave_own_executable() -> None:
    """Run from a sealed copy of the interpreter when its file belongs to the uid that workloads get.

    A program that is started as /proc/self/exe is, for a moment, this interpreter seen through the host's own mount:
    it could then be opened, and changed for everybody, from inside (CVE-2019-5736).
    """
    executable = Path("/proc/self/exe")
    uid = os.geteuid()
    if uid == 0 or executable.stat().st_uid != uid or str(executable.readlink()).startswith("/memfd:"):
        return
    copy = os.memfd_create("keeper", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with executable.open("rb") as original:
        while os.sendfile(copy, original.fileno(), None, 1 << 30):
            pass
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    fcntl.fcntl(copy, fcntl.F_ADD_SEALS, seals)
    env = os.environ | {"LD_LIBRARY_PATH": f"{sys.base_prefix}/lib"}
    os.execve(copy, [sys.executable, *sys.orig_argv[1:]], env)  # noqa: S606


if __name__ == "__main__":
    sys.exit(main())
