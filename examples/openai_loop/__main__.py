"""A plain loop on the official OpenAI SDK that stops for approvals and goes on in another process, exactly.

    OPENAI_BASE_URL, OPENAI_API_KEY     the model; `sojourn simulate --script examples/openai_loop/model.toml` is one
    invoices.csv                        what it reads
    payments.csv, audit.txt             what it does, each once and only after a yes

The agents and what may be done with which tool are data; below them stand the two things that the world must do:
ask a model, run a tool. The rest is `sojourn.loop`, and a file.
"""

import json
import sys
from pathlib import Path
from typing import Any

import openai

from examples.command_line import main
from examples.run_file import RunFile, now
from sojourn.loop import (
    Agent,
    CallModel,
    CallTool,
    Effect,
    Failure,
    Message,
    Native,
    Policy,
    Rule,
    Text,
    Tool,
    ToolCall,
    ToolResult,
    Usage,
    digest,
    events,
)

# ---- who works here, and what they may do ----------------------------------------------------


def schema(**properties: str) -> str:
    """The JSON Schema of arguments that are all needed."""
    types = {name: {"type": kind} for name, kind in properties.items()}
    return json.dumps({"type": "object", "properties": types, "required": list(types), "additionalProperties": False})


AUDITOR = Agent(
    name="auditor",
    models=("gpt-5-mini",),
    system="You are the auditor. Write what you think of the payments, and publish it.",
    tools=(Tool(name="publish", description="Publish an audit.", schema=schema(text="string"), effect="idempotent"),),
    policy=Policy(otherwise="ask"),
)
BOOKKEEPER = Agent(
    name="bookkeeper",
    models=("gpt-5-mini",),
    system="You are the bookkeeper. Pay what is due, and have it audited.",
    tools=(
        Tool(name="list_invoices", description="Read all invoices.", schema=schema(), effect="read"),
        # How pay() may be tried again is not said: it runs at most once, and a person is asked when nobody knows.
        Tool(name="pay", description="Pay an invoice.", schema=schema(invoice="string", eur="number")),
        Tool(name="audit", schema=schema(input="string"), executor="agent", agent=digest(AUDITOR)),
    ),
    policy=Policy(rules=(Rule("pay", "ask"),)),
)


def list_invoices(key: str) -> str:
    return Path("invoices.csv").read_text()


def pay(key: str, invoice: str, eur: float) -> str:
    with Path("payments.csv").open("a") as payments:
        payments.write(f"{key},{invoice},{eur}\n")  # a bank takes the key, too, and pays only once for it
    return f"Paid {invoice}: {eur} EUR."


def publish(key: str, text: str) -> str:
    Path("audit.txt").write_text(text)
    return "Published."


TOOLS = {function.__name__: function for function in (list_invoices, pay, publish)}

# ---- what the world must do ------------------------------------------------------------------

STOPS = {"stop": "end", "tool_calls": "tool_calls", "length": "length", "content_filter": "content_filter"}
LATER = (openai.APIConnectionError, openai.RateLimitError, openai.InternalServerError)


def perform(effect: Effect, file: RunFile) -> events.Event:
    return ask_model(effect, file.agents[effect.agent]) if isinstance(effect, CallModel) else run_tool(effect)


def run_tool(effect: CallTool) -> events.Event:
    try:
        return effect.returned(now(), TOOLS[effect.tool](effect.key, **json.loads(effect.args)))
    except Exception as error:  # whatever it is, the model reads it
        return effect.returned(now(), f"{type(error).__name__}: {error}", failed=True)


def ask_model(effect: CallModel, agent: Agent) -> events.Event:
    try:
        with openai.OpenAI(max_retries=0) as client:  # the loop tries again, and its file knows about it
            reply = client.chat.completions.create(
                model=effect.model,
                messages=[{"role": "system", "content": agent.system}, *map(to_openai, effect.messages)],
                tools=[tool_of(tool) for tool in agent.tools],
            )
    except openai.OpenAIError as error:
        failure = Failure("model.failed", str(error))
        return effect.erred(now(), failure, retry=isinstance(error, LATER))
    return effect.replied(now(), from_openai(reply))


def tool_of(tool: Tool) -> Any:
    function = {"name": tool.name, "description": tool.description, "parameters": json.loads(tool.schema)}
    return {"type": "function", "function": function}


def to_openai(message: Message) -> Any:
    match message.parts[0]:
        case Native(data=data):
            return json.loads(data)
        case ToolResult(id=id, text=text):
            return {"role": "tool", "tool_call_id": id, "content": text}
    return {"role": "user", "content": message.text}


def from_openai(reply: Any) -> Message:
    """Keep the reply as it is, to be sent back, and beside it what the loop needs to know."""
    choice = reply.choices[0]
    calls = [ToolCall(call.id, call.function.name, call.function.arguments) for call in choice.message.tool_calls or ()]
    return Message(
        id=reply.id,
        role="assistant",
        parts=(Native("openai", choice.message.to_json(exclude_none=True)), Text(choice.message.content or ""), *calls),
        stop=STOPS.get(choice.finish_reason, "other"),
        usage=Usage(input=reply.usage.prompt_tokens, output=reply.usage.completion_tokens) if reply.usage else None,
    )


if __name__ == "__main__":
    sys.exit(main((BOOKKEEPER, AUDITOR), perform))
