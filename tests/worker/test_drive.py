"""What one drive keeps apart while it waits for a commit."""

from types import SimpleNamespace
from typing import Any, cast

from tests.loop.run_kit import Run
from tests.worker.inside import Unasked

from sojourn.errors import Invalid
from sojourn.guardrails.judging import EMPTY
from sojourn.loop import events as ev
from sojourn.loop.messages import said
from sojourn.settings import Settings
from sojourn.store.budgets.pools import Defaults
from sojourn.store.rows import Commit, Opened
from sojourn.worker.budgets.pools import DayPools
from sojourn.worker.drive import Drive
from sojourn.worker.tenure import Tenure


class Committer:
    """Keeps commits, and lets mail come while it writes the first."""

    def __init__(self) -> None:
        self.commits: list[Commit] = []
        self.drive: Drive

    async def commit(self, commit: Commit) -> None:
        if not self.commits:
            run = Run()
            self.drive.deliver([(7, ev.Said(at=run.at(), message=said("late", "hurry")))])
        self.commits.append(commit)


def lasting() -> Tenure:
    """A tenure that does not end."""
    tenure = Tenure(1e9)
    tenure.renew(tenure.now_s())
    return tenure


def nobody(reference: str) -> Any:
    raise Invalid(f"There is no {reference}.")


async def test_mail_that_comes_during_a_commit_is_taken_once_and_read_off_the_inbox() -> None:
    run, committer = Run(), Committer()
    parts: Any = SimpleNamespace(
        now=run.at,
        committer=committer,
        models=SimpleNamespace(resolve=nobody),
        prices=SimpleNamespace(tariff=lambda _: None),
        tenure=lasting(),
        guardrails=SimpleNamespace(of=lambda tenant: EMPTY),
        pools=DayPools(cast(Any, Unasked()), "w1", Defaults()),
        tools={},
        settings=Settings(),
    )
    claimed: Any = SimpleNamespace(tenant="t", run_id="run_1", fence=1, claims=1)
    drive = committer.drive = Drive(parts, claimed, Opened(continuation=run.state, agents={}), run.agents)
    await drive.run()
    heard = [commit for commit in committer.commits if any(isinstance(event, ev.Said) for event in commit.events)]
    assert [commit.inbox_ids for commit in heard] == [(7,)]
    assert sum((commit.inbox_ids for commit in committer.commits), ()) == (7,)
    assert committer.commits[-1].release is not None
