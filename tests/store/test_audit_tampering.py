"""The owner of the database changes the audit log by SQL, and the verifier names the first row that is bad."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
from scripted_runs import enter

from sojourn.cli.commands.auditing import chain
from sojourn.store.audit import reading, writing
from sojourn.store.audit.operator import operator
from sojourn.store.audit.writing import Act, Origin
from sojourn.store.db import Database

ROWS = 8
REHASH = """
do $$
declare
    one audit;
    before bytea := decode(repeat('00', 32), 'hex');
begin
    for one in select * from audit where tenant = 'acme' order by n loop
        before := audit_digest(one, before);
        update audit set hash = before where tenant = 'acme' and n = one.n;
    end loop;
    update audit_head set hash = before, n = (select count(*) from audit where tenant = 'acme') where tenant = 'acme';
end $$
"""
"""Makes the chain anew over whatever stands there, as an owner can who knows how it is made."""
MOVE = "update audit set n = case n when 4 then 1005 when 5 then 1004 end where tenant = 'acme' and n in (4, 5);" \
    "update audit set n = n - 1000 where n > 1000"  # fmt: skip
INSERT = (
    "update audit set n = n + 1000 where tenant = 'acme' and n > 4; update audit set n = n - 999 where n > 1000;"
    " insert into audit select tenant, 5, at, action, subject, operator, 'mallory', key_id, request_id, address,"
    " outcome, detail, hash from audit where tenant = 'acme' and n = 4;"
    " update audit_head set n = n + 1 where tenant = 'acme'"
)
TAMPERING = {
    # what the owner does, and the first row that is bad
    "a user": ("update audit set user_id = 'bob' where tenant = 'acme' and n = 5", 5),
    "a time": ("update audit set at = at + interval '1 microsecond' where tenant = 'acme' and n = 5", 5),
    "a detail": ("update audit set detail = '{\"n\": \"6\"}' where tenant = 'acme' and n = 5", 5),
    "an outcome": ("update audit set outcome = 'refused' where tenant = 'acme' and n = 1", 1),
    "a border": ("update audit set subject = subject || user_id, user_id = '' where tenant = 'acme' and n = 5", 5),
    "a hash": ("update audit set hash = sha256('') where tenant = 'acme' and n = 5", 5),
    "the last hash": (f"update audit set hash = sha256('') where tenant = 'acme' and n = {ROWS}", ROWS),
    "deleted": ("delete from audit where tenant = 'acme' and n = 5", 5),
    "deleted and closed up": (
        "delete from audit where tenant = 'acme' and n = 5;"
        " update audit set n = n + 1000 where tenant = 'acme' and n > 5;"
        " update audit set n = n - 1001 where n > 1000;"
        " update audit_head set n = n - 1 where tenant = 'acme'",
        5,
    ),
    "the first": ("delete from audit where tenant = 'acme' and n = 1", 1),
    "reordered": (MOVE, 4),
    "inserted": (INSERT, 5),
    "truncated": (f"delete from audit where tenant = 'acme' and n = {ROWS}", ROWS),
    "emptied": ("delete from audit where tenant = 'acme'", 1),
    "another chain's": (
        "delete from audit where tenant = 'acme' and n = 1; update audit set tenant = 'acme' where tenant = 'rival'", 1
    ),
}  # fmt: skip


@pytest.fixture
async def log(database: Database) -> AsyncIterator[Database]:
    """A database with a chain of eight rows."""
    caller = await enter(database)
    await enter(database, "rival")
    async with database.scoped(caller.handle) as conn:
        for n in range(2, ROWS + 1):
            act = Act(action="thing.make", subject=f"thing {n}", detail={"n": str(n)})
            await writing.note(conn, act, origin=Origin(request_id="r", address="192.0.2.1"))
    yield database


async def tamper(database: Database, *statements: str) -> None:
    """Do as the owner of the database, who can take every guard away."""
    async with database.migrator() as owner, owner.transaction():
        for table in ("audit", "audit_head"):
            await owner.execute(f"alter table {table} no force row level security, disable trigger user")
        await owner.execute("set local role sojourn_keyring")
        await owner.execute("grant execute on function audit_digest to sojourn_owner")
        await owner.execute("set local role sojourn_owner")
        for statement in statements:
            await owner.execute(statement)


async def exported(database: Database) -> list[dict[str, Any]]:
    async with operator(database, readonly=True) as conn:
        end = await reading.head(conn, "acme")
        rows = await reading.chain(conn, end, after=0, limit=1000)
    return [*msgspec.to_builtins(rows), {"head": msgspec.to_builtins(end)}]


@pytest.mark.parametrize("what", TAMPERING)
async def test_what_the_owner_changes_is_found(log: Database, what: str) -> None:
    assert chain.verify(await exported(log)) == chain.Verdict(chain.head(await kept(log)))
    statement, row = TAMPERING[what]
    await tamper(log, statement)
    found = chain.verify(await exported(log))
    assert found.bad == row, found


async def kept(database: Database) -> str:
    end = (await exported(database))[-1]["head"]
    return f"{end['n']}:{end['hash']}"


@pytest.mark.parametrize(
    "what", ["a user", "deleted and closed up", "reordered", "inserted", "truncated", "the last hash", "emptied"]
)
async def test_a_chain_that_is_made_anew_is_found_by_a_head_that_was_kept(log: Database, what: str) -> None:
    anchor = chain.head(await kept(log))
    await tamper(log, TAMPERING[what][0], REHASH)
    rows = await exported(log)
    if what != "the last hash":  # which was made right again
        assert chain.verify(rows, anchor).bad is not None
    assert chain.verify(rows).bad is None, "without the head it looks sound"


async def test_a_head_proves_what_stands_before_it_and_nothing_after(log: Database) -> None:
    rows = await exported(log)
    anchor = chain.Head(4, rows[3]["hash"])
    assert chain.verify(rows, anchor).bad is None
    await tamper(log, "update audit set user_id = 'bob' where tenant = 'acme' and n = 6", REHASH)
    assert chain.verify(await exported(log), anchor).bad is None
    await tamper(log, "update audit set user_id = 'bob' where tenant = 'acme' and n = 3", REHASH)
    assert chain.verify(await exported(log), anchor).bad == 4


async def test_an_export_may_go_on_after_a_head_and_stand_behind_the_one_before(log: Database) -> None:
    rows = await exported(log)
    anchor = chain.Head(4, rows[3]["hash"])
    assert chain.verify(rows[4:], anchor).bad is None
    assert chain.verify(rows[4:]).bad == 1, "what is before it may be anything"
    assert chain.verify(rows[5:], anchor).bad is not None
    first = {"head": {"tenant": "acme", "n": 4, "hash": rows[3]["hash"]}}
    assert chain.verify([*rows[:4], first, *rows[4:]]).bad is None


LINES: dict[str, Callable[[list[dict[str, Any]]], list[dict[str, Any]]]] = {
    "no head": lambda rows: rows[:-1],
    "nothing": lambda rows: [],
    "cut": lambda rows: rows[:3],
    "twice": lambda rows: [*rows[:3], rows[2], *rows[3:]],
    "a field more": lambda rows: [{**rows[0], "note": "harmless"}, *rows[1:]],
    "a field less": lambda rows: [{k: v for k, v in rows[0].items() if k != "address"}, *rows[1:]],
    "a number as text": lambda rows: [{**rows[0], "n": "1"}, *rows[1:]],
    "truth as a number": lambda rows: [{**rows[0], "operator": 2}, *rows[1:]],
    "a detail that is a list": lambda rows: [{**rows[0], "detail": []}, *rows[1:]],
    "no time": lambda rows: [{**rows[0], "at": "now"}, *rows[1:]],
    "a head of nothing": lambda rows: [*rows[:-1], {"head": None}],
    "an older head": lambda rows: [*rows[:-1], {"head": {"n": 3, "hash": rows[2]["hash"]}}],
    "a newer head": lambda rows: [*rows[:-1], {"head": {"n": 99, "hash": "0" * 64}}],
    "rows after the head": lambda rows: [*rows, rows[0]],
}


async def test_a_file_that_was_changed_is_found(log: Database) -> None:
    rows = await exported(log)
    assert chain.verify(rows).bad is None
    for what, change in LINES.items():
        assert chain.verify(change(rows)).bad is not None, what


@pytest.mark.parametrize("line", ["", "x", "1", "null", '{"n":1,"n":2}', "[" * 100_000, b"\xff"])
def test_a_line_that_is_no_row_is_refused(line: str | bytes) -> None:
    with pytest.raises(ValueError, match="Line 1 is no row"):
        list(chain.parsed([line]))


@pytest.mark.parametrize("text", ["", "1", "1:ab", f"-1:{'0' * 64}", f"1:{'g' * 64}", f"1:{'0' * 65}"])
def test_a_head_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no head"):
        chain.head(text)
