"""Tools that nobody runs: a call of one is a question to a person, to the world or to the clock.

The loop opens the wait when the call is allowed; these say what the model may ask for. The rule: while one waits, the
run holds nothing.
"""

from typing import Annotated

from msgspec import Meta

from sojourn.loop.agent import Executor, Tool
from sojourn.tools.tool import Arguments, Context, Outcome, schema


class Question(Arguments, frozen=True):
    question: Annotated[str, Meta(description="What you want to know.", min_length=1, max_length=4000)]
    choices: Annotated[list[str], Meta(description="The answers to choose from, if there are any.", max_length=20)] = []


class Awaited(Arguments, frozen=True):
    name: Annotated[str, Meta(description="The name of the event.", min_length=1, max_length=200)]
    timeout_s: Annotated[float, Meta(description="How many seconds at most.", ge=0)] | None = None


class Pause(Arguments, frozen=True):
    seconds: Annotated[float, Meta(description="How long.", ge=0, le=31_622_400)] | None = None
    until: Annotated[str, Meta(description="Or until when: ISO 8601 with the zone.")] | None = None


class Waiting:
    """A tool whose calls wait for somebody else than a worker."""

    def __init__(self, name: str, description: str, arguments: type[Arguments], executor: Executor) -> None:
        self.definition = Tool(
            name=name, description=description, schema=schema(arguments), effect="read", executor=executor
        )

    async def run(self, args: str, context: Context) -> Outcome:
        return Outcome("A worker cannot answer this.", failed=True)

    async def stop(self, context: Context) -> None:
        return None


ASK_USER = Waiting("ask_user", "Ask the user a question and wait for the answer.", Question, "person")
WAIT_FOR_EVENT = Waiting("wait_for_event", "Wait until something happens outside, and read what.", Awaited, "event")
SLEEP = Waiting("sleep", "Wait for some time, or until a time.", Pause, "clock")
