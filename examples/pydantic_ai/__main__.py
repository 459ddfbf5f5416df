"""A Pydantic AI agent whose deferred tool calls wait as ours do, and which goes on in another process.

    OPENAI_BASE_URL, OPENAI_API_KEY     the model; `sojourn simulate --script examples/pydantic_ai/model.toml` is one
    invoices.csv                        what it reads
    payments.csv                        what it does, each once and only after a yes

Pydantic AI keeps its loop. What it gives back becomes a step of ours, and what was decided becomes its results:

    agent.run()                         one CallModel; its new messages, as JSON, are a Native part of the reply
    DeferredToolRequests.approvals      tool calls: the policy allows, asks or denies; then we run them, one by one
    DeferredToolRequests.calls          tool calls whose executor is "client": somebody else sends the result
    DeferredToolResults                 the observations of the step: ToolReturn, or ToolFailed for a no

The rule: a tool that is not deferred runs inside `agent.run()`, and so again if that is lost. It may only read.
"""

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pydantic_ai
from pydantic_ai import DeferredToolRequests, DeferredToolResults, ExternalToolset, ModelMessage, ToolApproved
from pydantic_ai import exceptions as refused
from pydantic_ai.messages import ModelMessagesTypeAdapter, ToolReturn, ToolReturnPart
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.tools import ToolDefinition

from examples.command_line import main
from examples.run_file import RunFile, now
from sojourn.loop import (
    Agent,
    Asking,
    CallModel,
    CallTool,
    Condition,
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
    events,
    frames,
)

# ---- their agent -----------------------------------------------------------------------------

COUNT_CASH = ToolDefinition(
    name="count_cash",
    description="Have the money in the till counted.",
    parameters_json_schema={"type": "object", "properties": {"till": {"type": "integer"}}, "required": ["till"]},
)
payer = pydantic_ai.Agent(
    instructions="Pay what is due.",
    output_type=[str, DeferredToolRequests],
    toolsets=[ExternalToolset([COUNT_CASH])],
)


@payer.tool_plain
def list_invoices() -> str:
    """Read all invoices."""
    return Path("invoices.csv").read_text()


@payer.tool_plain(requires_approval=True)
def pay(invoice: str, eur: float) -> str:
    """Pay an invoice."""
    with Path("payments.csv").open("a") as payments:
        payments.write(f"{invoice},{eur}\n")
    return f"Paid {invoice}: {eur} EUR."


# ---- what may be done with it ----------------------------------------------------------------

TWO_OF_THREE = Asking(need=2, approvers=("ann", "ben", "eve"), exclude_initiator=True, expires_s=86_400)
PAYER = Agent(
    name="payer",
    models=("gpt-5-mini",),
    tools=(Tool(name="pay"), Tool(name="count_cash", executor="client")),
    policy=Policy(
        rules=(
            Rule("count_cash", "allow"),
            Rule("pay", "allow", when=(Condition(argument="eur", at_most=50),)),
            Rule(
                "pay",
                "deny",
                "More than 1000 EUR are paid by nobody.",
                when=(Condition(argument="eur", at_least=1000),),
            ),
        ),
        otherwise="ask",
        ask=TWO_OF_THREE,
    ),
)

# ---- what the world must do ------------------------------------------------------------------

LATER = (
    refused.ModelConnectionError,
    refused.ModelRateLimitError,
    refused.ModelServerError,
    refused.ModelUnavailableError,
)


def perform(effect: Effect, file: RunFile) -> events.Event:
    if isinstance(effect, CallModel):
        return asyncio.run(run_agent(effect))
    frame = next(frame for frame in frames(file.run.root) if frame.id == effect.frame)
    return asyncio.run(run_tool(effect, frame.messages))


async def run_agent(effect: CallModel) -> events.Event:
    """Let their agent go on until it is done, or asks for calls that it may not make itself."""
    new = since_reply(effect.messages)
    results = {part.id: result_of(part) for message in new for part in message.parts if isinstance(part, ToolResult)}
    try:
        async with OpenAIChatModel(effect.model, provider=OpenAIProvider()) as model:
            done = await payer.run(
                "\n".join(message.text for message in new if message.role == "user") or None,
                model=model,
                message_history=history(effect.messages),
                deferred_tool_results=DeferredToolResults(calls=results) if results else None,
            )
    except (refused.AgentRunError, refused.UserError) as error:
        return effect.erred(now(), Failure("model.failed", str(error)), retry=isinstance(error, LATER))
    deferred = done.output if isinstance(done.output, DeferredToolRequests) else DeferredToolRequests()
    message = Message(
        id=f"{effect.frame}#{effect.step}",
        role="assistant",
        parts=(
            Native("pydantic_ai", done.new_messages_json().decode()),
            Text(done.output if isinstance(done.output, str) else ""),
            *(
                ToolCall(call.tool_call_id, call.tool_name, call.args_as_json_str())
                for call in (*deferred.approvals, *deferred.calls)
            ),
        ),
        usage=Usage(input=done.usage.input_tokens, output=done.usage.output_tokens),
    )
    return effect.replied(now(), message)


async def run_tool(effect: CallTool, messages: Sequence[Message]) -> events.Event:
    """Run one approved call as their agent would, checks and all, and leave before its next request."""
    [reply] = [message for message in messages if message.role == "assistant"][-1:]
    results = DeferredToolResults(
        approvals={effect.provider_id: ToolApproved(override_args=json.loads(effect.args))},
        calls={call.id: ToolReturn("") for call in reply.calls if call.id != effect.provider_id},
    )
    try:
        async with (
            OpenAIChatModel(PAYER.models[0], provider=OpenAIProvider()) as model,
            payer.iter(model=model, message_history=history(messages), deferred_tool_results=results) as run,
        ):
            async for node in run:
                if pydantic_ai.Agent.is_model_request_node(node):
                    return came_back(effect, node.request.parts)
    except Exception as error:  # whatever it is, the model reads it
        return effect.returned(now(), f"{type(error).__name__}: {error}", failed=True)
    return effect.returned(now(), "The call was not run.", failed=True)


def came_back(effect: CallTool, parts: Sequence[object]) -> events.Event:
    [part] = [p for p in parts if isinstance(p, ToolReturnPart) and p.tool_call_id == effect.provider_id]
    return effect.returned(now(), part.model_response_str(), failed=part.outcome != "success")


def result_of(part: ToolResult) -> ToolReturn | refused.ToolFailed:
    return refused.ToolFailed(part.text) if part.error else ToolReturn(part.text)


def since_reply(messages: Sequence[Message]) -> Sequence[Message]:
    """What was said and observed since the agent last had its turn."""
    replies = [place for place, message in enumerate(messages) if message.role == "assistant"]
    return messages[replies[-1] + 1 :] if replies else messages


def history(messages: Sequence[Message]) -> list[ModelMessage]:
    """Their messages, as each reply kept those that it added."""
    kept = [part.data for message in messages for part in message.parts if isinstance(part, Native)]
    return [theirs for data in kept for theirs in ModelMessagesTypeAdapter.validate_json(data)]


if __name__ == "__main__":
    sys.exit(main((PAYER,), perform))
