"""docs/frameworks.md: every command on it runs, in order and in one shell, and says what the page says."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from example_kit import OFFLINE, ROOT
from tests.test_docs import alive, free_port

import sojourn.loop

PAGE = (ROOT / "docs/frameworks.md").read_text()
COMMANDS = "\n".join(re.findall(r"^```sh run examples\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
SHOWN = "\n".join(re.findall(r"^```text\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)).splitlines()
ENDS_WELL = "trap 'code=$?; [ $code = 7 ] || exit $code' ERR\n"  # 7: the run waits
TIME_OUT_S = 300


def test_the_commands_of_the_page_run_and_say_what_it_says(tmp_path: Path) -> None:
    script = ENDS_WELL + COMMANDS.replace("4010", str(free_port())).replace("4011", str(free_port()))
    environ = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "TMPDIR": str(tmp_path),
    }
    with (tmp_path / "shell.log").open("w+") as log:
        shell = subprocess.Popen(
            ["bash", "-uo", "pipefail", "-c", script],
            cwd=ROOT,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            shell.wait(TIME_OUT_S)
        finally:
            if alive(shell.pid):
                os.killpg(shell.pid, signal.SIGKILL)
        log.seek(0)
        said = log.read()
    assert shell.returncode == 0, said
    lines = said.splitlines()
    assert not [line for line in SHOWN if line and line not in lines], said


def test_the_names_of_the_page_are_in_the_loop() -> None:
    names = set(re.findall(r"^    (?:run = )?(\w+)\(", PAGE, re.MULTILINE)) | {"due", "wake_at", "loads", "events"}
    assert names <= set(sojourn.loop.__all__)


@pytest.mark.parametrize("host", ["192.0.2.1", "example.com"])
def test_a_process_that_reaches_beyond_this_machine_is_ended(host: str) -> None:
    script = f"import socket; socket.create_connection(({host!r}, 80), timeout=1)"
    ended = subprocess.run(
        [sys.executable, "-c", script], env={"PYTHONPATH": str(OFFLINE)}, capture_output=True, check=False
    )
    assert (ended.returncode, ended.stderr.decode()) == (99, f"a connection to {host!r}\n")
