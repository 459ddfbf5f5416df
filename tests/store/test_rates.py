"""Rate limits in the database: exact whoever asks and however many ask at once, and apart for each tenant."""

import asyncio
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from scripted_runs import blocked, enter, furnish

from sojourn.errors import Invalid, NotFound
from sojourn.store.db import Database
from sojourn.store.roles import Dsns
from sojourn.store.rows import Principal
from sojourn.store.sharing import limits, rates
from sojourn.store.sharing.rates import Limits, Rate, Rates, Taking
from sojourn.store.tenant import idempotency, keys

HOUR = Rate(5, 3600)
"""Five at once, and the next one after twelve minutes: no test is so slow."""
FIVE = ["taken"] * 5 + ["refused"]


def taking(caller: Principal, *by_subject: Rate | None, **more: Any) -> Taking:
    """A request with limits of the tenant, the user and the agent."""
    given = (*by_subject, None, None, None)[:3]
    return Taking(
        tenant=caller.tenant,
        user=caller.user,
        class_="runs",
        every_us=tuple(rate and rate.every_us for rate in given),
        bursts=tuple(rate and rate.at_once for rate in given),
        **more,
    )


async def outcomes(database: Database, *wanted: Taking) -> list[str]:
    return [taken.outcome for taken in await rates.take(database, wanted)]


async def kept(database: Database) -> list[tuple[str, ...]]:
    """Of whom something is remembered."""
    async with database.migrator() as owner, owner.transaction():
        await owner.execute("set local role sojourn_keyring")
        return sorted(tuple(row) for row in await owner.fetch("select tenant, class, subject, name from rate"))


async def test_a_burst_is_admitted_and_then_one_in_every_so_many_seconds(database: Database) -> None:
    one = taking(await enter(database), None, Rate(60, 3600, 3))
    found = await rates.take(database, [one] * 5)
    assert [taken.outcome for taken in found] == ["taken"] * 3 + ["refused"] * 2
    assert [taken.debts_us[1] for taken in found] == [60_000_000, 120_000_000, 180_000_000, 180_000_000, 180_000_000]
    await past(database, "1 minute 1 second")
    assert await outcomes(database, one, one) == ["taken", "refused"], "a minute gives one, and no more"
    await past(database, "10 years")
    assert await outcomes(database, *[one] * 4) == ["taken"] * 3 + ["refused"], "no time gives more than the burst"


async def past(database: Database, span: str) -> None:
    """Let time pass for all limits."""
    async with database.migrator() as owner, owner.transaction():
        await owner.execute("set local role sojourn_keyring")
        await owner.execute("update rate set full_at = full_at - $1::text::interval", span)


async def test_what_is_refused_takes_of_no_limit(database: Database) -> None:
    wide, narrow = Rate(100, 3600), Rate(2, 3600)
    found = await rates.take(database, [taking(await enter(database), wide, narrow)] * 4)
    assert [taken.outcome for taken in found] == ["taken", "taken", "refused", "refused"]
    assert [taken.debts_us[0] for taken in found] == [36_000_000, 72_000_000, 72_000_000, 72_000_000]
    assert {taken.debts_us[2] for taken in found} == {None}


async def test_tenants_users_and_classes_are_counted_apart(database: Database) -> None:
    acme, rival = await enter(database, "acme"), await enter(database, "rival")
    async with database.scoped(acme.handle) as conn:
        _, token = await keys.create(conn, user="bob", name="bob", scopes=["*"])
    bob = await keys.authenticate(database, token)
    for one in (
        taking(acme, None, HOUR),
        taking(rival, HOUR, HOUR),
        taking(bob, None, HOUR),
        msgspec.structs.replace(taking(acme, None, HOUR), class_="writes"),
    ):
        assert await outcomes(database, *[one] * 6) == FIVE
    assert await outcomes(database, *[taking(bob, HOUR, None)] * 6) == FIVE, "the tenant was not limited before"


async def test_only_agents_that_exist_are_counted(database: Database) -> None:
    caller = await furnish(database, "acme")
    async with database.scoped(caller.handle) as conn:
        name = await conn.fetchval("select name from agent")
    assert await outcomes(database, *[taking(caller, None, None, HOUR, agent=name)] * 6) == FIVE
    made_up = [taking(caller, None, None, HOUR, agent=f"agent-{n}") for n in range(300)]
    assert {taken.debts_us for taken in await rates.take(database, made_up)} == {(None, None, None)}
    assert await kept(database) == [("acme", "runs", "agent", name)], "and nobody fills the table with names"


PROCESS = """
import asyncio, sys, msgspec
from sojourn.store.db import connect
from sojourn.store.roles import Dsns
from sojourn.store.sharing import rates

async def main():
    async with await connect(Dsns(*sys.argv[1:4])) as database:
        takings = msgspec.json.decode(sys.argv[4], type=list[rates.Taking])
        print("ready", flush=True)
        sys.stdin.readline()
        found = await asyncio.gather(*(rates.take(database, takings[n:] + takings[:n]) for n in range(20)))
        print(sum(one.outcome == "taken" for taken in found for one in taken))

asyncio.run(main())
"""


async def test_several_processes_admit_together_exactly_what_the_limit_allows(database: Database, dsns: Dsns) -> None:
    acme, rival = await enter(database, "acme"), await enter(database, "rival")
    takings = [taking(acme, Rate(50, 3600), Rate(30, 3600)), taking(rival, Rate(40, 3600), Rate(90, 3600))]
    words = (dsns.migrate, dsns.api, dsns.engine, msgspec.json.encode(takings).decode())
    pipe = asyncio.subprocess.PIPE
    processes = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", PROCESS, *words, stdin=pipe, stdout=pipe)
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout and await process.stdout.readline() == b"ready\n"
    said = await asyncio.gather(*(process.communicate(b"go\n") for process in processes))
    assert sum(int(out) for out, _ in said) == 30 + 40
    assert await kept(database) == [
        (t, "runs", *who) for t in ("acme", "rival") for who in (("tenant", ""), ("user", "ann"))
    ]


async def test_a_request_that_was_answered_takes_nothing_when_it_comes_again(database: Database) -> None:
    caller = await enter(database)
    sent = {"key": "one", "route": "POST /v1/runs", "digest": "d"}
    one = taking(caller, None, Rate(1, 3600), **sent)
    async with database.scoped(caller.handle) as conn:
        await idempotency.begin(conn, "one", route="POST /v1/runs", request_digest="d", ttl_s=60)
        await idempotency.begin(conn, "open", route="POST /v1/runs", request_digest="d", ttl_s=60)
        await idempotency.finish(conn, "one", status=202, body=b"{}")
    assert await outcomes(database, one, one) == ["replayed", "replayed"]
    others = [
        taking(caller, None, Rate(1, 3600), **{**sent, **changed})
        for changed in ({"key": "open"}, {"digest": "e"}, {"route": "POST /v1/sessions"}, {"key": "two"})
    ]
    assert await outcomes(database, *others, one) == ["taken", *["refused"] * 3, "replayed"]
    assert await outcomes(database, taking(caller, None, Rate(1, 3600), **{**sent, "digest": None})) == ["replayed"]


async def test_what_counts_no_more_is_forgotten_and_nothing_else(database: Database) -> None:
    acme, rival = await enter(database, "acme"), await enter(database, "rival")
    await outcomes(database, taking(acme, HOUR, HOUR))
    await past(database, "1 hour")
    await outcomes(database, taking(rival, HOUR))
    await rates.prune(database)
    assert await kept(database) == [("rival", "runs", "tenant", "")]


async def test_no_one_waits_for_a_disk_and_a_crash_lets_all_limits_begin_anew(database: Database) -> None:
    async with database.migrator() as owner:
        assert await owner.fetchval("select relpersistence from pg_class where relname = 'rate'") == b"u"
    async with database.engine() as conn, conn.transaction():
        await conn.fetch(rates.TAKE, b"[]")
        assert await conn.fetchval("show synchronous_commit") == "off"
    async with database.engine() as conn:
        assert await conn.fetchval("show synchronous_commit") == "on"


async def test_an_operators_limits_of_a_tenant_stand_in_place_of_the_settings(database: Database) -> None:
    await enter(database, "acme"), await enter(database, "rival")
    found, since = await rates.changed(database, datetime(2000, 1, 1, tzinfo=UTC))
    assert found == {}
    await limits.set_rates(database, "acme", {"runs.user": Rate(60, 60, 10), "reads.tenant": HOUR})
    await limits.set_rates(database, "acme", {"runs.user": "off", "reads.tenant": None, "writes.agent": HOUR})
    own = {"runs.user": "off", "writes.agent": HOUR}
    assert (await rates.changed(database, since))[0] == {"acme": own}
    assert (await rates.changed(database, since + timedelta(days=1)))[0] == {}
    holds = Rates().under({**own, "naps.user": HOUR, "runs.cat": HOUR})
    assert (holds.runs, holds.writes) == (Limits(), Limits(agent=HOUR)), "what a newer release may know is passed over"
    assert [row.rates for row in await limits.tenants(database)] == [own, {}]
    with pytest.raises(NotFound):
        await limits.set_rates(database, "nobody", {"runs.user": HOUR})


@pytest.mark.parametrize(("text", "limit"), [("20/60/5", Rate(20, 60, 5)), ("7/1", Rate(7, 1)), ("off", "off")])
def test_a_limit_is_read_as_it_is_shown(text: str, limit: rates.Limit) -> None:
    assert rates.read(text) == limit
    assert str(limit) == text


@pytest.mark.parametrize(
    "text", ["", "20", "0/60", "20/0", "20/60/0", "-1/60", "1/2/3/4", "2000000/1", "1/99999999", "1.5/60", "on", "२/60"]
)
def test_what_is_no_limit_is_refused(text: str) -> None:
    with pytest.raises(Invalid, match="20/60/5"):
        rates.read(text)


async def test_takes_wait_for_those_of_their_tenant_and_for_nobody_else(database: Database) -> None:
    acme, rival = await enter(database, "acme"), await enter(database, "rival")
    async with database.engine() as conn:
        transaction = conn.transaction()
        await transaction.start()
        await conn.fetch(rates.TAKE, msgspec.json.encode([taking(acme, HOUR)]))
        assert await outcomes(database, *[taking(rival, HOUR)] * 6) == FIVE
        behind = asyncio.create_task(outcomes(database, *[taking(acme, HOUR)] * 6))
        await blocked(database)
        assert not behind.done()
        await transaction.commit()
    assert await behind == ["taken"] * 4 + ["refused"] * 2, "and counts what came before"
