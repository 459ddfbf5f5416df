"""CI's second look: it forgives a test that failed by chance, and nothing else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TESTS = """
import pathlib, pytest

def test_chance():
    runs = pathlib.Path("runs")
    runs.write_text(runs.read_text() + "." if runs.exists() else ".")
    assert len(runs.read_text()) not in {bad}

@pytest.mark.parametrize("n", range({many}))
def test_sound(n):
    assert {sound}
"""


def looked(folder: Path, *, bad: set[int], many: int = 1, sound: bool = True, select: str = "") -> tuple[int, int, str]:
    """Run these tests as `make test` does, and look again; both statuses, and what the second look said."""
    (folder / "test_these.py").write_text(TESTS.format(bad=bad, many=many, sound=sound))
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    env |= {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", *words]
        return subprocess.run(command, cwd=folder, env=env, text=True, capture_output=True, check=False)

    first = run("pytest", *select.split())
    again = run("scripts.again", str(first.returncode))
    return first.returncode, again.returncode, again.stdout


def test_a_test_that_failed_once_is_forgiven_and_named(tmp_path: Path) -> None:
    first, again, said = looked(tmp_path, bad={1})
    assert (first, again) == (1, 0)
    assert "FLAKY" in said and "test_these.py::test_chance" in said
    assert (tmp_path / "runs").read_text() == "." * 4


@pytest.mark.parametrize("bad", [{1, 2}, {1, 4}])
def test_it_has_to_hold_every_time(tmp_path: Path, bad: set[int]) -> None:
    assert looked(tmp_path, bad=bad)[:2] == (1, 1)


def test_many_failures_are_no_chance(tmp_path: Path) -> None:
    assert looked(tmp_path, bad={1}, many=3, sound=False)[:2] == (1, 1)
    assert (tmp_path / "runs").read_text() == "."


def test_a_run_that_was_broken_off_is_not_looked_at(tmp_path: Path) -> None:
    first, again, said = looked(tmp_path, bad={1}, select="--no-such-option")
    assert first == again == 4 and not said
