"""The harness of `make bench-peers`: a small product is measured whole, one that fails says why, the page is right."""

import sys
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest
from tests.conftest import until

from bench.peers import __main__ as peers
from bench.peers import chart, model, page, peer
from bench.peers.figures import ROWS, Figure, Outcome, Report, ratio
from bench.peers.measures import Sizes
from bench.peers.peer import Peer, PeerFailed
from bench.peers.verbs import Kind, Place

TINY = Sizes(
    first=3,
    single=1,
    many=4,
    one_step=4,
    waiting=3,
    decisions=2,
    killed=3,
    takeover_s=20,
    settle_s=20,
    streams=1,
    queued=3,
    small=1,
    small_s=20,
    wait_s=30,
)
SVG = "{http://www.w3.org/2000/svg}"


async def test_a_product_is_measured_whole_and_another_that_fails_stops_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(model, "TICKS", 10)
    outcome = await peers.run([f"tests.bench.products.{name}" for name in ("fake", "broken", "lame")], TINY)
    fake, broken, lame = outcome.reports
    found = fake.figures
    assert found.keys() == {row.key for row in ROWS} - {"restart"}, found
    assert [key for key, figure in found.items() if figure.value is None] == [], found
    assert found["takeover"].note == "", "it went on where it was"
    assert 0 < found["asked"].value < 5000  # type: ignore[operator]
    assert found["cpu"].value >= found["cpu_database"].value >= 0  # type: ignore[operator]

    assert "no licence" in broken.failed
    assert broken.figures == {}

    assert lame.figures["asked"].value
    assert "nobody may be asked" in lame.figures["memory"].note
    assert lame.figures["takeover"].note == "it has no notion of it"

    peers.write(outcome, tmp_path)
    text = (tmp_path / "peers.md").read_text()
    assert "broken could not be measured: RuntimeError: a process of Broken ended" in text
    assert "- Lame, B4 (decision to the model's next request): failed: RuntimeError: nobody may be asked." in text
    assert msgspec.json.decode((tmp_path / "peers.json").read_bytes(), type=Outcome) == outcome
    ElementTree.parse(tmp_path / "peers.svg")


async def test_a_product_that_hangs_is_given_up_and_leaves_no_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    place = Place(folder=str(tmp_path), model_url="http://127.0.0.1:1", database_url="")
    hung = await Peer.start(Path(sys.executable), "tests.bench.products.hung", place)
    log = tmp_path / "worker.log"
    await until(lambda: log.exists() and log.read_text() != "")
    monkeypatch.setattr(peer, "ANSWER_S", 0.1)
    with pytest.raises(PeerFailed, match="said nothing"):
        await hung.ready()
    await hung.stop()
    await until(lambda: not Path(f"/proc/{log.read_text().strip()}").exists())


OURS = Report(
    name="ours",
    product="Ours",
    setup="Two\nprocesses.",
    versions={"ours": "1"},
    figures={"asked": Figure(value=5.0, p99=9.0), "steps": Figure(value=400.0), "takeover": Figure(value=0.5)},
)
OTHER = Report(
    name="other",
    product="Other & Co",
    notes="- Other is another.",
    figures={
        "asked": Figure(value=50.0),
        "steps": Figure(value=800.0),
        "takeover": Figure(more_than=75.0, note="0 of 3 | went\non"),
        "delta": Figure(note="streams nothing"),
        "small": Figure(note="failed: out of time"),
    },
)
GONE = Report(name="gone", failed="its venv\ncannot be made")


def cells(key: str, *reports: Report) -> list[str]:
    """The cells of a row, without its words."""
    what = next(row.what for row in ROWS if row.key == key)
    (line,) = [line for line in page.table(reports).splitlines() if f"| {what} |" in line]
    return [cell.strip() for cell in line.split("|")[4:-1]]


def test_the_table_tells_a_figure_and_how_much_worse_it_is() -> None:
    assert cells("asked", OURS, OTHER) == ["5", "50 (10x)"]


def test_more_steps_a_second_are_better() -> None:
    assert cells("steps", OURS, OTHER) == ["400", "800 (0.5x)"]


def test_what_ran_out_of_time_is_told_as_a_bound() -> None:
    assert cells("takeover", OURS, OTHER) == ["0.5", "> 75 (> 150x)"]


def test_what_was_not_measured_has_no_number() -> None:
    assert cells("delta", OURS, OTHER) == ["-", "-"]
    assert cells("small", OURS, OTHER) == ["-", "failed"]


def test_a_product_that_failed_has_a_line_and_no_column() -> None:
    text = page.table([OURS, GONE, OTHER])
    assert "Gone" not in text
    assert text.endswith("gone could not be measured: its venv cannot be made")
    assert cells("asked", OURS, GONE, OTHER) == ["5", "50 (10x)"]


def test_no_ratio_is_made_of_nothing() -> None:
    row = ROWS[0]
    assert ratio(row, Figure(value=3.0), None) is None
    assert ratio(row, Figure(value=3.0), Figure(value=0.0)) is None
    assert ratio(row, Figure(value=0.0), Figure(value=3.0)) is None


def told(load: float) -> Outcome:
    """What a run found on a machine of two cores."""
    sizes, reports = msgspec.to_builtins(Sizes()), (OURS, GONE, OTHER)
    return Outcome(at="now", machine="m", load=load, cores=2, database="d", sizes=sizes, reports=reports)


def test_a_page_from_a_busy_machine_says_so() -> None:
    assert "busy" not in page.write(told(load=0.4))
    assert "busy" in page.write(told(load=0.6))


def test_the_page_says_how_and_what_is_not_comparable() -> None:
    text = page.write(told(load=0.1))
    assert "- **Ours**: Two processes. Versions: ours 1." in text
    assert "- Other is another." in text
    assert "- Other & Co, B6 (piece of a reply to its reader): streams nothing." in text
    assert "0 of 3 / went on" in text
    assert "900 runs of one reply" in text


def test_the_chart_has_a_dot_for_each_ratio_and_an_arrow_for_each_bound() -> None:
    root = ElementTree.fromstring(chart.draw([OURS, GONE, OTHER]))
    dots, bounds = (
        [float(path.get("d", "").split()[0][1:]) for path in root.iter(f"{SVG}path") if path.get("class") == kind]
        for kind in ("dot", "bound")
    )
    (one,) = [float(line.get("x1", "")) for line in root.iter(f"{SVG}line") if line.get("class") == "one"]
    assert dots[0] > one > dots[1], "ten times slower is on the right, twice as fast on the left"
    assert len(dots) == 2
    assert len(bounds) == 1
    words = "".join(root.itertext())
    assert "Other & Co" in words
    assert "0.1x" in words


def test_a_chart_of_nothing_is_still_a_chart() -> None:
    ElementTree.fromstring(chart.draw([OURS]))


def test_every_kind_of_run_has_a_reply_in_the_script() -> None:
    named = {rule.when.model for rule in model.SCRIPT.rules} - {None}
    assert named <= set(Kind.__args__)
