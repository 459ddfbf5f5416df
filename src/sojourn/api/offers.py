"""/v1/tools and /v1/models: what this server offers to agents."""

from typing import Literal

import msgspec

from sojourn.api.agents.shapes import ToolSeen, tool_seen
from sojourn.api.route import Answer, Ask, Route


class Tools(msgspec.Struct, frozen=True, kw_only=True):
    """The server tools, by name."""

    data: tuple[ToolSeen, ...]


class Provider(msgspec.Struct, frozen=True, kw_only=True):
    """Where models are asked; a model is referred to as `<name>:<model>`."""

    name: str
    dialect: Literal["openai", "anthropic"]
    base_url: str
    ready: bool
    """Whether it can be asked: a key is there, or none is needed."""
    key_env: str
    """The variable that its key comes from."""


class Models(msgspec.Struct, frozen=True, kw_only=True):
    """The configured providers."""

    data: tuple[Provider, ...]


async def tools(ask: Ask[None, None]) -> Answer:
    """List the server tools."""
    found = sorted(ask.parts.tools.items())
    return Answer(body=Tools(data=tuple(tool_seen(tool) for _, tool in found)))


async def models(ask: Ask[None, None]) -> Answer:
    """List the providers."""
    found = sorted(ask.parts.models.endpoints().items())
    return Answer(
        body=Models(
            data=tuple(
                Provider(
                    name=name,
                    dialect=endpoint.dialect,
                    base_url=endpoint.base_url,
                    ready=bool(endpoint.keys) or not endpoint.key_required,
                    key_env=endpoint.key_env,
                )
                for name, endpoint in found
            )
        )
    )


ROUTES = (
    Route(
        method="GET",
        path="/v1/tools",
        handler=tools,
        summary="List the server's tools",
        tag="agents",
        scope="agents:read",
        answers={200: (Tools, "The tools that an agent may name")},
    ),
    Route(
        method="GET",
        path="/v1/models",
        handler=models,
        summary="List the configured model providers",
        tag="agents",
        scope="agents:read",
        answers={200: (Models, "The providers, and whether a key is there")},
    ),
)
