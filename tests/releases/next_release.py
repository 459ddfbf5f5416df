"""The next release, made of this one: a copy of the package that knows one thing more, run by processes of its own.

It has a migration more, and a kind of event more: a message that says just "cheer" is a Cheered, which counts in the
snapshot. Runs that were cheered at need its level; all others are as both releases write them. The rule: every edit
must fit the source that it changes, so a change of ours that it would miss fails the tests.
"""

import shutil
from pathlib import Path

import sojourn

EDITS = {
    "__init__.py": (('__version__ = "', '__version__ = "99.'),),
    "loop/moving/levels.py": (
        ("LEVEL: Final = 6", "LEVEL: Final = 7"),
        (
            "    match value:",
            "    if type(value).__name__ == 'Cheered' or getattr(value, 'cheers', 0) > 0:\n        return 7\n"
            "    match value:",
        ),
    ),
    "loop/events.py": (
        (
            "Event = (",
            "class Cheered(Plain, frozen=True, kw_only=True, tag='cheered'):\n    at: datetime\n\n\n"
            "Event = (\n    Cheered |",
        ),
    ),
    "loop/continuation.py": (
        (
            "    lineage: Lineage | None = None\n    root: Frame\n",
            "    lineage: Lineage | None = None\n    cheers: int = 0\n    root: Frame\n",
        ),
    ),
    "loop/machine.py": (
        (
            "        case ev.Turned() | ev.Noted() | ev.Asked():",
            "        case ev.Cheered():\n            return replace(continuation, cheers=continuation.cheers + 1)\n"
            "        case ev.Turned() | ev.Noted() | ev.Asked():",
        ),
    ),
    "api/runs/routes.py": (
        (
            "from sojourn.loop.events import Cancelled, Said\n",
            "from sojourn.loop.events import Cancelled, Cheered, Said\n",
        ),
        (
            "Said(at=ask.parts.now(), message=message, interrupt=ask.body.interrupt, taints=ask.body.taints)",
            "Cheered(at=ask.parts.now()) if message.text == 'cheer' else Said(at=ask.parts.now(), message=message)",
        ),
    ),
}
MIGRATION = """-- What the next release adds.
alter table run add column cheers integer not null default 0;
"""


def next_release(folder: Path) -> dict[str, str]:
    """Make the next release in a folder; what to add to the environment of its processes."""
    package = folder / "next" / "sojourn"
    shutil.copytree(Path(sojourn.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    for name, edits in EDITS.items():
        source = (package / name).read_text()
        for old, new in edits:
            assert source.count(old) == 1, f"the next release no longer knows how to change {name}: {old}"
            source = source.replace(old, new)
        (package / name).write_text(source)
    migrations = package / "store" / "migrations"
    (migrations / f"{len(list(migrations.glob('*.sql'))) + 1:04}_cheers.sql").write_text(MIGRATION)
    return {"PYTHONPATH": str(package.parent)}
