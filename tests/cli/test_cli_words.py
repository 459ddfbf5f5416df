"""Help, mistakes, the start, and the documentation that cannot lie."""

import json
import re
import resource
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from console_script import MODULE, SCRIPT, Console
from scripted_api import ScriptedApi

from sojourn import __version__, settings
from sojourn.cli import MODULES, SECTIONS, find
from sojourn.cli.client import DEFAULT_URL, key_path
from sojourn.cli.command import Command, Group, parser
from sojourn.cli.exits import MEANINGS
from sojourn.cli.terminal import clean

PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
HEAVY = ("aiohttp", "asyncpg", "uvloop", "msgspec", "asyncio", "sojourn.settings", "sojourn.api", "sojourn.store")
START_CPU_MAX_S = 0.15


def commands() -> Iterator[tuple[str, Command]]:
    """Every command that can be typed, with its words."""
    for name in MODULES:
        found = find(name)
        if isinstance(found, Group):
            yield from ((f"{name} {inner}", command) for inner, command in found.commands.items())
        else:
            yield name, found


EVERY = dict(commands())


@pytest.mark.parametrize("words", EVERY)
async def test_help_teaches_with_examples_that_parse(sojourn: Console, words: str):
    result = await sojourn(*words.split(), "--help")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(f"usage: sojourn {words} ")
    command = EVERY[words]
    assert command.examples
    for example in command.examples:
        assert f"  $ {example}\n" in result.out
        typed = re.search(rf"sojourn {words}( [^|)]*|$)", example)
        assert typed, f"{example} does not show {words}"
        parser(words, command).parse_args(shlex.split(typed[1]))
    for code in MEANINGS:
        assert re.search(rf"\b{code} ", result.out.partition("exit codes:")[2])


@pytest.mark.parametrize("words", EVERY)
def test_the_page_has_a_section_for_the_command_with_all_its_flags(words: str):
    section = re.search(rf"^### sojourn {words}$(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert section, f"docs/cli.md has no section for sojourn {words}"
    made = parser(words, EVERY[words])
    wanted = {name for action in made._actions for name in action.option_strings} - {"-h", "--help"}
    wanted |= {action.metavar for action in made._actions if not action.option_strings}
    assert not [name for name in sorted(wanted) if f"`{name}" not in section[1]]
    documented = set(re.findall(r"`(--?[a-z][a-z-]*)", section[1]))
    assert documented <= wanted, "the page names flags that are not there"


def test_the_page_has_no_section_for_a_command_that_is_not_there():
    assert set(re.findall(r"^### sojourn (.+)$", PAGE, re.MULTILINE)) == set(EVERY)


def test_the_page_tells_the_exit_codes_and_the_environment():
    for code, meaning in MEANINGS.items():
        assert f"| {code} | {meaning}" in PAGE
    for name in ("SOJOURN_API_URL", "SOJOURN_API_KEY", "NO_COLOR", "SOJOURN_DATA_DIR", DEFAULT_URL):
        assert name in PAGE


async def test_the_first_page_lists_every_command(sojourn: Console):
    result = await sojourn("--help")
    assert result.code == 0
    for names in SECTIONS.values():
        for name in names:
            assert f"\n  {name:<10} {find(name).summary}" in result.out


@pytest.mark.parametrize("words", [name for name in MODULES if isinstance(find(name), Group)])
async def test_the_help_of_a_group_lists_its_commands(sojourn: Console, words: str):
    result = await sojourn(words, "--help")
    assert result.code == 0
    assert all(f"\n  {name} " in result.out for name in find(words).commands)
    assert (await sojourn(words)).code == 2


async def test_help_can_be_asked_for_first(sojourn: Console):
    assert (await sojourn("help", "agents", "apply")).out == (await sojourn("agents", "apply", "--help")).out


async def test_the_module_is_the_same_as_the_script(sojourn: Console):
    as_module = Console(sojourn.home, "http://127.0.0.1:1", MODULE)
    assert (await as_module("version")).out == (await sojourn("version")).out
    assert (await sojourn("--version")).out.startswith(f"sojourn {__version__} (Python ")
    assert (await sojourn("version", "--json")).json["version"] == __version__


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (("rnus",), "There is no command `sojourn rnus`. Did you mean `sojourn runs`?"),
        (("agents", "aply"), "There is no command `sojourn agents aply`. Did you mean `sojourn agents apply`?"),
        (("frobnicate",), "There is no command `sojourn frobnicate`. `sojourn --help` lists them."),
        (("get",), "the following arguments are required: RUN. See `sojourn get --help`."),
        (("runs", "--limit", "x"), "argument --limit: invalid int value: 'x'. See `sojourn runs --help`."),
        (("runs", "--statsu", "x"), "unrecognized arguments: --statsu x. See `sojourn runs --help`."),
        (("run", "goal"), "Say who works: --agent NAME (see `sojourn agents list`) or --model PROVIDER:MODEL."),
        (("run", "goal", "--agent", "a", "--tool", "shell"), "Use either --agent, or --model"),
        (("run", " ", "--agent", "a"), "The goal is empty."),
        (("run", "goal", "--agent", "a", "--file", "nowhere.csv"), "nowhere.csv is not a file that can be read."),
        (("run", "goal", "--model", "a:b", "--system", "@nowhere.md"), "nowhere.md cannot be read"),
        (("agents", "apply", "nowhere.toml"), "nowhere.toml cannot be read"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
async def test_a_mistake_is_one_line_that_says_what_to_do(sojourn: Console, typed: tuple[str, ...], said: str):
    result = await sojourn(*typed)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith(f"sojourn: {said}")
    assert result.err.count("\n") == 1


async def test_nothing_at_all_shows_the_help_and_is_wrong_usage(sojourn: Console):
    result = await sojourn()
    assert result.code == 2
    assert result.out.startswith("usage: sojourn COMMAND")


async def test_a_client_command_imports_nothing_of_the_server(sojourn: Console):
    code = f"import sys; from sojourn.cli import main; main(['runs']); print([n for n in {HEAVY} if n in sys.modules])"
    console = Console(sojourn.home, "http://127.0.0.1:1", (sys.executable, "-c", code))
    assert (await console()).out == "[]\n"


async def test_the_start_takes_less_than_150_ms_of_cpu(sojourn: Console):
    spent = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert (await sojourn("get", "run_1", SOJOURN_API_URL="http://127.0.0.1:1")).code == 3
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(spent) < START_CPU_MAX_S, spent


@pytest.mark.parametrize(
    "environ", [{}, {"XDG_DATA_HOME": "/tmp/xdg"}, {"SOJOURN_DATA_DIR": "~/here"}, {"SOJOURN_DATA_DIR": "relative"}]
)
def test_the_local_key_is_sought_where_the_server_writes_it(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch):
    for uid in (0, 1000):
        monkeypatch.setattr("os.geteuid", lambda uid=uid: uid)
        assert key_path(environ) == settings.load(environ).data_path / "local.key"


def test_cleaning_keeps_what_people_write():
    assert clean("naïve 漢字 👩‍🚀\n\tx") == "naïve 漢字 👩‍🚀\n\tx"
    assert clean("a\r\nb\x1b[1m\x9b\x00\ud800\u2066") == "a\nb␛[1m\ufffd␀\ufffd\ufffd"


def test_the_script_is_installed():
    assert Path(SCRIPT[0]).exists()


@pytest.mark.parametrize(
    ("words", "path", "told"),
    [
        ("runs", "runs", "`sojourn run` starts one"),
        ("agents list", "agents", "`sojourn agents apply FILE.toml` makes one"),
        ("sessions list", "sessions", "`sojourn run` begins one"),
        ("schedules list", "schedules", "`sojourn schedules create` makes one"),
        ("approvals", "approvals", "Nothing waits for an answer"),
        ("dead-letters", "dead_letters", "No run is in quarantine"),
        ("webhooks list", "webhooks", "`sojourn webhooks add URL` makes a webhook"),
    ],
)
async def test_a_list_without_rows_says_what_that_means(
    api: ScriptedApi, sojourn: Console, words: str, path: str, told: str
):
    api.answers[f"GET /v1/{path}"] = {"data": [], "has_more": False, "next": None}
    result = await sojourn(*words.split())
    assert result.code == 0
    assert result.out.count("\n") == 1, "the heads alone"
    assert told in result.err
    assert json.loads((await sojourn(*words.split(), "--json")).out)["data"] == []
