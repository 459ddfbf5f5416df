"""The command line of both examples: start, resume, show, decide. Each is a process that knows nothing but the file.

Alone, as `python -m examples.command_line`, it shows and decides: that needs neither the agent's code nor its SDK. Exit
codes are those of `sojourn`: 0 completed or done, 1 failed or refused, 7 waits for somebody.
"""

import argparse
import os
import sys
import uuid
from pathlib import Path

from examples.run_file import InOtherHands, Perform, RunFile, go_on, now, taken
from sojourn.errors import Unreadable
from sojourn.loop import Agent, Kept, Principal, begin, digest, events, loads, pending, phase, ref, refusal, said

DECISIONS = {  # each flag, the decision that it stands for, and where its words go
    "approve": ("approve", None),
    "reject": ("reject", "reason"),
    "edit": ("edit", "args"),
    "answer": ("answer", "text"),
    "retry": ("retry", None),
    "done": ("mark_done", "text"),
    "cancel": ("cancel", None),
}


def main(agents: tuple[Agent, ...] = (), perform: Perform | None = None) -> int:
    """Do what the command line says; the first of the agents is the one that runs."""
    given = _parser(runs=perform is not None).parse_args()
    begun = _begin(agents, given) if given.command == "start" else None
    try:
        if given.command == "show":
            return _report(RunFile(given.file, loads(given.file.read_bytes())))
        with taken(given.file, begun) as file:
            if perform is None or given.command == "decide":
                return _decide(file, given)
            go_on(file, perform)
            return _report(file)
    except (InOtherHands, Unreadable, OSError) as error:
        print(error, file=sys.stderr)
        return 1


def _begin(agents: tuple[Agent, ...], given: argparse.Namespace) -> Kept:
    first = events.Began(
        at=now(),
        run_id=f"run_{uuid.uuid4().hex}",
        tenant="local",
        session_id=str(given.file),
        principal=Principal(given.by),
        agent=ref(agents[0]),
        limits=agents[0].limits,
        message=said("goal", given.goal),
    )
    return Kept(begin(first), {digest(agent): agent for agent in agents})


def _decide(file: RunFile, given: argparse.Namespace) -> int:
    flag = next(flag for flag in DECISIONS if getattr(given, flag) not in (None, False))
    decision, words = DECISIONS[flag]
    decided = events.Decided(
        at=now(),
        wait=given.wait,
        by=given.by,
        decision=decision,
        args_digest=given.seen,
        **({words: getattr(given, flag)} if words else {}),
    )
    if refused := refusal(file.agents, file.run, decided):
        print(f"{refused.code}: {refused.detail}", file=sys.stderr)
        return 1
    file.tell(decided)
    return 0


def _report(file: RunFile) -> int:
    """Print the result, or what the run waits for."""
    for wait in pending(file.run):
        print(f"{wait.id}  {wait.kind}: {wait.title}")
        print(*(f"    {line}" for line in wait.display.splitlines()), sep="\n")
        until = f", until {wait.expires_at:%Y-%m-%d %H:%M} UTC" if wait.expires_at else ""
        print(f"    {' | '.join(wait.allowed)}{until}; seen: {wait.args_digest}")
    match phase(file.agents, file.run):
        case "completed":
            print(file.run.root.result)
            return 0
        case "failed":
            print(file.run.root.error, file=sys.stderr)
            return 1
    return 7


def _parser(*, runs: bool) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="An agent that can stop anywhere, and goes on from one file.")
    commands = parser.add_subparsers(dest="command", required=True)
    if runs:
        start = commands.add_parser("start", help="begin a run, and take it as far as it goes")
        start.add_argument("goal")
        start.add_argument("--file", type=Path, required=True, help="where the run is to be kept")
        _add_by(start)
        commands.add_parser("resume", help="go on, in this process").add_argument("file", type=Path)
    commands.add_parser("show", help="print the result, or the open questions").add_argument("file", type=Path)
    decide = commands.add_parser("decide", help="answer one question; `resume` goes on")
    decide.add_argument("file", type=Path)
    decide.add_argument("--wait", required=True, metavar="ID")
    decide.add_argument("--seen", metavar="DIGEST", help="the arguments that you saw; refused if they are others now")
    _add_by(decide)
    answer = decide.add_mutually_exclusive_group(required=True)
    for flag, (decision, words) in DECISIONS.items():
        if words:
            answer.add_argument(f"--{flag}", metavar=words.upper(), help=f"{decision}, with these words")
        else:
            answer.add_argument(f"--{flag}", action="store_true", help=decision)
    return parser


def _add_by(command: argparse.ArgumentParser) -> None:
    command.add_argument("--by", default=os.environ.get("USER", "me"), help="who you are (default: $USER)")


if __name__ == "__main__":
    sys.exit(main())
