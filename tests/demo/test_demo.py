"""`make demo`, whole, and what it stands on: the data, a script that knows no figure, and checks that can fail."""

import gzip
import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from demo import figures
from demo.run import EFFECTS
from sojourn.models import simulator

ROOT = Path(__file__).parent.parent.parent
DEMO = ROOT / "demo"


@pytest.fixture
def found(tmp_path: Path) -> Path:
    """A folder in which the simulated agent's commands have run, here and without any server."""
    (tmp_path / figures.DATA.name).write_bytes(figures.DATA.read_bytes())
    for rule in simulator.load(DEMO / "script.toml").rules:
        for call in rule.calls:
            assert isinstance(call.arguments, dict)
            if call.tool == "write_file":
                (tmp_path / call.arguments["path"]).write_text(call.arguments["content"])
            else:
                subprocess.run(["/bin/bash", "-c", call.arguments["command"]], cwd=tmp_path, check=True, timeout=60)
    return tmp_path


def test_the_data_is_the_file_that_its_page_names() -> None:
    page = (DEMO / "data" / "README.md").read_text()
    packed = figures.DATA.read_bytes()
    assert hashlib.sha256(packed).hexdigest() in page
    assert hashlib.sha256(gzip.decompress(packed)).hexdigest() in page


def test_the_script_knows_no_figure() -> None:
    script = (DEMO / "script.toml").read_text()
    known = figures.computed(figures.reports())
    assert not [name for name, value in known.items() if name != "records" and str(value) in script]


def test_the_commands_of_the_script_find_the_figures(found: Path) -> None:
    answer, report = json.loads((found / "figures.json").read_text()), (found / "report.md").read_text()
    assert figures.wrong(answer, report, figures.reports()) == []
    assert sorted((found / "effects.log").read_text().split()) == sorted(EFFECTS)


@pytest.mark.parametrize("name", figures.computed(figures.reports()))
def test_a_wrong_figure_is_seen(name: str) -> None:
    rows = figures.reports()
    right = {**figures.computed(rows), "damaged_percent_interval": list(figures.interval(rows))}
    report = " ".join(map(str, right.values()))
    assert figures.wrong(right, report, rows) == []
    assert figures.wrong({**right, name: "other"}, report, rows)
    assert figures.wrong({**right, "damaged_percent_interval": [9.0, 12.0]}, report, rows)
    assert figures.wrong(right, "a report without figures", rows)


def test_the_demo_holds() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "demo.run"], cwd=ROOT, env=_environ(), capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "KILL -9 of worker 1" in done.stdout
    assert "worker 2 took the run over" in done.stdout


def test_an_interrupted_demo_leaves_no_process_behind() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "demo.run"], cwd=ROOT, env=_environ(), stdout=subprocess.PIPE, text=True
    ) as demo:
        assert demo.stdout
        for line in demo.stdout:
            if "calls shell" in line:
                demo.send_signal(signal.SIGINT)
                break
        rest = demo.stdout.read()
        assert demo.wait(60) == 1
    assert "interrupted" in rest
    assert "left behind" not in rest


def _environ() -> dict[str, str]:
    """Without keys, so that the simulated model thinks."""
    return {name: value for name, value in os.environ.items() if not name.endswith("_API_KEY")}
