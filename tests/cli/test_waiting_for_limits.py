"""`sojourn run` where runs begin too fast: it waits for what is soon, and says what to do about the rest."""

from console_script import Console
from scripted_api import Problem, ScriptedApi, Seen

REACHED = "The limit on runs of your user is reached: 20 in 60 s, 5 at once."


def refusing(api: ScriptedApi, *retry_after_s: float) -> None:
    """Refuse the first requests for a run, each with the time after which to come back."""
    api.run()
    accepted, left = api.answers["POST /v1/runs"], list(retry_after_s)

    def answer(seen: Seen) -> object:
        if not left:
            return accepted
        raise Problem(429, "limit.rate", REACHED, request_id="req_5", retry_after_s=left.pop(0))

    api.answers["POST /v1/runs"] = answer


async def test_a_run_that_comes_too_soon_waits_and_says_for_what(api: ScriptedApi, sojourn: Console):
    refusing(api, 0.1, 0.2)
    result = await sojourn("run", "the goal", "--model", "sim:one", "--detach")
    assert (result.code, result.out) == (0, "run_1\n")
    assert result.err.splitlines()[:2] == [f"Waiting 1 s. {REACHED}"] * 2
    keys = [one.headers["Idempotency-Key"] for one in api.asked("POST /v1/runs")]
    assert len(keys) == 3


async def test_a_run_that_would_wait_for_long_says_what_to_do(api: ScriptedApi, sojourn: Console):
    refusing(api, 0.1, 30)
    result = await sojourn("run", "the goal", "--model", "sim:one", "--detach")
    assert (result.code, result.out) == (1, "")
    said = result.err.splitlines()[-1]
    assert said.startswith(f"sojourn: {REACHED} Try again then; on the server's machine, `sojourn tenants set")
    assert said.endswith("(limit.rate, request req_5)")
    assert len(api.asked("POST /v1/runs")) == 2


async def test_another_refusal_is_not_waited_for(api: ScriptedApi, sojourn: Console):
    def full(seen: Seen) -> None:
        raise Problem(429, "limit.queue", "1000 runs wait for a worker.", retry_after_s=0.1)

    api.answers["POST /v1/runs"] = full
    assert (await sojourn("run", "the goal", "--model", "sim:one", "--detach")).code == 1
    assert len(api.asked("POST /v1/runs")) == 1
