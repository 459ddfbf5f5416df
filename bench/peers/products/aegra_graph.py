"""The agent as Aegra runs it: a LangGraph graph for every kind of run, which `aegra.json` names."""

from typing import Any, get_args

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.prebuilt import create_react_agent
from langgraph.types import interrupt

from bench.peers.verbs import Kind


@tool("noop")
async def noop() -> str:
    """Nothing."""
    return "done"


@tool("noop")
async def asked_noop() -> str:
    """Nothing, after a person allowed it."""
    interrupt("may it run?")
    return "done"


def graph(kind: str) -> Any:
    """Make the agent of a kind."""
    tools = [asked_noop if kind == "ask" else noop]
    return create_react_agent(ChatOpenAI(model=kind, streaming=True, stream_usage=True), tools)


ten, one, ask, held, slow, ticks = map(graph, get_args(Kind))
