"""The simulation of tenants over several databases: what it counts, and that its page shows what it says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from scripts.cells import PLACEMENTS, World, fair, simulate

PAGE = Path(__file__).parents[1] / "docs/operate/cells.md"
SMALL = World(cores=16, tenants=120, demand=9_000, days=1)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_what_arrives_is_served_or_waits(placement: str) -> None:
    outcome = simulate(SMALL, 4, placement)
    assert outcome.asked == pytest.approx(outcome.served + outcome.waiting)


def test_a_cell_that_is_asked_for_too_much_serves_what_it_can_and_no_more() -> None:
    flooded = World(cores=1, tenants=50, demand=5_000, days=1)
    outcome = simulate(flooded, 1, "by name")
    assert outcome.served == pytest.approx(1 * 1150 * 86_400)
    assert outcome.late > 0.5


def test_whoever_asks_for_little_does_not_wait_for_those_who_ask_for_much() -> None:
    assert fair([1, 1000, 2, 1000], room=103, most=1000) == [1, 50, 2, 50]
    assert fair([1, 1000], room=101, most=50) == [1, 50]
    assert fair([1, 2], room=100, most=100) == [1, 2]


def test_placing_by_load_or_moving_later_keeps_the_fullest_cell_emptier_than_a_hash() -> None:
    by_name, moved, by_load, _ = (simulate(SMALL, 8, placement) for placement in PLACEMENTS)
    assert by_load.fullest_mean < by_name.fullest_mean
    assert moved.moves_a_day > 0 and moved.fullest_mean < by_name.fullest_mean


def test_the_same_seed_gives_the_same_days() -> None:
    assert simulate(SMALL, 4, "by load") == simulate(SMALL, 4, "by load")


def test_the_page_shows_what_the_script_prints() -> None:
    shown = re.search(r"<!-- python -m scripts\.cells -->\n(.*?)\n<!-- end -->", PAGE.read_text(), re.DOTALL)
    printed = subprocess.run([sys.executable, "-m", "scripts.cells"], capture_output=True, text=True, check=True).stdout
    assert shown and shown[1] == printed.strip()
