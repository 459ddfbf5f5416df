"""The lock files fit pyproject.toml, hold nothing but pins with hashes, and agree with each other.

`make lock` writes them; pip itself refuses a lock that misses what a package needs. The rule: this needs no network, so
that it says the same today and in a year.
"""

import re
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PIN = re.compile(r"^([a-z0-9-]+)==(\S+?)(?: ; .*)? \\$", re.MULTILINE)
LINE = re.compile(r"#.*|\s+# .*|[a-z0-9-]+==\S+( ; [^\\]+)? \\|    --hash=sha256:[0-9a-f]{64}( \\)?")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
GROUPS = PYPROJECT["dependency-groups"]
WANTED: dict[str, list[str]] = {
    "runtime": PYPROJECT["project"]["dependencies"],
    "dev": [
        *PYPROJECT["project"]["dependencies"],
        *PYPROJECT["project"]["optional-dependencies"]["cedar"],
        *GROUPS["dev"],
        *PYPROJECT["build-system"]["requires"],
    ],
    "examples": GROUPS["examples"],
    "local-model": GROUPS["local-model"],
}


def pins(name: str) -> dict[str, str]:
    """The locked versions of a file in requirements/."""
    return dict(PIN.findall((ROOT / "requirements" / f"{name}.txt").read_text()))


def unmet(wanted: list[str], locked: dict[str, str]) -> list[str]:
    """List the requirements that a lock does not meet."""

    def met(one: Requirement) -> bool:
        version = locked.get(canonicalize_name(one.name))
        return version is not None and one.specifier.contains(version)

    return [str(one) for one in map(Requirement, wanted) if not met(one)]


@pytest.mark.parametrize("name", WANTED)
def test_a_lock_meets_every_requirement(name: str) -> None:
    assert unmet(WANTED[name], pins(name)) == []


def test_an_unmet_requirement_is_seen() -> None:
    assert unmet(["aiohttp>=99", "msgspec", "no-such-thing"], pins("runtime")) == ["aiohttp>=99", "no-such-thing"]


def test_what_operators_install_is_what_was_tested() -> None:
    assert pins("runtime").items() <= pins("dev").items()


def test_what_the_examples_need_changes_no_version_of_ours() -> None:
    ours, theirs = pins("dev"), pins("examples")
    shared = ours.keys() & theirs.keys()
    assert shared
    assert {name: theirs[name] for name in shared} == {name: ours[name] for name in shared}


@pytest.mark.parametrize("name", WANTED)
def test_a_lock_holds_nothing_but_pins_with_hashes(name: str) -> None:
    lines = (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
    assert [line for line in lines if not LINE.fullmatch(line)] == []
    for pin, after in pairwise(lines):
        assert "==" not in pin or after.startswith("    --hash="), pin
