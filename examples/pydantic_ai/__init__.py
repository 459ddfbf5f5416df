"""A Pydantic AI agent whose deferred tool calls become questions: `python -m examples.pydantic_ai --help`."""
