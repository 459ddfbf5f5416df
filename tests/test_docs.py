"""The pages tell the truth: commands run, links lead somewhere, and every setting, route, event and code is described.

A fenced block that begins with ```sh run is run: all of one page in one shell, in order, in an empty home, with free
ports in place of those that the pages name. The rule: what is compared is compared in both directions.
"""

import ast
import os
import re
import signal
import socket
import subprocess
import sys
import time
import tomllib
import typing
from pathlib import Path

import msgspec
import pytest

from demo.machinery import survivors
from sojourn.api.app import served
from sojourn.api.events import kinds
from sojourn.api.http.codes import CODES
from sojourn.api.reference.openapi import document
from sojourn.identity.scopes import SCOPES
from sojourn.models.model import Failure
from sojourn.settings import Settings
from sojourn.store.sharing.rates import Limits

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("demo/**/*.md")])
RUN = re.compile(r"^```sh run\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
CELLS = re.compile(r"^\| (.*) \|$", re.MULTILINE)
CODE = re.compile(r"[a-z]+\.[a-z_]+")
UNWRITTEN = re.compile(r"\b(TODO|TBD|FIXME|XXX+|MEASURED|PLACEHOLDER|0*NN)\b|\?\?\?")
NOT_TOLD = {  # codes that never reach a caller or an operator as the end of something
    "lease.lost", "model.failed", "run.exists", "run.failed", "session.exists", "sojourn.error", "store.refused",
}  # fmt: skip


def table(page: str, heading: str) -> list[list[str]]:
    """The rows of all tables under a heading, without heads, each a list of its cells."""
    text = (ROOT / page).read_text()
    section = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert section, f"{page} has no section {heading}"
    rows = [[cell.strip() for cell in row.split(" | ")] for row in CELLS.findall(section[1])]
    return [row for row in rows if row[0].startswith("`")]


def names(rows: list[list[str]]) -> list[str]:
    return [row[0].strip("`") for row in rows]


def flat(kind: type[msgspec.Struct], prefix: str = "") -> dict[str, object]:
    """Every setting with its default, those of a group as group.name."""
    found: dict[str, object] = {}
    for field in msgspec.structs.fields(kind):
        if isinstance(field.default, msgspec.Struct) and not isinstance(field.default, Limits):
            found |= flat(type(field.default), f"{field.name}.")
        else:
            found[prefix + field.name] = field.default
    return found


def shown(default: object) -> str:
    """A default as the page writes it."""
    if default == "":
        return ""
    return f"`{int(default) if isinstance(default, float) and default.is_integer() else default}`"


def test_every_setting_is_described_with_its_default() -> None:
    tables = {"endpoints", "tools", "providers", "issuers", "prices", "windows"}
    settings = {name: shown(default) for name, default in flat(Settings).items() if name not in tables}
    told = re.findall(r"^\| `([a-z_.]+)` \|(?: (`[^`]*`))? \|", (ROOT / "docs/settings.md").read_text(), re.MULTILINE)
    assert dict(told) == settings
    assert len(told) == len(dict(told))


def test_the_example_of_a_settings_file_is_one() -> None:
    blocks = re.findall(r"^```toml\n(.*?)^```$", (ROOT / "docs/settings.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 1
    settings = msgspec.convert(tomllib.loads(blocks[0]), Settings)
    assert settings.providers["local"].tool_mode == "json_schema"


def test_every_limit_of_the_readme_is_a_setting() -> None:
    cells = [row.split(" | ") for row in CELLS.findall((ROOT / "README.md").read_text().partition("## Limits")[2])]
    told = [row[2].strip(" `") for row in cells if len(row) == 3 and row[2].strip().startswith("`")]
    known = [*flat(Settings), "sandbox_limits.*"]
    assert told
    assert not set(told) - set(known)


def test_every_event_is_described_with_its_fields() -> None:
    rows = [row for row in table("docs/api.md", "Events") if not row[0].startswith("`delta.")]
    told = {row[0].strip("`"): re.findall(r"`(\w+)`", row[2] if len(row) > 2 else "") for row in rows}
    assert told == {
        kind.__struct_config__.tag: [name for name in kind.__struct_fields__ if name not in ("seq", "at")]
        for kind in typing.get_args(kinds.Kind)
    }


def test_every_delta_is_described() -> None:
    told = [name for name in names(table("docs/api.md", "Events")) if name.startswith("delta.")]
    assert sorted(told) == sorted(kinds.DELTAS)


def test_every_scope_is_described() -> None:
    assert names(table("docs/api.md", "Scopes")) == list(SCOPES)


def test_every_code_of_an_answer_is_described_with_its_status() -> None:
    rows = [row for row in table("docs/api.md", "Errors") if row[1].isdigit()]
    assert {row[0].strip("`"): int(row[1]) for row in rows} == {code: status for code, (status, _) in CODES.items()}


def test_every_code_in_the_source_is_described() -> None:
    told = set(names(table("docs/api.md", "Errors")))
    stops = {"model.content_filter", "model.refusal"}
    made = {f"model.{kind}" for kind in typing.get_args(Failure)} | stops
    assert told == (codes_in_source() | made | set(CODES)) - NOT_TOLD


def codes_in_source() -> set[str]:
    """The codes that the source gives to errors and failures, as literals."""
    found: set[str] = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            given: list[ast.AST] = []
            match node:
                case ast.keyword(arg="code"):
                    given = [node.value]
                case ast.Call(func=ast.Name(id="Failure"), args=[first, *_]):
                    given = [first]
                case ast.Assign(targets=[ast.Name(id="code")]):
                    given = [node.value]
                case ast.Assign(targets=[ast.Tuple(elts=[ast.Name(id="code"), *_])], value=ast.Tuple(elts=[first, *_])):
                    given = [first]
            constants = [inner for one in given for inner in ast.walk(one) if isinstance(inner, ast.Constant)]
            found |= {one.value for one in constants if isinstance(one.value, str) and CODE.fullmatch(one.value)}
    return found


def test_no_page_has_a_gap_that_somebody_meant_to_fill() -> None:
    assert UNWRITTEN.search("**Measured.** MEASURED") and UNWRITTEN.search("decisions/00NN-name.md")
    gaps = [(page.name, found[0]) for page in PAGES if (found := UNWRITTEN.search(page.read_text()))]
    assert not gaps


def test_every_link_leads_somewhere() -> None:
    broken = []
    for page in PAGES:
        for target in LINK.findall(page.read_text()):
            path, _, anchor = target.partition("#")
            if not target.startswith(("https://", "mailto:")) and not (
                (page.parent / path).exists() if path else heading(anchor, page)
            ):
                broken.append(f"{page.relative_to(ROOT)} -> {target}")
    assert not broken


def heading(anchor: str, page: Path) -> bool:
    """Whether a page has the heading that an anchor names."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return anchor in {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


def test_every_target_of_the_makefile_that_a_page_names_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {word for page in PAGES for word in re.findall(r"`?\bmake ([a-z-]+)", code_of(page.read_text()))}
    assert named
    assert not named - targets


def code_of(text: str) -> str:
    """What stands in code spans and code blocks."""
    return "\n".join(re.findall(r"```.*?```|`[^`\n]+`", text, re.DOTALL))


def test_every_metric_is_described() -> None:
    source = (ROOT / "src/sojourn/api/operations/metrics.py").read_text()
    told = [name for name in names(table("docs/operate/runbook.md", "Is it well")) if name.startswith("sojourn_")]
    assert sorted(told) == sorted(set(re.findall(r'"(sojourn_\w+)"', source)))


def test_every_route_is_described() -> None:
    paths = document(served())["paths"]
    routes = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    told = names(table("docs/api.md", "Routes"))
    assert sorted(told) == sorted(routes | {"GET /openapi.json", "GET /docs"})


@pytest.mark.parametrize("page", [page for page in PAGES if RUN.search(page.read_text())], ids=lambda page: page.name)
def test_the_commands_of_a_page_run(page: Path, data_dir: Path) -> None:
    home, ports = data_dir / "home", {port: str(free_port()) for port in ("8420", "8421", "4010")}
    home.mkdir()
    data_dir.chmod(0o711)  # a page's second server has its data folder at home, which root's database must reach
    blocks = "\n".join(RUN.findall(page.read_text()))
    script = re.sub(rf"\b({'|'.join(ports)})\b", lambda found: ports[found[0]], blocks)
    environ = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(home),
        "SOJOURN_DATA_DIR": str(data_dir),
        "SOJOURN_PORT": ports["8420"],
        "SOJOURN_API_URL": f"http://127.0.0.1:{ports['8420']}",
    }
    command = ["bash", "-euxo", "pipefail", "-c", script]
    with (home / "shell.log").open("wb") as log:
        shell = subprocess.Popen(
            command, cwd=home, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    try:
        shell.wait(180)
    finally:
        os.killpg(shell.pid, signal.SIGTERM)
        deadline = time.monotonic() + 60
        while alive(shell.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        left = survivors(data_dir)
    logs = [path.read_text(errors="replace")[-4000:] for path in sorted(home.glob("*.log"))]
    assert shell.returncode == 0, "\n---\n".join(logs)
    assert not left


def alive(group: int) -> bool:
    """Whether a process group has a process."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port
