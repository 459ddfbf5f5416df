"""`sojourn guardrails` against a running installation: a tenant's rules with its key, the operator's without one."""

import asyncio
from pathlib import Path

from console_script import operators
from tests.installation import installed

from sojourn.models.simulator.script import Rule, Script

RAIL = """
name = "customers"
[[rules]]
kind = "pii"
on = ["output"]
then = "redact"
"""
OPERATORS = """
name = "codewords"
[[rules]]
kind = "pattern"
on = ["input"]
pattern = "falcon"
"""

POLICIES = """
name = "refunds"
[[rules]]
kind = "cedar"
on = ["tool_arguments"]
policies = '''
@id("small")
permit(principal, action == Action::"refund", resource == Agent::"clerk") when { context.arguments.amount <= 100 };
'''
"""


async def test_rules_are_set_shown_tried_and_removed_and_the_operators_stay(data_dir: Path) -> None:
    rail, theirs, broken = (data_dir / name for name in ("rail.toml", "theirs.toml", "broken.toml"))
    rail.write_text(RAIL)
    theirs.write_text(OPERATORS)
    broken.write_text(OPERATORS.replace("falcon", "(a+"))
    async with installed(data_dir, Script(rules=(Rule(text="Ask ann@example.com."),))) as installation:
        sojourn = operators(data_dir, installation.url)
        empty = await sojourn("guardrails", "list")
        assert (empty.code, "guardrails set --help" in empty.err) == (0, True)
        assert "customers is version 1" in (await sojourn("guardrails", "set", str(rail))).out
        set_ = await sojourn("guardrails", "set", str(theirs), "--operator")
        assert (set_.code, "codewords is version 1" in set_.out) == (0, True), set_.err
        tried = await sojourn("guardrails", "test", "Ask ann@example.com", "--on", "output")
        assert (tried.code, "Ask [redacted by customers]" in tried.out) == (0, True)
        async with asyncio.timeout(60):
            while (await installation.post("/v1/guardrails/test", {"text": "falcon"}, 200))["verdict"] == "pass":  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert (await sojourn("guardrails", "test", "falcon")).code == 1
        listed = (await sojourn("guardrails", "list")).out
        assert "customers" in listed and "codewords (version 1) is the operator's" in listed
        run = await installation.until(await installation.run(model="openai:sim", input="go"))
        assert run["output"] == "Ask [redacted by customers]."
        refused = await installation.post("/v1/runs", {"model": "openai:sim", "input": "the falcon"}, expect=422)
        assert refused["code"] == "guardrail.refused"
        assert (await sojourn("guardrails", "remove", "codewords")).code == 5, "it is not the tenant's"
        assert (await sojourn("guardrails", "remove", "customers")).code == 0
        shown = (await sojourn("guardrails", "show", "customers", "--versions")).out
        assert "version 2  ended" in shown and "1. pii on output: redact" in shown
        policies = data_dir / "policies.toml"
        policies.write_text(POLICIES)
        assert (await sojourn("guardrails", "set", str(policies))).code == 0
        call = ("--on", "tool_arguments", "--tool", "refund", "--agent", "clerk")
        tried = await sojourn("guardrails", "test", '{"amount": 5}', *call)
        assert (tried.code, "cedar -> pass (permitted by small)" in tried.out) == (0, True)
        tried = await sojourn("guardrails", "test", '{"amount": 5.5}', *call)
        assert (tried.code, "expected long, got decimal" in tried.out) == (1, True)
        assert '       @id("small")' in (await sojourn("guardrails", "show", "refunds")).out
        wrong = await sojourn("guardrails", "set", str(broken), "--operator")
        assert wrong.code == 2 and "no regular expression" in wrong.err
        broken.write_text(OPERATORS.replace("codewords", "code words"))
        wrong = await sojourn("guardrails", "set", str(broken), "--operator")
        assert wrong.code == 2 and "name is up to 64" in wrong.err
        assert "pattern=" in (await sojourn("guardrails", "show", "codewords", "--operator")).out
        assert (await sojourn("guardrails", "remove", "codewords", "--operator")).code == 0
        assert (await sojourn("guardrails", "list", "--operator", "--json")).json["data"] == []
        told = (await sojourn("audit", "list", "--operator", "--limit", "2", "--json")).json["data"]
        assert [(row["action"], row["subject"]) for row in told] == [
            ("guardrail.end", "codewords"), ("guardrail.set", "codewords")
        ]  # fmt: skip
