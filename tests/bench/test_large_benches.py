"""The benches of whole installations whose small runs take longest: a file of their own, which is a lane of its own."""

import math
from pathlib import Path

import pytest
from tests.bench.small_runs import LARGE, run_small


@pytest.mark.parametrize("name", LARGE)
async def test_a_bench_of_installations_gives_figures_and_leaves_nothing_behind(name: str, data_dir: Path) -> None:
    figures = await run_small(name, data_dir)
    assert figures
    assert all(figure.small and figure.met is None and math.isfinite(figure.median) for figure in figures)
