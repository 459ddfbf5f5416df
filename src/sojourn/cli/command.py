"""How a command is declared, and how its words become a parser.

The modules in commands/ declare `COMMANDS`; `main` runs one. The rule: a declaration is data next to the code that it
names, and its help teaches: what, why, every flag, examples.
"""

import argparse
import difflib
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from sojourn.cli.client import Client
from sojourn.cli.exits import MEANINGS, USAGE, Stop
from sojourn.cli.terminal import Out, json_text

SETTINGS = {
    "host": "SOJOURN_HOST",
    "port": "SOJOURN_PORT",
    "data_dir": "SOJOURN_DATA_DIR",
    "wait_database": "SOJOURN_DATABASE_WAIT_S",
}
"""The flags that stand for settings."""


class Shell(NamedTuple):
    """What a command has: the environment, its output for people and programs, and its words beside that."""

    environ: Mapping[str, str]
    out: Out
    err: Out

    def environ_for(self, args: argparse.Namespace) -> dict[str, str]:
        """The environment of a command's server side: with the flags that stand for settings, which win."""
        given = {setting: getattr(args, name, None) for name, setting in SETTINGS.items()}
        return {**self.environ, **{setting: value for setting, value in given.items() if value}}

    def client(self) -> Client:
        return Client(self.environ)

    def print_json(self, value: Any) -> None:
        """Write one JSON document on one line."""
        self.out.line(json_text(value))

    def table(self, heads: Sequence[str], rows: Sequence[Sequence[str]], *, empty: str) -> None:
        """Write a table; of one without rows, say beside it what that means and what to do."""
        self.out.table(heads, rows)
        if not rows:
            self.err.line(empty, "dim")


class Flag(NamedTuple):
    """An argument or option, as argparse takes it."""

    names: tuple[str, ...]
    options: dict[str, Any]


def flag(*names: str, **options: Any) -> Flag:
    return Flag(names, options)


JSON = flag("--json", action="store_true", help="print JSON for programs, whole, instead of text")


class Command(NamedTuple):
    """One command: a line about it, the function that does it, its flags, and what its help teaches."""

    summary: str
    run: Callable[[argparse.Namespace, Shell], int]
    flags: tuple[Flag, ...] = ()
    about: str = ""
    examples: tuple[str, ...] = ()


class Group(NamedTuple):
    """Commands under one word."""

    summary: str
    commands: dict[str, Command]


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake ends as every other: one line that says what to do."""

    def error(self, message: str) -> NoReturn:
        raise Stop(f"{message}. See `{self.prog} --help`.", USAGE)


def parser(words: str, command: Command) -> Parser:
    """Build the parser of a command that is called with `words`."""
    made = Parser(
        prog=f"sojourn {words}",
        description="\n\n".join(part for part in (command.summary + ".", command.about.strip()) if part),
        epilog=_epilog(command.examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for names, options in command.flags:
        made.add_argument(*names, **options)
    return made


def group_help(word: str, group: Group) -> str:
    """The help of a group: its commands and their examples."""
    width = max(map(len, group.commands))
    lines = [f"  {name.ljust(width)}  {command.summary}" for name, command in group.commands.items()]
    examples = [example for command in group.commands.values() for example in command.examples[:1]]
    usage = f"usage: sojourn {word} COMMAND ...\n\n{group.summary}.\n\ncommands:\n"
    return usage + "\n".join(lines) + "\n\n" + _epilog(examples)


def unknown(word: str, known: Iterable[str], *, before: str = "sojourn") -> Stop:
    """A mistyped command: what was meant, perhaps, and where all are listed."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    guess = f"Did you mean `{before} {near[0]}`?" if near else f"`{before} --help` lists them."
    return Stop(f"There is no command `{before} {word}`. {guess}", USAGE)


def exit_codes() -> str:
    """What the exit codes mean, for the end of every help."""
    words = ", ".join(f"{code} {meaning}" for code, meaning in MEANINGS.items())
    return "exit codes:\n" + textwrap.indent(textwrap.fill(words, 98), "  ")


def _epilog(examples: Iterable[str]) -> str:
    shown = "".join(f"  $ {example}\n" for example in examples)
    return (f"examples:\n{shown}\n" if shown else "") + exit_codes()
