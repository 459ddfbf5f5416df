"""What every adapter of the sandbox port does; `test_conformance.py` runs it on each that this machine has."""

import asyncio
import time
from uuid import uuid4

import pytest
from tests.sandboxes.conftest import SMALL, collect, python, run

from sojourn.errors import Invalid, NotFound, SandboxUnavailable
from sojourn.sandboxes.sandbox import ExecUnknown, Isolation, Limits, Output, Provider, Sandbox, SandboxEnded, Spec

LIMITS = {"cpus", "memory_bytes", "pids", "disk_bytes", "inodes", "exec_timeout_s", "output_bytes", "lifetime_s"}


class Probing:
    async def test_the_probe_ran_a_guest_and_says_how_each_limit_is_enforced(self, provider: Provider) -> None:
        capability = await provider.probe()
        assert capability.ready, capability.reason
        assert set(capability.enforced) == LIMITS
        assert all(capability.enforced.values())

    async def test_an_isolation_that_is_not_there_is_refused(self, provider: Provider) -> None:
        stronger = Isolation((await provider.probe()).isolation + 1)
        with pytest.raises(SandboxUnavailable, match="isolate"):
            await provider.create("ses_strong", Spec(isolation=stronger))


class Living:
    async def test_create_attaches_to_the_sandbox_that_is_there(self, provider: Provider, sandbox: Sandbox) -> None:
        await run(sandbox, "sh", "-c", "echo kept > /tmp/state")
        again = await provider.create(sandbox.session_id, SMALL)
        assert (sandbox.created, again.created) == (True, False)
        assert (await run(again, "cat", "/tmp/state")).stdout == "kept\n"

    async def test_creating_at_once_makes_one(self, provider: Provider, sandbox: Sandbox) -> None:
        session_id = f"ses_{uuid4().hex}"
        made = await asyncio.gather(*(provider.create(session_id, SMALL) for _ in range(8)))
        assert sum(each.created for each in made) == 1
        await made[0].destroy()

    async def test_attach_finds_only_the_living(self, provider: Provider, sandbox: Sandbox) -> None:
        assert (await provider.attach(sandbox.session_id)) is not None
        assert (await provider.attach("ses_nobody")) is None

    async def test_destroy_ends_daemons_and_removes_files(self, provider: Provider) -> None:
        sandbox = await provider.create(f"ses_{uuid4().hex}", SMALL)
        await run(sandbox, "sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 & touch file")
        report = await sandbox.destroy()
        assert (report.processes_killed, report.processes_left, report.files_left) == (1, 0, 0)
        assert await provider.attach(sandbox.session_id) is None
        with pytest.raises(NotFound):
            await sandbox.stat("file")

    async def test_destroy_twice_is_destroy_once(self, provider: Provider) -> None:
        sandbox = await provider.create(f"ses_{uuid4().hex}", SMALL)
        await sandbox.destroy()
        assert (await sandbox.destroy()).processes_killed == 0

    async def test_a_lifetime_ends_and_the_files_stay(self, provider: Provider) -> None:
        short = Spec(limits=Limits(lifetime_s=0.5))
        sandbox = await provider.create(f"ses_{uuid4().hex}", short)
        await sandbox.write("file", b"kept")
        result = await run(sandbox, "sleep", "30")
        assert result.exit.reason == "killed"
        again = await provider.create(sandbox.session_id, SMALL)
        assert again.created
        assert await again.read("file") == b"kept"
        await again.destroy()

    async def test_reap_leaves_only_the_living(self, provider: Provider) -> None:
        kept, gone = [await provider.create(f"ses_{uuid4().hex}", SMALL) for _ in range(2)]
        assert await provider.reap(frozenset({kept.session_id})) == [gone.session_id]
        assert await provider.attach(gone.session_id) is None
        assert (await run(kept, "true")).code == 0
        await kept.destroy()

    async def test_a_name_that_is_no_name_is_refused(self, provider: Provider) -> None:
        for name in ("", "..", "a/b", "a\0", "x" * 101):
            with pytest.raises(Invalid):
                await provider.create(name, SMALL)


class Executing:
    async def test_output_comes_in_order_and_ends_with_the_exit(self, sandbox: Sandbox) -> None:
        items = [item async for item in sandbox.exec(["sh", "-c", "echo a; echo b >&2; exit 3"], exec_id="one")]
        assert [item.seq for item in items] == list(range(1, len(items) + 1))
        assert {item.stream: item.data for item in items if isinstance(item, Output)} == {
            "stdout": b"a\n",
            "stderr": b"b\n",
        }
        assert (items[-1].code, items[-1].signal, items[-1].reason) == (3, None, "exited")

    async def test_output_is_seen_while_the_program_runs(self, sandbox: Sandbox) -> None:
        program = "echo first; until [ -e go ]; do sleep 0.01; done; echo second"
        stream = sandbox.exec(["sh", "-c", program], exec_id="live")
        assert (await anext(stream)).data == b"first\n"
        await sandbox.write("go", b"")
        assert (await collect(stream)).stdout == "second\n"

    async def test_words_env_folder_and_stdin_arrive_as_given(self, sandbox: Sandbox) -> None:
        await sandbox.mkdir("sub dir")
        program = "import os,sys; print(sys.argv[1:], os.environ['A'], os.getcwd(), sys.stdin.read())"
        words = ("python3", "-c", program, "$(id)", "a b", "ü")
        result = await run(sandbox, *words, cwd="/workspace/sub dir", env={"A": "x y"}, stdin=b"in\n" * 2)
        assert result.stdout == "['$(id)', 'a b', 'ü'] x y /workspace/sub dir in\nin\n\n"

    async def test_a_large_stdin_arrives_whole(self, sandbox: Sandbox) -> None:
        assert (await run(sandbox, "wc", "-c", stdin=b"x" * (3 << 20))).stdout.strip() == str(3 << 20)

    async def test_a_program_that_is_not_there_says_so(self, sandbox: Sandbox) -> None:
        result = await run(sandbox, "no-such-program")
        assert (result.code, result.stderr) == (127, "no-such-program: No such file or directory\n")
        assert (await run(sandbox, "true", cwd="/nowhere")).code == 126

    async def test_many_that_are_not_there_leave_nothing_that_holds_the_sandbox(self, provider: Provider) -> None:
        sandbox = await provider.create(f"ses_{uuid4().hex}", SMALL)
        results = await asyncio.gather(*(run(sandbox, "no-such-program") for _ in range(60)))
        assert {(result.code, result.stderr.count("\n")) for result in results} == {(127, 1)}
        await asyncio.wait_for(sandbox.destroy(), 20)

    async def test_words_that_cannot_be_words_are_refused(self, sandbox: Sandbox) -> None:
        for argv in ([], [""], ["a\0b"], ["echo", "x" * (200 << 10)]):
            with pytest.raises(Invalid):
                await collect(sandbox.exec(argv, exec_id=uuid4().hex))

    async def test_the_same_exec_id_runs_once_and_replays_the_same(self, sandbox: Sandbox) -> None:
        argv = ["sh", "-c", "echo x >> count; wc -l < count"]
        first = [item async for item in sandbox.exec(argv, exec_id="once")]
        second = [item async for item in sandbox.exec(argv, exec_id="once")]
        assert first == second
        assert await sandbox.read("count") == b"x\n"

    async def test_many_at_once_with_one_id_start_one(self, sandbox: Sandbox) -> None:
        argv = ["sh", "-c", "echo x >> count; sleep 0.2; wc -l < count"]
        results = await asyncio.gather(*(run(sandbox, *argv, exec_id="same") for _ in range(10)))
        assert {result.stdout.strip() for result in results} == {"1"}

    async def test_leaving_early_leaves_the_program_running(self, sandbox: Sandbox) -> None:
        argv = ["sh", "-c", "echo begun; until [ -e go ]; do sleep 0.01; done; echo done"]
        stream = sandbox.exec(argv, exec_id="left")
        await anext(stream)
        await stream.aclose()
        await sandbox.write("go", b"")
        assert (await run(sandbox, *argv, exec_id="left", resume=True)).stdout == "begun\ndone\n"

    async def test_resume_starts_what_was_never_begun(self, sandbox: Sandbox) -> None:
        for _ in range(2):
            assert (
                await run(sandbox, "sh", "-c", "echo once >> log; cat log", exec_id="x", resume=True)
            ).stdout == "once\n"

    async def test_resume_in_restored_files_starts_nothing(self, provider: Provider, sandbox: Sandbox) -> None:
        there = await provider.restore(f"ses_{uuid4().hex}", await sandbox.snapshot(), SMALL)
        with pytest.raises(ExecUnknown):
            await run(there, "touch", "started", resume=True)
        with pytest.raises(NotFound):
            await there.stat("started")
        await there.destroy()

    async def test_resume_in_a_sandbox_that_was_lost_is_unknown(self, provider: Provider) -> None:
        lost = await provider.create(f"ses_{uuid4().hex}", SMALL, first=True)
        await run(lost, "true", exec_id="old")
        await lost.suspend()
        sandbox = await provider.create(lost.session_id, SMALL)
        for resume in (True, False):
            with pytest.raises(ExecUnknown):
                await run(sandbox, "true", exec_id="old", resume=resume)
        assert (await run(sandbox, "echo", "once", exec_id="new", resume=True)).stdout == "once\n"
        await sandbox.destroy()

    async def test_nothing_begins_in_a_sandbox_that_another_one_has_replaced(self, provider: Provider) -> None:
        """A request that was on its way when the files were moved must not begin what runs elsewhere since."""
        sandbox = await provider.create(f"ses_{uuid4().hex}", SMALL, first=True)
        assert await sandbox.alive()
        snapshot = await sandbox.suspend()
        assert not await sandbox.alive()
        later = await provider.restore(sandbox.session_id, snapshot, SMALL)
        assert (await later.alive(), await sandbox.alive()) == (True, False)
        for resume in (True, False):
            with pytest.raises(SandboxEnded):
                await run(sandbox, "touch", "begun", exec_id="late", resume=resume)
        assert await later.list() == []
        await later.destroy()

    async def test_kill_ends_what_asks_to_live(self, sandbox: Sandbox) -> None:
        program = "import signal,time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
        stream = sandbox.exec(["python3", "-c", program], exec_id="stubborn")
        assert (await anext(stream)).data == b"up\n"
        await sandbox.kill("stubborn")
        assert ((await collect(stream)).exit.reason) == "killed"
        await sandbox.kill("nobody")

    async def test_kill_lets_a_program_say_goodbye(self, sandbox: Sandbox) -> None:
        program = "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.01; done"
        stream = sandbox.exec(["sh", "-c", program], exec_id="polite")
        await anext(stream)
        await sandbox.kill("polite")
        result = await collect(stream)
        assert (result.stdout, result.exit.reason) == ("bye\n", "killed")

    async def test_a_timeout_ends_the_program_and_its_children(self, sandbox: Sandbox) -> None:
        program = "sleep 1000 & setsid sleep 1001 & echo up; wait"
        result = await run(sandbox, "sh", "-c", program, timeout_s=0.3)
        assert (result.stdout, result.exit.reason) == ("up\n", "timeout")
        assert result.exit.duration_s < 10
        assert "sleep 100" not in (await run(sandbox, "ps", "ax")).stdout

    async def test_daemons_live_on_after_the_program_that_started_them(self, sandbox: Sandbox) -> None:
        began = time.monotonic()
        daemon = "(until [ -e go ]; do sleep 0.01; done; echo still here; echo alive > proof) & echo started"
        result = await run(sandbox, "sh", "-c", daemon)
        assert result.stdout == "started\n"
        assert time.monotonic() - began < 10
        await sandbox.write("go", b"")
        waits = "until [ -s proof ]; do sleep 0.01; done; cat proof"
        assert (await run(sandbox, "sh", "-c", waits)).stdout == "alive\n"

    async def test_an_interpreter_keeps_its_state_between_programs(self, sandbox: Sandbox) -> None:
        """How a tool can hold a Python session: a daemon behind a unix socket, and a small client per call."""
        await sandbox.write("server.py", INTERPRETER)
        start = "setsid python3 server.py >/dev/null 2>&1 </dev/null & until [ -S /tmp/py ]; do sleep 0.01; done"
        assert (await run(sandbox, "sh", "-c", start)).code == 0
        assert (await python(sandbox, CLIENT, stdin=b"x = 20")).stdout == ""
        assert (await python(sandbox, CLIENT, stdin=b"print(x + 1)")).stdout == "21\n"

    async def test_output_beyond_the_limit_keeps_head_and_tail(self, sandbox: Sandbox) -> None:
        limit = SMALL.limits.output_bytes
        program = "import sys; [print(n) for n in range(200_000)]"
        result = await python(sandbox, program, exec_id="long")
        whole = "".join(f"{n}\n" for n in range(200_000))
        assert len(result.stdout) == limit
        assert result.stdout == whole[: limit // 2] + whole[-(limit - limit // 2) :]
        assert result.exit.truncated_bytes == len(whole) - limit
        assert await run(sandbox, "x", exec_id="long", resume=True) == result


class Filing:
    async def test_a_file_is_written_read_and_seen_inside(self, sandbox: Sandbox) -> None:
        await sandbox.write("deep/er/file", b"one")
        await sandbox.write("/workspace/deep/er/file", b"two")
        assert await sandbox.read("deep/er/file") == b"two"
        assert await sandbox.read("deep/er/file", offset=1, limit_bytes=1) == b"w"
        result = await run(sandbox, "sh", "-c", "cat deep/er/file; echo more >> deep/er/file; rm -r deep && echo gone")
        assert result.stdout == "twogone\n"

    async def test_writing_keeps_permissions(self, sandbox: Sandbox) -> None:
        await sandbox.write("tool", b"#!/bin/sh\necho one\n")
        await run(sandbox, "chmod", "755", "tool")
        await sandbox.write("tool", b"#!/bin/sh\necho two\n")
        assert (await run(sandbox, "./tool")).stdout == "two\n"

    async def test_list_and_stat_describe_without_following(self, sandbox: Sandbox) -> None:
        await sandbox.write("b/inner", b"12345")
        await sandbox.mkdir("a")
        await run(sandbox, "sh", "-c", "ln -s b link; mkfifo pipe")
        listed = {entry.path: (entry.kind, entry.size_bytes) for entry in await sandbox.list(depth=2)}
        assert {path: kind for path, (kind, _) in listed.items()} == {
            "a": "directory",
            "b": "directory",
            "link": "symlink",
            "pipe": "other",
            "b/inner": "file",
        }
        assert listed["b/inner"][1] == 5
        assert (await sandbox.stat("link")).kind == "symlink"
        assert len(await sandbox.list(depth=2, limit=3)) == 3
        assert [entry.path for entry in await sandbox.list("b")] == ["b/inner"]

    async def test_remove_takes_files_and_folders(self, sandbox: Sandbox) -> None:
        await run(sandbox, "sh", "-c", "mkdir -p d/e/f; touch d/e/f/g file; chmod 0 d/e/f")
        await sandbox.remove("file")
        await sandbox.remove("d")
        assert await sandbox.list() == []
        with pytest.raises(NotFound):
            await sandbox.remove("d")

    async def test_what_is_not_there_is_not_found(self, sandbox: Sandbox) -> None:
        for attempt in (sandbox.read("x"), sandbox.stat("x"), sandbox.list("x"), sandbox.remove("x")):
            with pytest.raises(NotFound):
                await attempt

    async def test_a_folder_is_no_file(self, sandbox: Sandbox) -> None:
        await sandbox.mkdir("d")
        for attempt in (sandbox.read("d"), sandbox.write("d", b""), sandbox.remove("."), sandbox.remove("d/..")):
            with pytest.raises(Invalid):
                await attempt


class Moving:
    async def test_a_snapshot_says_the_same_twice(self, sandbox: Sandbox) -> None:
        await run(sandbox, "sh", "-c", "mkdir d; echo a > d/a; ln -s /nowhere link; ln d/a d/b")
        first, second = await sandbox.snapshot(), await sandbox.snapshot()
        assert first == second
        assert first.digest.startswith("sha256:")

    async def test_suspend_ends_the_sandbox_and_restore_brings_its_files_back(self, provider: Provider) -> None:
        sandbox = await provider.create(f"ses_{uuid4().hex}", SMALL)
        make = (
            "echo text > file; mkdir -m 700 d; printf '#!/bin/sh\necho ran' > d/tool; chmod 750 d/tool; ln -s d/tool t"
        )
        await run(sandbox, "sh", "-c", make)
        await run(sandbox, "sh", "-c", "touch -d @1000000000 file; setsid sleep 1000 >/dev/null 2>&1 &")
        snapshot = await sandbox.suspend()
        assert await provider.attach(sandbox.session_id) is None
        back = await provider.restore(sandbox.session_id, snapshot, SMALL)
        assert back.created
        assert (await run(back, "./t")).stdout == "ran\n"
        shown = await run(back, "stat", "-c", "%n %a %u %g %Y", "file", "d/tool", "d")
        assert shown.stdout.splitlines()[0] == "file 644 1000 1000 1000000000"
        assert (await run(back, "sh", "-c", "echo more >> file; cat file")).stdout == "text\nmore\n"
        assert "sleep" not in (await run(back, "ps", "ax", "-o", "args")).stdout
        await back.destroy()

    async def test_restore_replaces_an_older_workspace(self, provider: Provider, sandbox: Sandbox) -> None:
        await sandbox.write("file", b"new")
        snapshot = await sandbox.snapshot()
        await sandbox.write("stale", b"old")
        back = await provider.restore(sandbox.session_id, snapshot, SMALL)
        assert [entry.path for entry in await back.list()] == ["file"]


class Conformance(Probing, Living, Executing, Filing, Moving):
    """All of it."""


INTERPRETER = b"""
import contextlib, io, socket
state = {}
with socket.socket(socket.AF_UNIX) as door:
    door.bind("/tmp/py")
    door.listen()
    while True:
        caller, _ = door.accept()
        with caller, caller.makefile("rw") as words, contextlib.redirect_stdout(words):
            exec(words.read(), state)
"""
CLIENT = """
import socket, sys
with socket.socket(socket.AF_UNIX) as door:
    door.connect("/tmp/py")
    door.sendall(sys.stdin.buffer.read())
    door.shutdown(socket.SHUT_WR)
    while piece := door.recv(1 << 16):
        sys.stdout.write(piece.decode())
"""
