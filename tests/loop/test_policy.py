"""What the policy says of a call: the first rule that fits, and conditions on what is in the arguments."""

from typing import Any

import pytest

from sojourn.loop.policy import Asking, Condition, Gate, Policy, Rule, gate

ARGS: dict[str, Any] = {
    "to": "Ann@example.org",
    "sum": 100,
    "urgent": True,
    "none": None,
    "rows": [{"id": "a"}, {"id": "b"}],
    "deep": {"er": {"n": 1.5}},
}


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        (Condition(argument="to", like="*@example.org"), True),
        (Condition(argument="to", like="ann@*"), False),
        (Condition(argument="sum", like="1*"), False),
        (Condition(argument="sum", at_most=100), True),
        (Condition(argument="sum", at_least=100, at_most=99), False),
        (Condition(argument="sum", at_least=100), True),
        (Condition(argument="sum", one_of=(1, 100)), True),
        (Condition(argument="to", at_most=9), False),
        (Condition(argument="urgent", at_least=0), False),
        (Condition(argument="urgent", one_of=(1,)), False),
        (Condition(argument="urgent", one_of=(True,)), True),
        (Condition(argument="none", one_of=(None,)), True),
        (Condition(argument="missing", one_of=(None,)), False),
        (Condition(argument="sum"), False),
        (Condition(argument="rows.1.id", one_of=("b",)), True),
        (Condition(argument="rows.2.id", one_of=("b",)), False),
        (Condition(argument="rows.-1.id", one_of=("b",)), False),
        (Condition(argument="rows.\u0661.id", one_of=("b",)), False),
        (Condition(argument="deep.er.n", at_least=1), True),
        (Condition(argument="deep.er.n.x", at_least=1), False),
        (Condition(argument="rows", one_of=("a",)), False),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_condition_is_about_one_argument(condition: Condition, holds: bool) -> None:
    assert condition.holds(ARGS) == holds


def test_the_first_rule_that_fits_decides_and_the_rest_falls_to_otherwise() -> None:
    cfo = Asking(approvers=("cfo",))
    small = Condition(argument="sum", at_most=10)
    policy = Policy(
        rules=(
            Rule("pay", "allow", when=(small,)),
            Rule("pay", "ask", "it is much", ask=cfo),
            Rule("send*", "deny"),
            Rule("look", "ask"),
        ),
        otherwise="ask",
        ask=Asking(need=2),
    )
    assert gate(policy, "pay", {"sum": 5}) == Gate("allow", "the policy says allow for pay")
    assert gate(policy, "pay", {"sum": 50}) == Gate("ask", "it is much", cfo)
    assert gate(policy, "pay", {}) == Gate("ask", "it is much", cfo)
    assert gate(policy, "send_all", {}).verdict == "deny"
    assert gate(policy, "look", {}).ask == gate(policy, "other", {}).ask == Asking(need=2)
    assert gate(Policy(), "anything", {}) == Gate("allow")
