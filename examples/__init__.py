"""Programs that have a loop of their own, and use `sojourn.loop` so that it can stop anywhere and go on anywhere.

    openai_loop    the official OpenAI SDK: approvals, a sub-agent, tools that run at most once
    pydantic_ai    a Pydantic AI agent, whose deferred tool calls become questions
    run_file       a run in one file, and the shell round the loop that drives it
    command_line   start, show, decide, resume

docs/frameworks.md is their page. The rule: they install beside Sojourn (`make setup`), and no part of it imports them.
"""
