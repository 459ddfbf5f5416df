"""Runs that are worth moving: three levels deep, and with a question of every kind; and their exports, by a known key.

`python -m tests.loop.exported_runs` writes the golden files. They are written once for each version of the format, and
never again: what an older release exported must load for ever.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from msgspec.structs import replace
from tests.loop.run_kit import T0, Run, call

from sojourn.identity import seal
from sojourn.loop import events as ev
from sojourn.loop.agent import Agent, Suspend, Tool, digest, ref
from sojourn.loop.budget import Limits
from sojourn.loop.continuation import FORMAT, VERSION, Continuation, Principal, Wait
from sojourn.loop.machine import begin
from sojourn.loop.messages import File, Image, Native, Reasoning, Source, Text, Usage, said
from sojourn.loop.moving import document
from sojourn.loop.moving.adoption import Home
from sojourn.loop.policy import Asking, Condition, Policy, Rule
from sojourn.loop.step.waits import ALLOWED

FIXTURES = Path(__file__).parents[1] / "fixtures"
SECRET = bytes(range(32))
ISSUER = seal.issuer(SECRET)
PICTURE, WORKSPACE = b"\x89PNG\r\n\x1a\n and so on", b"files of the session"

LOOK = Tool(name="look", effect="read")
WIRE = Tool(name="wire", effect="idempotent", schema='{"type":"object","properties":{"to":{"type":"string"}}}')
ASKS = Policy(rules=(Rule("wire", "ask", ask=Asking(need=2, expires_s=3600.0, approvers=("boss*", "ann"))),))


def agent(name: str, *tools: Tool, **more: object) -> Agent:
    return Agent(name=name, models=("sim:one", "sim:two"), tools=(LOOK, *tools), **more)  # type: ignore[arg-type]


def starts(sub: Agent) -> Tool:
    return Tool(name=sub.name, effect="read", executor="agent", agent=digest(sub))


class Tree(Run):
    """A run of any agents."""

    def __init__(self, root: Agent, *below: Agent, limits: Limits | None = None) -> None:
        super().__init__(limits=limits)
        self.agents = {digest(one): one for one in (root, *below)}
        self.state = begin(
            ev.Began(
                at=T0,
                run_id="run_1",
                tenant="t",
                session_id="ses_1",
                principal=Principal("u", "key_1"),
                agent=ref(root),
                limits=limits or Limits(usd_micros=5_000_000),
                message=said("in", "go", Image(blob_name(PICTURE), "image/png")),
            )
        )


def nested() -> Tree:
    """Three levels: an approval with one of two votes at the bottom, one at the top, and words to be heard."""
    leaf = agent("leaf", WIRE, policy=ASKS)
    middle = agent("middle", starts(leaf))
    run = Tree(agent("top", starts(middle), WIRE, policy=ASKS), middle, leaf)
    native = Native("anthropic", '{"type":"server_tool_use","id":"x","input":{"q":1.50,"__class__":"os.system"}}')
    thought = Reasoning("hm", signature="c2lnbmVk==", redacted="b3BhcXVl")
    source = Source("anthropic", "anthropic", "one", "resp_1")
    odd = '{"to":"b\\u0000","sum":1e400,"n":' + "9" * 400 + "}"
    wanted = call("middle", '{"input":"find it"}'), call("wire", odd), call("look"), call("look", '{"x":"\\ud800"}')
    words = Text("I ask around.")
    run.reply(thought, native, words, *wanted, source=source, usage=Usage(input=9, output=4))
    run.announce()
    run.returned("/0.2", "NUL \0, bidi \u202e, a flag \U0001f1e9\U0001f1ea, \u2028 and \x7f")
    run.reply(call("leaf", '{"input":"deeper"}'), frame="/0.0")
    run.reply(call("wire", '{"to":"a"}'), frame="/0.0/0.0")
    run.decide("/0.0/0.0/0.0?0", "approve")
    run.tell(ev.Said(at=run.at(), message=said("u2", "hurry", File(blob_name(WORKSPACE), "text/plain", "notes.txt"))))
    assert run.phase == "suspended", run.phase
    return run


def every_wait() -> Tree:
    """A question of every kind at once."""
    turns = agent("turns", suspend=Suspend(every_turns=1))
    seconds = agent("seconds", suspend=Suspend(after_active_s=0.5))
    poor = agent("poor", limits=Limits(steps=1, on_exhaust="suspend"))
    dizzy = agent("dizzy")
    others = (
        Tool(name="hand", executor="client"),
        Tool(name="connect", executor="client"),
        Tool(name="ask_user", effect="read", executor="person"),
        Tool(name="wait_for", effect="read", executor="event"),
        Tool(name="sleep", effect="read", executor="clock"),
        Tool(name="pay"),
    )
    policy = Policy(rules=(Rule("wire", "ask", when=(Condition(argument="sum", at_least=10.0, one_of=(1.5, 20)),)),))
    root = agent("root", WIRE, *others, *map(starts, (turns, seconds, poor, dizzy)), policy=policy)
    run = Tree(root, turns, seconds, poor, dizzy)
    run.reply(
        call("wire", '{"sum":20}'),
        call("hand"),
        call("connect"),
        call("ask_user", '{"question":"Which one?"}'),
        call("wait_for", '{"name":"paid","timeout_s":60}'),
        call("sleep", '{"seconds":86400}'),
        call("pay"),
        *(call(name, '{"input":"go"}') for name in ("turns", "seconds", "poor", "dizzy")),
    )
    run.announce()
    run.tell(ev.CallLost(at=run.at(), call="/0.6", attempt=1))
    for frame in ("/0.7", "/0.8", "/0.9"):
        once(run, frame, 0)
    for step in range(6):
        once(run, "/0.10", step)
    calls = tuple(replace(one, wait=as_auth(one.wait)) if one.tool.name == "connect" else one for one in run.root.calls)
    run.state = replace(run.state, root=replace(run.root, calls=calls))
    run.tell(ev.Signalled(at=run.at(), signal=ev.Signal(id="sig_1", name="shipped", data='{"n":1}')))
    run.tell(ev.Paused(at=run.at(), by="ann", reason="a look"))
    assert run.phase == "suspended", run.phase
    return run


def as_auth(wait: Wait | None) -> Wait | None:
    """No tool asks for consent yet; its kind stands in the format."""
    return wait and replace(wait, kind="auth", allowed=ALLOWED["auth"])


def once(run: Tree, frame: str, step: int) -> None:
    """One step of a sub-agent, the same each time."""
    run.reply(call("look"), frame=frame)
    run.announce()
    run.returned(f"{frame}/{step}.0", "the same")


def ended() -> Tree:
    """A run that failed with a call in flight."""
    run = Tree(agent("one", WIRE))
    run.reply(call("look"))
    run.announce()
    run.returned("/0.0", "seen")
    run.reply(call("wire"), call("look"))
    run.announce()
    run.returned("/1.1", "seen too")
    run.tell(ev.GaveUp(at=run.at(), error=ev.Failure("run.not_driven", "nobody could")))
    assert run.phase == "failed"
    return run


RUNS = {"nested": nested, "waits": every_wait, "ended": ended}


# ---- exports ---------------------------------------------------------------------------------


def blob_name(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


BLOBS = {blob_name(data): document.blob_text(data) for data in (PICTURE, WORKSPACE)}


def export(continuation: Continuation, agents: Mapping[str, Agent], *, workspace: bool = True) -> document.Export:
    """An export by the known key, still unsigned."""
    needed = document.referred(continuation, blob_name(WORKSPACE) if workspace else None)
    return document.Export(
        format=FORMAT,
        version=VERSION,
        exported_at=T0,
        issuer=ISSUER,
        continuation=continuation,
        agents={name: agents[name] for name in document.pinned(continuation, agents)},
        workspace=blob_name(WORKSPACE) if workspace else None,
        blobs={name: BLOBS[name] for name in needed},
        sig="",
    )


def sealed(made: document.Export, secret: bytes = SECRET) -> bytes:
    return document.sealed(made, lambda data: seal.sign(secret, data))


def exported(run: Run, **more: bool) -> bytes:
    """The bytes of a run's export."""
    return sealed(export(run.state, run.agents, **more))


def home(run_id: str = "run_2", **fields: object) -> Home:
    """A place for a run that moves."""
    made = Home(at=T0, run_id=run_id, tenant="t2", session_id="ses_2", principal=Principal("v", "key_2"))
    return replace(made, **fields)


def main() -> None:
    for name, make in RUNS.items():
        (FIXTURES / f"continuation-v{VERSION}-{name}.json").write_bytes(exported(make()) + b"\n")


if __name__ == "__main__":
    main()
