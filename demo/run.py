"""The story of `make demo`: an agent explores a public data set, its worker is killed with -9, and the run goes on.

Nothing is needed but this repository. A simulated model thinks (demo/script.toml); the server, the database, both
workers, the sandbox, the commands and the data are real. With OPENAI_API_KEY or ANTHROPIC_API_KEY set, a real model
does the same work (SOJOURN_DEMO_MODEL names one). The rule: what the story says is checked at its end, and one failed
check is exit code 1.
"""

import json
import os
import shutil
import signal
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from demo import figures
from demo.machinery import SOJOURN, Api, Failed, Processes, environment, new_folder, survivors

HERE = Path(__file__).parent
EFFECTS = ["look", "damage", "size", "bootstrap", "report"]
MODELS = {"OPENAI_API_KEY": "openai:gpt-5-mini", "ANTHROPIC_API_KEY": "anthropic:claude-sonnet-4-5"}
SYSTEM = (
    "You are a careful data analyst. You find everything out with commands in your sandbox; you never guess a figure."
)
TOOLS = ["shell", "read_file", "write_file"]
SHOWN, WIDTH = 7, 110

Event = dict[str, Any]


class Story:
    """Says what happens, with the time since the beginning."""

    def __init__(self) -> None:
        self.began = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def say(self, text: str) -> None:
        print(f"{self.seconds:6.1f} s  {text}", flush=True)

    def quote(self, text: str, *, mark: str = " ") -> None:
        """Show a text under the last line: its beginning and its end."""
        lines = text.strip("\n").splitlines()
        shown = lines if len(lines) <= SHOWN else [*lines[: SHOWN - 3], "...", *lines[-2:]]
        for line in shown:
            print(f"          {mark} {line[:WIDTH]}", flush=True)

    def title(self, text: str) -> None:
        print(f"\n--- {text}", flush=True)


class Kill(NamedTuple):
    """The death of worker 1, as it was seen."""

    status: int
    """What its process ended with."""
    call: str
    """The tool call that was running."""


CHECKED = (
    "the run completed, on a worker that did not start it",
    "each figure of the report, computed again from the data by demo/figures.py",
    "the events of the journal: in order, none twice, each call with one result",
    "no process was left behind",
)
CHECKED_OF_THE_SCRIPT = "the command that ran while the worker died was started once and lost no line of its output"


def main() -> int:
    return stage(tell, (*CHECKED, CHECKED_OF_THE_SCRIPT) if simulated() else CHECKED)


def simulated() -> bool:
    """Whether the script thinks, for want of a key."""
    return not any(os.environ.get(key) for key in MODELS)


def stage(tell: Callable[[Story, Processes], list[str]], checked: Sequence[str]) -> int:
    """Tell a story in a temporary folder, leave nothing behind, and return the exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder = new_folder()
    story = Story()
    try:
        with Processes(folder, environment(folder / "data")) as processes:
            problems = tell(story, processes)
    except Failed as failure:
        problems = [str(failure)]
    except (KeyboardInterrupt, SystemExit):
        problems = ["interrupted"]
    problems += [f"a process was left behind: {process}" for process in survivors(folder)]
    story.title("what went wrong" if problems else "what was checked")
    for line in problems or checked:
        print(f"  {'x' if problems else 'v'} {line}")
    if problems:
        print(f"  The logs are in {folder}.")
    else:
        shutil.rmtree(folder)
    print(f"\nThe demo took {story.seconds:.1f} s and {'failed' if problems else 'held'}.", flush=True)
    return 1 if problems else 0


def tell(story: Story, processes: Processes) -> list[str]:
    """Run the whole story. Returns what did not hold."""
    model = start_model(processes) if simulated() else real_model()
    story.title(f"starting, from an empty folder ({model})")
    api = start(story, processes)
    session = api.call("POST", "/v1/sessions", {})["id"]
    api.put(session, figures.DATA.name, figures.DATA.read_bytes())
    story.say(f"session {session} holds {figures.DATA.name}, {figures.DATA.stat().st_size:,} bytes")

    story.title("the run")
    spec = {"model": model, "system": SYSTEM, "tools": TOOLS}
    goal = (HERE / "goal.md").read_text()
    run = api.call("POST", "/v1/runs", {"agent": spec, "input": goal, "session": session})["run_id"]
    story.say(f"run {run} is accepted")
    events: list[Event] = []
    kill = watch(story, processes, api, run=run, session=session, events=events)

    story.title("the report that the agent wrote")
    report = api.file(session, "report.md") or ""
    print(report)
    finished = api.call("GET", f"/v1/runs/{run}")
    show_trace(api.call("GET", f"/v1/runs/{run}/trace"))
    problems = check(api, finished, events, session=session, report=report, kill=kill)
    if simulated():
        problems += check_effects(api, events, session=session, kill=kill)
    api.call("POST", f"/v1/sessions/{session}/close")
    return problems


def start_model(processes: Processes) -> str:
    """Start the simulated model and point the server at it."""
    processes.start("model", SOJOURN, "simulate", "--port", "0", "--script", str(HERE / "script.toml"))
    processes.environ["OPENAI_BASE_URL"] = processes.said("model", "OPENAI_BASE_URL=")
    processes.environ["OPENAI_API_KEY"] = "none-needed"
    return "openai:demo-analyst"


def real_model() -> str:
    return os.environ.get("SOJOURN_DEMO_MODEL") or next(MODELS[key] for key in MODELS if os.environ.get(key))


def start(story: Story, processes: Processes) -> Api:
    """Start the API and the first worker on a new embedded database."""
    processes.start("api", SOJOURN, "serve", "--no-worker")
    url = processes.said("api", "Sojourn listens on ")
    worker = processes.start("worker-1", SOJOURN, "worker")
    story.say(f"the API listens on {url}; PostgreSQL is its own; worker 1 is process {worker}")
    key = Path(processes.environ["SOJOURN_DATA_DIR"]) / "local.key"
    return Api(url, key.read_text().strip())


def watch(story: Story, processes: Processes, api: Api, *, run: str, session: str, events: list[Event]) -> Kill | None:
    """Follow the run to its end, collect its durable events, and kill worker 1 while a command runs."""
    kill = None
    calls: dict[str, Event] = {}
    for event in api.follow(run):
        if event["type"].startswith("delta."):
            continue
        events.append(event)
        show(story, event, calls)
        if event["type"] == "run.started":
            worker = processes.start("worker-2", SOJOURN, "worker")
            story.say(f"worker 2 stands by: process {worker}")
        if kill is None and is_the_moment(event, calls):
            kill = kill_worker(story, processes, api, session=session, call=event["call"])
    return kill


def is_the_moment(event: Event, calls: dict[str, Event]) -> bool:
    """Whether a command has just begun that is worth dying for: the analysis, or a real model's third command."""
    if event["type"] != "agent.tool_started" or calls[event["call"]]["tool"] != "shell":
        return False
    if simulated():
        return "python3 analyse.py" in calls[event["call"]]["arguments"]
    return sum(call["tool"] == "shell" for call in calls.values()) >= 3


def kill_worker(story: Story, processes: Processes, api: Api, *, session: str, call: str) -> Kill:
    """Wait until the simulated agent's command is well under way, and kill the worker that reads it."""

    def progress() -> str | None:
        lines = (api.file(session, "progress.txt") or "").splitlines()
        return lines[-1] if len(lines) >= 3 else None

    seen = processes.until(progress, "the analysis to get going") if simulated() else "running"
    at, status = time.monotonic(), processes.kill("worker-1")
    story.say(f"KILL -9 of worker 1 while its command runs ({seen})")
    processes.said("worker-2", "worker.stole")
    took_s = time.monotonic() - at
    now = f"; the command went on meanwhile ({progress()})" if simulated() else ""
    story.say(f"worker 2 took the run over, {took_s:.1f} s later{now}")
    return Kill(status, call)


def show(story: Story, event: Event, calls: dict[str, Event]) -> None:
    """Tell one event in plain words."""
    match event["type"]:
        case "agent.message":
            story.say("the model says")
            story.quote(textwrap.fill(event["text"].strip(), WIDTH, replace_whitespace=False))
        case "agent.tool_use":
            calls[event["call"]] = event
            story.say(f"calls {event['tool']}")
            arguments = json.loads(event["arguments"] or "{}")
            story.quote(str(arguments.get("command") or arguments.get("path") or arguments), mark="$")
        case "agent.tool_result":
            story.say(f"{calls[event['call']]['tool']} came back{' with an error' if event.get('error') else ''}")
            story.quote(event["text"], mark="|")
        case "error":
            story.say(f"noted: {event['error']['detail']}")
        case kind if kind.startswith(("run.", "sandbox.")):
            story.say(kind)


def show_trace(trace: dict[str, Any]) -> None:
    """Print the trace: each model call and tool call with its time, and the totals."""
    print("--- the trace")
    depth: dict[str | None, int] = {None: 0}
    for span in trace["spans"]:
        depth[span["id"]] = depth[span.get("parent")] + 1
        times = [datetime.fromisoformat(span[name]) for name in ("started_at", "ended_at") if span.get(name)]
        took = f"{(times[1] - times[0]).total_seconds():8.3f} s" if len(times) == 2 else ""
        name = "  " * depth[span["id"]] + f"{span['kind']} {span['name']}"
        again = f"  attempt {span['attempt']}" if span.get("attempt", 1) > 1 else ""
        print(f"{name:<44}{took:>10}  {span['status']}{again}")
    print(f"  {json.dumps(trace['totals'])}")


def check(
    api: Api, run: dict[str, Any], events: list[Event], *, session: str, report: str, kill: Kill | None
) -> list[str]:
    """List what does not hold of any run, whoever thought."""
    problems = [] if run["status"] == "completed" else [f"the run is {run['status']}: {run['error']}"]
    if kill is None or kill.status != -signal.SIGKILL:
        problems.append("no worker was killed")
    seqs = [event["seq"] for event in events]
    page = api.call("GET", f"/v1/runs/{run['id']}/events?limit=1000")["data"]
    if seqs != sorted(seqs) or [(e["seq"], e["type"]) for e in page] != [(e["seq"], e["type"]) for e in events]:
        problems.append("the stream and the journal tell different stories")
    used = sorted(event["call"] for event in events if event["type"] == "agent.tool_use")
    returned = sorted(event["call"] for event in events if event["type"] == "agent.tool_result")
    if used != returned:
        problems.append(f"{len(used)} calls have {len(returned)} results")
    text = api.file(session, "figures.json")
    try:
        found = json.loads(text or "null")
    except ValueError:
        found = None
    if not isinstance(found, dict):
        return [*problems, "figures.json is not there, or is no JSON object"]
    return problems + figures.wrong(found, report, figures.reports())


def check_effects(api: Api, events: list[Event], *, session: str, kill: Kill | None) -> list[str]:
    """List what does not hold of the simulated run, whose commands note themselves in effects.log."""
    problems = []
    effects = (api.file(session, "effects.log") or "").split()
    print(f"  effects.log, to which each command added its name: {' '.join(effects)}")
    if sorted(effects) != sorted(EFFECTS):
        problems.append(f"the commands had the effects {effects}, and should have had {EFFECTS}")
    heard = next((event["text"] for event in events if kill and event.get("call") == kill.call and "text" in event), "")
    lines = [line for line in heard.splitlines() if line.startswith("resample")]
    if lines != [f"resample {n} of 5000" for n in range(250, 5001, 250)]:
        problems.append(f"the output of the command that was running is not whole: {len(lines)} of 20 lines")
    return problems


if __name__ == "__main__":
    sys.exit(main())
