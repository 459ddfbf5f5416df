"""What a commit says to the pools of the day: what it paid, which calls it ended, and which found no room.

The Committer writes it in the same statement as the commit, for runs of tenants that have pools. The rule: it touches
rows of its own run alone, so that commits of one tenant wait for nobody.
"""

from typing import Any

from sojourn.store.rows import Commit

SETTLE = """, settled as (
    insert into reservation as r (tenant, run_id, call, user_id, day, usd_micros, tokens, open)
    select saved.tenant, saved.id, p.call, saved.user_id, (now() at time zone 'UTC')::date, p.usd_micros, p.tokens,
        p.open
    from unnest($54::bigint[], $55::text[], $56::bigint[], $57::bigint[], $58::boolean[])
        as p (n, call, usd_micros, tokens, open)
    join saved using (n)
    on conflict (tenant, run_id, call) do update
        set usd_micros = r.usd_micros + excluded.usd_micros, tokens = r.tokens + excluded.tokens, open = excluded.open
), starving as (
    insert into day_wait (tenant, run_id, wait, user_id, usd_micros, tokens)
    select saved.tenant, saved.id, s.wait, saved.user_id, s.usd_micros, s.tokens
    from unnest($59::bigint[], $60::text[], $61::bigint[], $62::bigint[]) as s (n, wait, usd_micros, tokens)
    join saved using (n)
    on conflict do nothing
)
"""
"""It goes before the last part of COMMIT, and takes the arguments that follow those."""


def arrays(commits: list[Commit]) -> list[Any]:
    """The arrays that SETTLE takes, column by column."""
    numbered = list(enumerate(commits, 1))
    paid = [(n, one.call, one.usd_micros, one.tokens, one.open) for n, commit in numbered for one in commit.paid]
    starved = [
        (n, one.wait, one.held.usd_micros, one.held.input_tokens + one.held.output_tokens)
        for n, commit in numbered
        for one in commit.starved
    ]
    return [*(list(zip(*paid, strict=True)) or [()] * 5), *(list(zip(*starved, strict=True)) or [()] * 4)]
