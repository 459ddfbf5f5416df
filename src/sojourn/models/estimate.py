"""What a model call may cost at most, before it is made. Budgets and windows ask.

The rule: rather too much than too little. What the provider counted for the last reply is exact, and only what came
since is estimated.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from types import MappingProxyType
from typing import NamedTuple

from sojourn.loop.agent import Params
from sojourn.loop.budget import Held, Tariff
from sojourn.loop.messages import File, Image, Message, Native, Part, Reasoning, Text, ToolCall, ToolResult
from sojourn.models.attachments import readable
from sojourn.models.model import Request, ToolDefinition
from sojourn.models.projection import family

BYTES_PER_TOKEN = 3
"""English has four to five, code and JSON three to four, Chinese three; digests and other noise have about two."""
MESSAGE_TOKENS = 8
IMAGE_TOKENS = 5_000
"""The largest that a picture of any size costs. Source: the vision guides of OpenAI and Anthropic (2026-11)."""
FILE_TOKENS = 50_000
"""What a file is taken for whose bytes are not at hand: some ten pages of a PDF, or 150 KB of text."""
SEEN_BYTES_PER_TOKEN = 4
"""What was seen of a reply that was cut is counted as it is on the average, since it is billed."""
OUTPUT_TOKENS = 32_768
"""What a reply is taken for that nobody bounded."""


def call_ceiling(request: Request, tariff: Tariff | None) -> Held:
    """Estimate all that a call may use; money is 0 where the price is not known."""
    input, output = input_tokens(request), output_tokens(request.params)
    usd_micros = tariff.ceiling_micros(input_tokens=input, output_tokens=output) if tariff else 0
    return Held(input_tokens=input, output_tokens=output, usd_micros=usd_micros)


def prompt_tokens(request: Request) -> int:
    """Estimate the prompt as `input_tokens`, without a look at what the provider has counted."""
    found = counted(request)
    return sum(found) if found is not None else input_tokens(request)


def input_tokens(request: Request) -> int:
    """Estimate the prompt: what the last reply of this family of models counted, and what came since.

    A count of twice what the messages look like was made before they were shortened, and tells nothing.
    """
    whole = beside_tokens(request.system, request.tools)
    for message in request.messages:
        whole += message_tokens(message, request.blobs)
    if (found := counted(request)) is not None and found.then <= 2 * (whole - found.since):
        return found.then + found.since
    return whole


class Counted(NamedTuple):
    """What the provider counted `then`, prompt and reply, and an estimate of what came `since`."""

    then: int
    since: int


def counted(request: Request) -> Counted | None:
    """Find the last count of this family of models, without a look at what came before it; None where there is none."""
    since, asked = 0, family(request.model)
    for message in reversed(request.messages):
        if message.usage and message.source and family(message.source.model) == asked:
            return Counted(message.usage.prompt + message.usage.output, since)
        since += message_tokens(message, request.blobs)
    return None


def output_tokens(params: Params) -> int:
    """Estimate the longest reply; a budget for thoughts comes on top where it is not part of the size."""
    size, thoughts = params.max_output_tokens or OUTPUT_TOKENS, params.reasoning_tokens_max or 0
    return size if size > thoughts else size + max(thoughts, 1024)


def beside_tokens(system: str, tools: Sequence[ToolDefinition]) -> int:
    """Estimate what stands beside the messages."""
    texts = chain([system], *((tool.name, tool.description, tool.schema) for tool in tools))
    return _tokens(*texts) + MESSAGE_TOKENS * (1 + len(tools))


def message_tokens(message: Message, blobs: Mapping[str, bytes] = MappingProxyType({})) -> int:
    """Estimate one message, with the bytes of its files where they are at hand."""
    tokens = MESSAGE_TOKENS
    for part in message.parts:
        tokens += _part_tokens(part, blobs)
    return tokens


def _part_tokens(part: Part, blobs: Mapping[str, bytes]) -> int:
    match part:
        case Text():
            return _tokens(part.text)
        case Reasoning():
            return _tokens(part.text, part.redacted or "", part.signature or "")
        case ToolCall():
            return MESSAGE_TOKENS + _tokens(part.id, part.name, part.arguments)
        case ToolResult():
            return MESSAGE_TOKENS + _tokens(part.id, part.text)
        case Native():
            return _tokens(part.data)
        case Image():
            return IMAGE_TOKENS
        case File() if readable(part) and part.blob in blobs:
            return len(blobs[part.blob]) // BYTES_PER_TOKEN + MESSAGE_TOKENS
        case File():
            return FILE_TOKENS


def _tokens(*texts: str) -> int:
    size = 0
    for text in texts:
        size += len(text) if text.isascii() else len(text.encode(errors="replace"))
    return -(-size // BYTES_PER_TOKEN)
