"""`sojourn run`: give a goal to an agent and watch it work.

The rule: the answer alone goes to standard output where that is no terminal, so that `answer=$(sojourn run ...)` works;
what is said on the way goes to standard error then. The run belongs to the server: leaving never stops it.
"""

import math
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from sojourn.cli.client import Client, Refusal
from sojourn.cli.command import JSON, Command, Shell, flag
from sojourn.cli.commands.clock.times import instant, seconds
from sojourn.cli.commands.questions.approvals import limit
from sojourn.cli.commands.sessions import upload
from sojourn.cli.exits import FAILED, INTERRUPTED, OF_STATUS, OK, USAGE, Stop
from sojourn.cli.questions import Desk, headline, how
from sojourn.cli.stream import follow, look
from sojourn.cli.terminal import size
from sojourn.cli.view import View, show_summary

Json = dict[str, Any]

PICTURES = {
    "image/png": b"\x89PNG\r\n\x1a\n", "image/jpeg": b"\xff\xd8\xff", "image/gif": b"GIF8", "image/webp": b"RIFF",
}  # fmt: skip
"""How each kind of picture begins that the API takes."""
WAIT_S = 30.0
"""How long a run is waited for that comes too soon after others."""
ABOUT = """
The agent is one that you applied before (--agent), or is made up here from --model, --system and --tool.
The run goes on in the server whatever becomes of this command: Ctrl-C only leaves it, and says how to
follow or cancel it. In a terminal the text streams as it comes; where standard output is a pipe or a
file, it gets the answer alone, and the lines on the way go to standard error.

When the run asks something, you are asked right there in a terminal; elsewhere, and with --no-ask, the
command says how to answer and ends with 7.

With --at or --in the run is there at once and begins then, as if detached; cancel it before, or talk to
it, as to any other.

Where runs come faster than a rate limit lets them, it waits for up to half a minute, and says so.
"""
EXAMPLES = (
    'sojourn run "What is 17 * 23?" --model openai:gpt-5-mini',
    'sojourn run "Which month was the wettest?" --file rain.csv --model openai:gpt-5-mini --tool shell',
    'sojourn run "What is odd in this chart?" --image chart.png --model anthropic:claude-sonnet-4-5',
    'sojourn run "Review this" --agent reviewer --file patch.diff --max-steps 20',
    'sojourn run "And now in French" --agent writer --session ses_01J...',
    'id=$(sojourn run "A long job" --agent worker --limit wall_s=86400 --limit usd=2 --detach)',
    'sojourn run "Did the deploy hold?" --agent watcher --in 2h',
)


def run(args: Namespace, shell: Shell) -> int:
    """Start a run, and follow it unless told not to."""
    body = request(args)
    files = [_source(name) for name in args.file]
    if len({path.name for path in files}) < len(files):
        raise Stop("Two files have the same name, and both would stand under it in the workspace.", USAGE)
    images = [_picture(name) for name in args.image]
    client = shell.client()
    try:
        if files:
            session = args.session or client.post("/v1/sessions", {})["id"]
            for path in files:
                upload(client, session, path, path.name)
            listed = ", ".join(f"{path.name} ({size(path.stat().st_size)})" for path in files)
            body |= {"session": session, "input": f"{body['input']}\n\nFiles in the working directory: {listed}"}
        if images:
            parts = [_shown(client, data, media_type) for data, media_type in images]
            body["input"] = [{"type": "text", "text": body["input"]}, *parts]
        made = _accepted(client, body, shell)
    except KeyboardInterrupt:
        raise Stop("Interrupted; `sojourn runs` tells whether the run was accepted.", INTERRUPTED) from None
    later = args.at or args.delay
    return _detached(made, args, shell) if args.detach or later else watch(client, made, args, shell)


def request(args: Namespace) -> Json:
    """Build the body of POST /v1/runs from the flags."""
    inline = {"system": _text(args.system), "tools": [name for names in args.tool for name in names.split(",")]}
    if args.model:
        inline |= {"model": args.model[0]} if len(args.model) == 1 else {"models": args.model}
    inline = {name: value for name, value in inline.items() if value}
    if args.agent and inline:
        raise Stop("Use either --agent, or --model with --system and --tool: an agent brings its own.", USAGE)
    if not args.agent and not args.model:
        raise Stop("Say who works: --agent NAME (see `sojourn agents list`) or --model PROVIDER:MODEL.", USAGE)
    goal = sys.stdin.read() if args.goal == "-" else args.goal
    if not goal.strip():
        raise Stop("The goal is empty.", USAGE)
    body: Json = {"agent": args.agent or inline, "input": goal}
    if args.session:
        body["session"] = args.session
    limits = dict(map(limit, args.limit)) | ({"steps": args.max_steps} if args.max_steps is not None else {})
    if limits:
        body["limits"] = limits
    if args.at and args.delay:
        raise Stop("Use either --at or --in.", USAGE)
    if args.at:
        body["start_at"] = instant(args.at)
    if args.delay:
        body["delay_s"] = seconds(args.delay)
    return body


def watch(client: Client, made: Json, args: Namespace, shell: Shell) -> int:
    """Show the run until it ends or waits for somebody, and return the code for its status."""
    run_id = made["run_id"]
    screen = shell.out if shell.out.tty else shell.err
    view = View(screen)
    asks = sys.stdin is not None and sys.stdin.isatty() and shell.out.tty and not (args.no_ask or args.json)
    desk = Desk(client, run_id, screen if asks else None)

    def notice(words: str) -> None:
        shell.err.line(words, "yellow")

    if not args.json:
        screen.line(f"{run_id} in session {made['session_id']}", "dim")
    try:
        for item in follow(client, run_id, fresh=True, notice=notice):
            if not args.json:
                view.show(item)
            if desk.stuck(item):
                break
        ended = look(client, run_id, notice)
    except KeyboardInterrupt:
        screen.write("" if screen.fresh else "\n")
        shell.err.line(
            f"The run goes on. Follow it: sojourn logs -f {run_id}   Cancel it: sojourn cancel {run_id}", "bold"
        )
        return INTERRUPTED
    if args.json:
        shell.print_json(ended)
    else:
        for wait in desk.earlier:
            screen.line(headline(wait), "yellow")
            screen.line(f"  {how(wait)}")
        show_summary(screen, ended)
        if ended["status"] == "suspended":
            screen.line(f"It goes on once it is answered. Follow it: sojourn logs -f {run_id}", "dim")
        if screen is not shell.out and ended.get("output"):
            shell.out.line(ended["output"])
    return OF_STATUS.get(ended["status"], FAILED)


def _accepted(client: Client, body: Json, shell: Shell) -> Json:
    """Start the run; where a rate limit lets it begin soon, wait for it. Raises Refusal."""
    waited_s = 0.0
    while True:
        try:
            made: Json = client.post("/v1/runs", body)
        except Refusal as refusal:
            rest_s = refusal.retry_after_s or 0.0
            if refusal.error_code != "limit.rate" or not rest_s or waited_s + rest_s > WAIT_S:
                raise
            shell.err.line(f"Waiting {math.ceil(rest_s)} s. {refusal.detail}", "dim")
            time.sleep(rest_s)
            waited_s += rest_s
        else:
            return made


def _detached(made: Json, args: Namespace, shell: Shell) -> int:
    if args.json:
        shell.print_json(made)
    else:
        shell.out.line(made["run_id"])
        shell.err.line(f"Follow it: sojourn logs -f {made['run_id']}", "dim")
    return OK


def _text(given: str) -> str:
    """A text given as it is, or as @FILE."""
    if not given.startswith("@"):
        return given
    try:
        return Path(given[1:]).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise Stop(f"{given[1:]} cannot be read: {error}.", USAGE) from None


def _picture(name: str) -> tuple[bytes, str]:
    """A picture's bytes and its media type, told by how it begins."""
    try:
        data = _source(name).read_bytes()
    except OSError as error:
        raise Stop(f"{name} cannot be read: {error.strerror}.", USAGE) from None
    for media_type, beginning in PICTURES.items():
        if data.startswith(beginning):
            return data, media_type
    raise Stop(
        f"{name} is no PNG, JPEG, GIF or WebP. --file puts a file of any kind into its working directory.", USAGE
    )


def _shown(client: Client, data: bytes, media_type: str) -> Json:
    """Upload a picture, and give the part of the input that refers to it."""
    kept = client.json("POST", "/v1/blobs", body=data, headers={"Content-Type": media_type})
    return {"type": "image", "blob": kept["digest"], "media_type": media_type}


def _source(name: str) -> Path:
    path = Path(name)
    if not path.is_file():
        raise Stop(f"{name} is not a file that can be read.", USAGE)
    return path


COMMANDS = {
    "run": Command(
        "Start a run and watch it",
        run,
        flags=(
            flag("goal", metavar="GOAL", help='what to do; "-" reads it from standard input'),
            flag("--agent", metavar="NAME", help="the agent that does it"),
            flag("--model", metavar="MODEL", action="append", default=[], help="provider:model; again for a fall-back"),
            flag("--system", metavar="TEXT", default="", help="the system prompt, or @FILE that holds it"),
            flag("--tool", metavar="TOOL", action="append", default=[], help="a tool that it may use; again for more"),
            flag("--file", metavar="FILE", action="append", default=[], help="put a file into its working directory"),
            flag("--image", metavar="FILE", action="append", default=[], help="show it a picture; again for more"),
            flag("--session", metavar="SESSION", help="go on in this session, with its conversation and files"),
            flag("--max-steps", metavar="N", type=int, help="stop after so many model replies"),
            flag(
                "--limit",
                metavar="NAME=N",
                action="append",
                default=[],
                help="any other limit, such as usd=0.50, wall_s=3600 or children=10; again for more",
            ),
            flag("--no-ask", action="store_true", help="in a terminal, too, leave when the run asks something"),
            flag("--at", metavar="TIME", help="begin then, as 2027-01-31T09:00, here; or with a zone: ...+01:00"),
            flag("--in", dest="delay", metavar="TIME", help="begin after that long: 90s, 15m, 2h, 3d"),
            flag("--detach", action="store_true", help="print the run's id and leave"),
            JSON,
        ),
        about=ABOUT,
        examples=EXAMPLES,
    )
}
