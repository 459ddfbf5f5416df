"""Every bench runs, in small size, and what it gives is read and told. The rule: no bench is left out."""

import math
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import msgspec
import pytest
from tests.bench.small_runs import LARGE, ROOT, run_small

from bench import __main__ as benches
from bench.figure import Figure, report, table

SMALL = [name for name in benches.names() if name not in LARGE]


@pytest.mark.parametrize("name", SMALL)
async def test_a_bench_gives_figures_and_leaves_nothing_behind(name: str, data_dir: Path) -> None:
    figures = await run_small(name, data_dir)
    assert figures
    assert all(figure.small and figure.met is None and math.isfinite(figure.median) for figure in figures)


def test_every_module_that_can_be_run_is_a_bench() -> None:
    modules = (path for path in (ROOT / "bench").glob("[a-z]*.py") if '__name__ == "__main__"' in path.read_text())
    assert benches.names() == sorted(path.stem for path in modules)
    assert set(LARGE) | set(benches.APART) < set(benches.names())


@pytest.mark.parametrize("value", [math.nan, math.inf, Decimal("1.5")])
def test_what_is_no_number_is_no_figure(value: float) -> None:
    with pytest.raises(ValueError, match=r"B1 how long: .* is no figure"):
        Figure(id="B1", what="how long", unit="s", median=value)
    with pytest.raises(ValueError, match=r"B1 how long: .* is no figure"):
        Figure(id="B1", what="how long", unit="s", median=1.0, p99=value)


def test_a_line_that_cannot_be_read_is_told_and_the_others_are_kept() -> None:
    good, bad = b'{"id":"B1","what":"how long","unit":"s","median":1}', b'{"id":"B2","what":"and","median":"1.5"}'
    figures, wrong = benches.read(b"\n".join([bad, good, b"by the way"]))
    assert [figure.id for figure in figures] == ["B1"]
    assert bad.decode() in wrong[0]
    assert wrong[1].endswith(": by the way")


def test_a_bench_that_ends_badly_or_gives_nothing_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert benches.measure("nowhere") == ([], ["it ended with 1; what it said stands above"])
    assert benches.measure("thinker") == ([], ["it gave no figure"])


def test_a_small_run_says_so_and_judges_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missed = Figure(id="B1", what="how long", unit="s", median=9.0, target="<= 1", met=False)
    assert "MISSED" in table([missed])
    monkeypatch.setattr(sys, "argv", ["bench", "--small", "--json"])
    report([missed])
    small = msgspec.json.decode(capsys.readouterr().out, type=Figure)
    assert table([small]).startswith("(a small run")
    assert "MISSED" not in table([small])
    assert benches.verdict([small], []) == "No target was judged."
    assert benches.verdict([missed], []).startswith("0 of 1 targets met.\nMissed: B1 (how long).")


def test_make_bench_tells_each_bench_as_it_ends_and_then_all_figures() -> None:
    command = [sys.executable, "-m", "bench", "--small", "snapshot"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    (progress,) = done.stderr.splitlines()
    assert progress.split()[::2][:2] == ["snapshot", "s"]
    assert progress.endswith(" ms, and 5 more")
    assert "(a small run" in done.stdout
    assert "pydantic decode" in done.stdout
