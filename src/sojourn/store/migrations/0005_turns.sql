-- Whose turn it is: tenants take turns at the workers, and hold no more runs at once than they may.
--
--   run.ready          a worker may take it now: its `due_at` has come. What is due later is made ready by whoever looks
--   run.needs          the level that a release must have to read the run, its mail and its agents; worker.reads is the
--                      level of the worker's release, see loop/moving/levels.py. Older releases write and ask for none
--   tenant.runs_max    how many of its runs may be held at once, and queued_max how many may be queued; null: the settings
--   agent.runs_max     the same for the runs of one agent of any version; null: no limit of its own
--   call_share         how many calls of a provider each worker may have on their way at once
--   claim_room()       how many more runs of a tenant may be held now
--
-- A release that does not know `ready` keeps working: what it makes due is made ready by the next worker that looks. Its
-- own claims keep no limits, and read the table for want of run_due: it would be taken for run_ready's equal.
-- Three of the indexes below are of no row that has ended; to build them reads the table once, about a second for a
-- million runs, and writers wait for so long.

alter table run add column ready boolean not null default false, add column needs integer not null default 0;
alter table worker add column reads integer not null default 0;
alter table tenant
    add column runs_max integer check (runs_max >= 0),
    add column queued_max integer check (queued_max >= 0);
alter table agent add column runs_max integer check (runs_max >= 1);

drop index run_due;
create index run_ready on run (tenant, priority desc, due_at) where ready and due_at is not null;
create index run_timer on run (due_at) where due_at is not null and not ready;
create index run_held on run (tenant, agent_name) where lease_worker is not null;
create index agent_limited on agent (tenant) where runs_max is not null;

create table call_share (
    provider  text not null,
    worker    text not null,
    needs     integer not null check (needs >= 0),
    slots     integer not null check (slots >= 0),
    fed_at    timestamptz not null,
    until     timestamptz not null,
    primary key (provider, worker)
);
comment on column call_share.needs is 'calls on their way and calls that wait; `slots` is how many may be on their way';
comment on column call_share.until is 'the worker gives its slots up before, unless it has said again that it lives';

-- The room for more held runs of a tenant, under the empty name, and of each of its agents that have a limit, under
-- theirs. No room while another claim decides the same: the lock lasts until its runs are seen to be held.
create function claim_room(of_tenant text, of_runs_max integer) returns jsonb
language plpgsql volatile set search_path = pg_catalog, public, pg_temp as $$
begin
    if not pg_try_advisory_xact_lock(x'504a0003'::integer, hashtext(of_tenant)) then
        return '{"": 0}';
    end if;
    return ( -- counted only now: this statement sees what was claimed until the lock was ours
        select jsonb_build_object('', greatest(0, coalesce(of_runs_max, 1000000) - (
            select count(*) from run where tenant = of_tenant and lease_worker is not null
        ))) || coalesce(jsonb_object_agg(a.name, greatest(0, a.runs_max - (
            select count(*) from run where tenant = of_tenant and agent_name = a.name and lease_worker is not null
        ))) filter (where a.name is not null), '{}')
        from agent a where a.tenant = of_tenant and a.runs_max is not null
    );
end $$;

grant execute on function claim_room to sojourn_engine;
grant insert (ready, needs), update (ready, needs) on run to sojourn_api;
grant update (ready, needs) on run to sojourn_engine;
grant update (runs_max) on agent to sojourn_api;
grant select (id, runs_max) on tenant to sojourn_engine;
grant select (tenant, name, runs_max) on agent to sojourn_engine;
grant select, insert, update, delete on call_share to sojourn_engine;
grant update (runs_max, queued_max) on tenant to sojourn_keyring;
grant select (status, due_at, ready, agent_name) on run to sojourn_keyring;
create policy engine on tenant for select to sojourn_engine using (true);
create policy engine on agent for select to sojourn_engine using (true);
