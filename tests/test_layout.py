"""The shape of the code, checked: the direction of imports between rooms, the sizes, the words, the purity of the loop.

The rule: a rule here is a function from one parsed file to what is wrong in it, and every rule is shown a file that
breaks it, so that none can be asleep.
"""

import ast
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
CODE = ("src", "tests", "bench", "demo", "examples")

# From the bottom up. Rooms of one line do not import each other; a room imports only from lines above its own.
LINES = (
    {"errors"},
    {"loop"},
    {"store"},
    {"models", "sandboxes", "identity", "guardrails"},
    {"settings", "logs"},
    {"tools"},
    {"api", "worker", "evals"},
    {"wiring"},
    {"doctor"},
    {"cli"},
)
HEIGHT = {room: height for height, line in enumerate(LINES) for room in line}

FUNCTION_LINES_MAX = 60
FILE_LINES_MAX = 400
ROOM_FILES_MAX = 10
PARAMETERS_MAX = 5
POSITIONAL_MAX = 4
WORDLESS = {"utils", "util", "common", "helpers", "helper", "base", "manager", "core", "misc", "shared"}

LOOP_MAY_IMPORT = {
    "base64", "collections", "contextlib", "dataclasses", "datetime", "enum", "fnmatch", "functools", "hashlib",
    "itertools", "json", "math", "msgspec", "operator", "re", "sojourn", "string", "types", "typing", "unicodedata",
}  # fmt: skip
IMPURE_CALLS = {"open", "print", "input", "now", "utcnow", "today", "exec", "eval", "__import__", "breakpoint"}
SQL = re.compile(
    r"^\s*(select\s.+\sfrom\s|select\s+\w+\(|insert\s+into\s|update\s+\S+\s+set\s|delete\s+from\s|truncate\s|listen\s|notify\s|"
    r"with\s+\w+\s+as\s*\(|(create|alter|drop)\s+(table|index|role|schema|function|policy|database)\s|grant\s.+\son\s|"
    r"set\s+(local\s+)?role\s)",
    re.IGNORECASE | re.DOTALL,
)
# A port says everything that its adapters need; the reason stands beside each exception.
MANY_PARAMETERS = {
    ("sandboxes", "exec"): "a process has an id, a folder, an environment, an input and a time-out",
}


class File(NamedTuple):
    """One Python file of ours; `path` is relative to the repository."""

    path: PurePosixPath
    text: str
    tree: ast.Module

    @property
    def package(self) -> tuple[str, ...]:
        """The path below src/sojourn, () for any other file."""
        return self.path.parts[2:] if self.path.parts[:2] == ("src", "sojourn") else ()

    @property
    def room(self) -> str | None:
        return self.package[0].removesuffix(".py") if self.package else None


class Problem(NamedTuple):
    path: PurePosixPath
    line: int
    what: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.what}"


Rule = Callable[[File], Iterator[tuple[int, str]]]


def parse(path: str | PurePosixPath, text: str) -> File:
    return File(PurePosixPath(path), text, ast.parse(text))


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def imported(file: File, node: ast.AST) -> list[str]:
    """The absolute names of the modules that an import statement may load."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        if node.level:
            here = ("sojourn", *file.package)
            start = ".".join(here[: len(here) - node.level])
            module = f"{start}.{node.module}" if node.module else start
        else:
            module = node.module or ""
        return [module, *(f"{module}.{alias.name}" for alias in node.names)]
    return []


def imports_point_down(file: File) -> Iterator[tuple[int, str]]:
    if file.room in (None, "__init__"):
        return
    if file.room not in HEIGHT:
        yield 1, f"the room {file.room} stands in no line of the architecture"
        return
    for node in ast.walk(file.tree):
        rooms = {name.split(".")[1] for name in imported(file, node) if name.startswith("sojourn.")}
        for room in (rooms & HEIGHT.keys()) - {file.room}:
            if HEIGHT[room] >= HEIGHT[file.room]:
                yield node.lineno, f"{file.room} may not import {room}"


def imports_stand_at_the_top(file: File) -> Iterator[tuple[int, str]]:
    for function in functions(file.tree):
        for node in ast.walk(function):
            if isinstance(node, ast.Import | ast.ImportFrom):
                yield node.lineno, f"an import inside {function.name}()"


def the_loop_is_pure(file: File) -> Iterator[tuple[int, str]]:
    if file.room != "loop":
        return
    for node in ast.walk(file.tree):
        for name in imported(file, node):
            if name.split(".")[0] not in LOOP_MAY_IMPORT:
                yield node.lineno, f"loop/ may not import {name}"
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in IMPURE_CALLS:
                yield node.lineno, f"loop/ may not call {called}()"
        if isinstance(node, ast.AsyncFunctionDef | ast.Await):
            yield node.lineno, "loop/ waits for nothing"


def sql_lives_in_the_store(file: File) -> Iterator[tuple[int, str]]:
    if not file.package or file.room == "store":
        return
    for node in ast.walk(file.tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and SQL.match(node.value):
            yield node.lineno, f"SQL outside store/: {node.value.strip()[:40]!r}"


def functions_are_short(file: File) -> Iterator[tuple[int, str]]:
    for function in functions(file.tree):
        length = (function.end_lineno or 0) - function.lineno + 1
        if length > FUNCTION_LINES_MAX:
            yield function.lineno, f"{function.name}() has {length} lines, more than {FUNCTION_LINES_MAX}"


def files_are_short(file: File) -> Iterator[tuple[int, str]]:
    length = len(file.text.splitlines())
    if length > FILE_LINES_MAX:
        yield length, f"{length} lines, more than {FILE_LINES_MAX}"


def parameters_are_few(file: File) -> Iterator[tuple[int, str]]:
    if not file.package:
        return
    for function in functions(file.tree):
        taken = [arg.arg for arg in function.args.posonlyargs + function.args.args]
        positional = len(taken) - (taken[:1] in (["self"], ["cls"]))
        total = positional + len(function.args.kwonlyargs)
        if total > PARAMETERS_MAX and (file.room, function.name) not in MANY_PARAMETERS:
            yield function.lineno, f"{function.name}() has {total} parameters, more than {PARAMETERS_MAX}"
        if positional > POSITIONAL_MAX:
            yield function.lineno, f"{function.name}() takes {positional} by position; make them keyword-only"


def modules_say_what_they_are(file: File) -> Iterator[tuple[int, str]]:
    if file.text.strip() and not ast.get_docstring(file.tree):
        yield 1, "no module docstring"


def names_say_something(file: File) -> Iterator[tuple[int, str]]:
    for part in (*file.path.parts[:-1], file.path.stem):
        if part in WORDLESS:
            yield 1, f"{part!r} names nothing; name the noun that lives there"


RULES: dict[Rule, tuple[str, str]] = {
    # each rule with a file that breaks it
    imports_point_down: ("src/sojourn/store/runs.py", "from sojourn.worker import drive"),
    imports_stand_at_the_top: ("src/sojourn/api/app.py", "def handler():\n    import json\n    return json"),
    the_loop_is_pure: ("src/sojourn/loop/machine.py", "from datetime import datetime\nat = datetime.now()"),
    sql_lives_in_the_store: ("src/sojourn/api/app.py", 'query = f"SELECT id FROM runs WHERE id = {1}"'),
    functions_are_short: ("src/sojourn/api/app.py", "def long():\n" + "    pass\n" * 60),
    files_are_short: ("src/sojourn/api/app.py", "x = 1\n" * 401),
    parameters_are_few: ("src/sojourn/api/app.py", "def f(a, b, *, c, d, e, f): ..."),
    modules_say_what_they_are: ("src/sojourn/api/app.py", "x = 1"),
    names_say_something: ("src/sojourn/api/utils.py", '"""Odds and ends."""'),
}
MORE_VIOLATIONS: list[tuple[Rule, str, str]] = [
    (imports_point_down, "src/sojourn/api/app.py", "from sojourn import worker"),
    (imports_point_down, "src/sojourn/models/model.py", "import sojourn.sandboxes.sandbox"),
    (imports_point_down, "src/sojourn/loop/machine.py", "from ..store import runs"),
    (imports_point_down, "src/sojourn/errors.py", "from sojourn.loop.budget import Limits"),
    (imports_point_down, "src/sojourn/billing/bill.py", '"""A room that nobody drew."""'),
    (the_loop_is_pure, "src/sojourn/loop/machine.py", "import random"),
    (the_loop_is_pure, "src/sojourn/loop/machine.py", "from os import environ"),
    (the_loop_is_pure, "src/sojourn/loop/machine.py", "async def f(): ..."),
    (sql_lives_in_the_store, "src/sojourn/worker/drive.py", "query = 'update runs set rev = 2'"),
    (sql_lives_in_the_store, "src/sojourn/cli/doctor.py", "query = 'select version()'"),
    (parameters_are_few, "src/sojourn/api/app.py", "def f(a, b, c, d, e): ..."),
    (
        imports_stand_at_the_top,
        "src/sojourn/api/app.py",
        "class A:\n    async def f(self):\n        from json import loads",
    ),
]


def ours() -> list[File]:
    paths = sorted(path for folder in CODE for path in (ROOT / folder).rglob("*.py"))
    return [parse(path.relative_to(ROOT).as_posix(), path.read_text()) for path in paths]


def rooms_that_are_too_full(files: Mapping[PurePosixPath, object] | list[PurePosixPath]) -> list[str]:
    """Folders of the product with more than ten modules, besides __init__ and __main__."""
    modules = [path for path in files if path.parts[0] == "src" and path.stem not in ("__init__", "__main__")]
    folders = {path.parent for path in modules}
    counts = {folder: sum(path.parent == folder for path in modules) for folder in sorted(folders)}
    return [f"{folder} has {n} files, more than {ROOM_FILES_MAX}" for folder, n in counts.items() if n > ROOM_FILES_MAX]


@pytest.fixture(scope="module")
def files() -> list[File]:
    found = ours()
    assert len([file for file in found if file.room == "loop"]) > 5, "the product is not where this test looks"
    return found


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_code_keeps_the_rule(rule: Rule, files: list[File]) -> None:
    problems = [str(Problem(file.path, line, what)) for file in files for line, what in rule(file)]
    assert not problems, "\n" + "\n".join(problems)


@pytest.mark.parametrize(
    ("rule", "path", "text"),
    [*((rule, path, text) for rule, (path, text) in RULES.items()), *MORE_VIOLATIONS],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_the_rule_sees_a_violation(rule: Rule, path: str, text: str) -> None:
    assert list(rule(parse(path, text)))


def test_no_room_has_more_than_ten_files(files: list[File]) -> None:
    assert not rooms_that_are_too_full([file.path for file in files])


def test_a_room_of_eleven_files_is_seen() -> None:
    assert rooms_that_are_too_full([PurePosixPath(f"src/sojourn/api/part{n}.py") for n in range(11)])


def test_the_loop_may_import_the_standard_library_only_where_it_is_pure() -> None:
    assert LOOP_MAY_IMPORT - {"msgspec", "sojourn"} <= sys.stdlib_module_names
    assert not LOOP_MAY_IMPORT & {"time", "random", "secrets", "uuid", "os", "asyncio", "socket", "pathlib", "logging"}
