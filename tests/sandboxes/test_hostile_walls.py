"""Programs that try to see or reach what is outside of their sandbox; each must fail as is written here."""

import contextlib
import json
import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from tests.sandboxes.conftest import SMALL, eventually, host_pids, python, run

from sojourn.sandboxes.bwrap import BwrapProvider
from sojourn.sandboxes.kernel import cgroups
from sojourn.sandboxes.sandbox import Limits, Sandbox, Spec

CANARY = "canary-" + uuid4().hex


async def test_nothing_of_the_environment_outside_is_inside(
    sandbox: Sandbox, provider: BwrapProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOJOURN_CANARY", CANARY)
    fresh = await provider.create(f"ses_{uuid4().hex}", SMALL)
    look = "env; cat /proc/*/environ /proc/*/cmdline /proc/*/maps 2>/dev/null | tr '\\0' '\\n'"
    for each in (sandbox, fresh):
        result = await run(each, "sh", "-c", look)
        assert "PATH=" in result.stdout
        assert CANARY not in result.stdout
        assert "sojourn" not in (await run(each, "sh", "-c", "cat /proc/*/environ")).stdout
    await fresh.destroy()


async def test_the_root_holds_what_programs_need_and_no_more(sandbox: Sandbox) -> None:
    shown = set((await run(sandbox, "ls", "-A", "/")).stdout.split())
    links = {name for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32") if Path("/", name).is_symlink()}
    assert shown == {"usr", "proc", "dev", "tmp", "run", "var", "etc", "opt", "workspace"} | links
    names = (await run(sandbox, "cat", "/etc/passwd", "/etc/group", "/etc/hosts")).stdout
    assert "sandbox:x:1000:1000" in names
    assert socket.gethostname() not in names
    for path in ("/etc/shadow", "/root", "/home", "/sys", "/opt/python/bin", "/run/dbus", "/var/run/docker.sock"):
        assert (await run(sandbox, "ls", path)).code != 0, path


async def test_a_secret_file_of_the_host_is_not_found_by_any_way(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(CANARY)
    ways = [str(tmp_path / "secret"), f"/proc/1/root{tmp_path}/secret", f"/proc/self/cwd/../../..{tmp_path}/secret"]
    for way in ways:
        assert (await run(sandbox, "cat", way)).stdout == ""


async def test_another_session_is_neither_seen_nor_reached(provider: BwrapProvider, sandbox: Sandbox) -> None:
    other = await provider.create(f"ses_{uuid4().hex}", SMALL)
    await other.write("private", CANARY.encode())
    marker = "1000.5"
    await run(other, "sh", "-c", f"sleep {marker} >/dev/null 2>&1 & echo secret > /tmp/file; echo s > /dev/shm/file")
    seen = await run(sandbox, "sh", "-c", "ls -R /workspace /tmp /dev/shm; ps ax; find / -name 'ses_*' 2>/dev/null")
    assert "private" not in seen.stdout
    assert marker not in seen.stdout
    assert other.session_id not in seen.stdout
    await other.destroy()


async def test_two_sessions_of_one_uid_cannot_touch_each_other(provider: BwrapProvider, folder_of: Callable) -> None:
    first = await provider.create(f"ses_{uuid4().hex}", SMALL)
    twin = f"ses_{uuid4().hex}"
    owner = provider.files(first.session_id)._top.stat()
    provider.files(first.session_id)._top.with_name(twin).mkdir(mode=0o700)
    if os.geteuid() == 0:
        os.chown(provider.files(twin)._top, owner.st_uid, owner.st_gid)
    second = await provider.create(twin, SMALL)
    assert provider.files(twin)._top.stat().st_uid == owner.st_uid
    stream = first.exec(["sh", "-c", "echo up; sleep 1000"], exec_id="victim")
    await anext(stream)
    attack = "import os,signal\nfor pid in range(2, 2000):\n  try: os.kill(pid, 9)\n  except ProcessLookupError: pass"
    await python(second, attack)
    await run(second, "sh", "-c", "kill -9 -1; true")
    assert await provider.attach(first.session_id) is not None
    assert "sleep 1000" in (await run(first, "ps", "ax")).stdout
    await stream.aclose()
    for each in (first, second):
        await each.destroy()


CONNECT = """
import socket, sys, json
said = {}
for name, family, address in json.loads(sys.argv[1]):
    with socket.socket(getattr(socket, family)) as door:
        door.settimeout(3)
        try:
            door.connect(tuple(address) if isinstance(address, list) else address)
            said[name] = "connected"
        except OSError as error:
            said[name] = type(error).__name__ + " " + str(error.errno)
print(json.dumps(said))
"""


async def test_no_socket_of_the_host_or_the_network_is_reached(sandbox: Sandbox, tmp_path: Path) -> None:
    with listening(tmp_path) as addresses:
        result = await python(sandbox, CONNECT.replace("sys.argv[1]", repr(json.dumps(addresses))))
    said = json.loads(result.stdout)
    assert said["loopback"] == "ConnectionRefusedError 111"
    assert said["loopback6"] in ("ConnectionRefusedError 111", "OSError 99")
    assert said["abstract"] == "ConnectionRefusedError 111"
    assert said["path"] == "FileNotFoundError 2"
    assert {said[name] for name in ("metadata", "internet")} == {"OSError 101"}
    interfaces = await run(sandbox, "cat", "/proc/net/dev")
    assert [line.split(":")[0].strip() for line in interfaces.stdout.splitlines()[2:]] == ["lo"]


@contextlib.contextmanager
def listening(folder: Path) -> Iterator[list[tuple[str, str, object]]]:
    """Sockets of the host, and addresses that a machine in a cloud could reach."""
    abstract = "\0sojourn-test-" + uuid4().hex
    path = f"/tmp/{uuid4().hex}"
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_UNIX) as one,
        socket.socket(socket.AF_UNIX) as two,
    ):
        one.bind(abstract)
        two.bind(path)
        one.listen()
        two.listen()
        try:
            yield [
                ("loopback", "AF_INET", tcp.getsockname()),
                ("loopback6", "AF_INET6", ["::1", tcp.getsockname()[1]]),
                ("abstract", "AF_UNIX", abstract),
                ("path", "AF_UNIX", path),
                ("metadata", "AF_INET", ["169.254.169.254", 80]),
                ("internet", "AF_INET", ["1.1.1.1", 53]),
            ]
        finally:
            Path(path).unlink()


async def test_signals_do_not_leave(sandbox: Sandbox) -> None:
    attack = f"import os\ntry: os.kill({os.getpid()}, 15)\nexcept ProcessLookupError: print('no such process')"
    assert (await python(sandbox, attack)).stdout == "no such process\n"
    await run(sandbox, "sh", "-c", "kill -9 1; kill -9 -1")
    assert (await run(sandbox, "echo", "alive")).stdout == "alive\n"


UNWRITABLE = [
    "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/shmmax", "/proc/sys/net/ipv4/ip_forward", "/proc/sysrq-trigger",
    "/proc/1/mem", "/proc/self/mem", "/proc/self/oom_score_adj", "/proc/1/oom_score_adj", "/proc/self/uid_map",
    "/proc/self/attr/current", "/proc/sys/user/max_user_namespaces", "/etc/passwd", "/etc/ld.so.preload",
    "/usr/bin/new", "/usr/lib/new", "/new", "/dev/new", "/run/new", "/opt/python/new", "/var/new",
    "/sys/kernel/uevent_helper",
]  # fmt: skip
WRITE = """
for path in %r:
    try:
        open(path, "r+b" if path.startswith("/proc") else "wb").write(b"1")
        print("wrote", path)
    except OSError:
        pass
"""


async def test_proc_sys_and_the_system_cannot_be_written(sandbox: Sandbox) -> None:
    result = await python(sandbox, WRITE % UNWRITABLE)
    assert (result.stdout, result.stderr, result.code) == ("", "", 0)


async def test_a_program_starts_with_nothing_it_could_misuse(sandbox: Sandbox) -> None:
    status = (await run(sandbox, "cat", "/proc/self/status", "/proc/1/status")).stdout.splitlines()
    for capability in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert [line.split()[1] for line in status if line.startswith(capability)] == ["0" * 16] * 2
    assert [line.split()[1] for line in status if line.startswith("NoNewPrivs")] == ["1", "1"]
    assert [line.split()[1] for line in status if line.startswith("Seccomp:")] == ["2", "2"]
    assert (
        await run(sandbox, "sh", "-c", "ls /proc/self/fd | sort | head -3 | xargs; ls /proc/self/fd | wc -l")
    ).stdout == "0 1 2\n4\n"
    assert (await run(sandbox, "sh", "-c", "cat /proc/$$/sessionid /proc/keys; tty; id -u")).stdout.endswith(
        "not a tty\n1000\n"
    )


async def test_a_program_is_in_the_groups_of_its_sandbox(sandbox: Sandbox, provider: BwrapProvider) -> None:
    enforced = (await provider.probe()).enforced
    if enforced["memory_bytes"].startswith("cgroup"):
        marker = uuid4().int % 10**9 + 10**9
        stream = sandbox.exec(["sh", "-c", f"echo up; exec sleep {marker}"], exec_id="grouped")
        await anext(stream)
        [pid] = await eventually(lambda: host_pids(f"sleep {marker}"))
        groups = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        ours = {line.split(f"/{cgroups.name_for(provider._folder)}/")[1] for line in groups if "/sojourn-" in line}
        assert len(ours) == 1
        limits = [path.read_text().strip() for path in memory_limits(*ours)]
        assert limits == [str(SMALL.limits.memory_bytes)]
        await stream.aclose()


def memory_limits(group: str) -> list[Path]:
    """The file with the memory limit of one sandbox's group; groups of others go while we look."""
    folders = (Path(folder) for folder, _, _ in os.walk("/sys/fs/cgroup") if folder.endswith(f"/{group}"))
    limits = (folder / name for folder in folders for name in ("memory.max", "memory.limit_in_bytes"))
    return [path for path in limits if path.exists()]


async def test_nothing_is_pushed_into_a_terminal(sandbox: Sandbox) -> None:
    program = """
import fcntl, os, pty, termios
main, other = pty.openpty()
for request in (termios.TIOCSTI, 0x541C):
    try:
        fcntl.ioctl(other, request, b"x")
        print("pushed")
    except OSError as error:
        print(error.errno)
"""
    assert (await python(sandbox, program)).stdout == "1\n1\n"


async def test_a_setuid_program_gains_nothing(sandbox: Sandbox) -> None:
    steps = "cp /usr/bin/id i; chmod 6755 i; ./i -u; ls /usr/bin/su >/dev/null && su -c id </dev/null; mknod dev b 8 0"
    result = await run(sandbox, "sh", "-c", steps)
    assert result.stdout == "1000\n"
    assert "Operation not permitted" in result.stderr


async def test_links_left_by_one_launch_make_nothing_on_the_host_in_the_next(
    provider: BwrapProvider, tmp_path: Path
) -> None:
    bait = tmp_path / "bait"
    bait.mkdir(mode=0o777)
    bait.chmod(0o777)
    sandbox = await provider.create(f"ses_{uuid4().hex}", Spec(limits=Limits(lifetime_s=1.0)))
    names = "usr etc proc dev tmp run workspace opt bin lib dev/shm etc/passwd workspace/inner"
    await run(sandbox, "sh", "-c", f"mkdir -p dev etc; for n in {names}; do ln -sfn {bait}/made $n; done; ls -l")
    await run(sandbox, "sleep", "30")
    again = await provider.create(sandbox.session_id, SMALL)
    assert again.created
    assert (await again.stat("usr")).kind == "symlink"
    assert list(bait.iterdir()) == []
    await again.destroy()


async def test_the_keepers_own_program_cannot_be_changed_through_proc(sandbox: Sandbox) -> None:
    """A program that is started as /proc/self/exe is the keeper's interpreter for a moment (CVE-2019-5736)."""
    before = {path: (path.stat().st_mode, path.stat().st_size, path.stat().st_mtime_ns) for path in interpreters()}
    attack = """
import os
for change in (lambda: os.chmod("/proc/self/exe", 0), lambda: os.open("/proc/self/exe", os.O_WRONLY | os.O_TRUNC)):
    try:
        change()
    except OSError:
        pass
"""
    await run(sandbox, "/proc/self/exe", "-c", attack)
    await sandbox.write("bait", b"#!/proc/self/exe\n" + attack.encode())
    await run(sandbox, "sh", "-c", "chmod 755 bait; exec ./bait")
    await run(sandbox, "./bait")
    assert {path: (path.stat().st_mode, path.stat().st_size, path.stat().st_mtime_ns) for path in before} == before
    assert (await run(sandbox, "true")).code == 0


def interpreters() -> list[Path]:
    return [Path(sys.executable).resolve(), Path("/usr/bin/true")]
