-- Stops and dead letters: what must not run, and what could not be driven.
--
--   stop           an order that stays in force until it is lifted: nothing that it names begins, and what goes on ends
--   stopped_run    the runs that a stop has hit
--   run            says of a dead letter since when it is one, how often it was claimed, and which workers lost it
--
-- The rule: no run is created under a stop, whoever creates it. Creating a run and making a stop exclude each other by
-- a lock, so of two that come at the same moment either the run is refused, or the stop finds it.

grant create on schema public to sojourn_keyring; -- until the end of this file

create table stop (
    tenant      text not null,
    id          text not null check (id ~ '^stp_[0-9A-Za-z]{16,40}$'),
    what        text not null check (what in ('run', 'session', 'agent', 'user', 'tenant', 'installation')),
    target      text not null default '',
    mode        text not null check (mode in ('cancel', 'hold')),
    reason      text not null default '',
    operator    boolean not null default false,
    made_by     text not null,
    created_at  timestamptz not null default now(),
    lifted_by   text,
    lifted_at   timestamptz,
    sweep_at    timestamptz not null default now(),
    done_at     timestamptz,
    primary key (tenant, id),
    constraint stop_tenant check (case what when 'installation' then tenant = '*' else tenant <> '*' end),
    constraint stop_target check ((target = '') = (what in ('tenant', 'installation'))),
    constraint stop_lifted check ((lifted_at is null) = (lifted_by is null))
);
comment on column stop.tenant is '* is every tenant';
comment on column stop.operator is 'made by the owner of the database: no key of the tenant lifts it';
comment on column stop.sweep_at is 'when a worker looks again at what is left; done_at: when nothing was left to be done';
create unique index stop_in_force on stop (tenant, what, target, mode, operator) where lifted_at is null;
create index stop_undone on stop (created_at) where done_at is null;

create table stopped_run (
    tenant    text not null,
    stop_id   text not null,
    run_id    text not null,
    told      boolean not null default false,
    released  boolean not null default false,
    hit_at    timestamptz not null default now(),
    primary key (tenant, stop_id, run_id)
);
create index stopped_run_of on stopped_run (tenant, run_id);
comment on column stopped_run.told is 'its worker was told; released: it went on once the stop was lifted';

alter table run
    add column lost_workers text[],
    add column quarantined_at timestamptz,
    add column quarantined_claims integer;
comment on column run.lost_workers is 'who held it and died or gave it back, since it last came any further';

do $$
declare
    one text;
begin
    foreach one in array array['stop', 'stopped_run'] loop
        execute format('alter table %I enable row level security, force row level security', one);
        execute format('create policy tenant on %I to sojourn_api using (tenant = (select scope_tenant()))', one);
        execute format('create policy engine on %I to sojourn_engine using (true)', one);
    end loop;
end $$;
create policy keyring on stop to sojourn_keyring using (true);
create policy keyring on stopped_run to sojourn_keyring using (true);
create policy own on stop as restrictive for insert to sojourn_api
    with check (not operator and made_by = (select scope_user()));
create policy liftable on stop as restrictive for update to sojourn_api using (not operator);

grant select on stop, stopped_run to sojourn_api;
grant insert (tenant, id, what, target, mode, reason, made_by) on stop to sojourn_api;
grant update (lifted_by, lifted_at, sweep_at, done_at) on stop to sojourn_api;
grant select on stop to sojourn_engine;
grant update (sweep_at, done_at) on stop to sojourn_engine;
grant select, insert, update on stopped_run to sojourn_engine;
grant insert (tenant, run_id, event) on inbox to sojourn_engine;
grant update (mail_last, lost_workers, quarantined_at, quarantined_claims) on run to sojourn_engine;
grant select, insert, update on stop to sojourn_keyring;
grant select (tenant, run_id), delete on stopped_run to sojourn_keyring;
grant select (seen_at) on worker to sojourn_keyring;

-- ---- no run is created under a stop ------------------------------------------------------------

-- Whoever makes a stop waits here for those who are creating runs, and they for it: two keys, for the tenant and for all.
create function stop_barrier() returns trigger language plpgsql as $$
begin
    perform pg_advisory_xact_lock(20555, hashtext(new.tenant));
    return new;
end $$;
create trigger barrier before insert on stop for each row execute function stop_barrier();

-- Every statement of a volatile function sees what was committed before it began: the look comes after the lock.
create function refuse_stopped() returns trigger
language plpgsql volatile security definer set search_path = pg_catalog, public, pg_temp as $$
declare
    found_stop stop;
begin
    perform pg_advisory_xact_lock_shared(20555, hashtext(new.tenant)), pg_advisory_xact_lock_shared(20555, hashtext('*'));
    select s.* into found_stop from stop s
    where s.lifted_at is null and s.tenant in (new.tenant, '*') and s.target = case s.what
        when 'run' then new.id when 'session' then new.session_id when 'agent' then new.agent_name
        when 'user' then new.user_id else '' end
    limit 1;
    if found_stop.id is not null then
        raise exception 'Stop % is in force for this %', found_stop.id,
                found_stop.what || coalesce(': ' || nullif(found_stop.reason, ''), '')
            using errcode = 'object_not_in_prerequisite_state', constraint = 'stop_in_force';
    end if;
    return new;
end $$;
create trigger stopped before insert on run for each row execute function refuse_stopped();
alter function refuse_stopped owner to sojourn_keyring;

-- When the worker that holds a run of the caller's tenant was last heard of; null where nobody holds it.
create function lease_heard_at(of_run text) returns timestamptz
language sql stable security definer set search_path = pg_catalog, public, pg_temp as $$
    select w.seen_at from run r join worker w on w.id = r.lease_worker
    where r.tenant = (scope())[1] and r.id = of_run
$$;
grant execute on function lease_heard_at to sojourn_api;
alter function lease_heard_at owner to sojourn_keyring;

-- What retention takes: as in 0006_retention.sql, and what stops know of the runs.
set local role sojourn_keyring;
create or replace function drop_runs(of_tenant text, ids text[]) returns void
language sql volatile set search_path = pg_catalog, public, pg_temp as $$
    insert into purge (tenant, run_id) select of_tenant, unnest(ids);
    delete from stopped_run where tenant = of_tenant and run_id = any(ids);
    delete from inbox where tenant = of_tenant and run_id = any(ids);
    delete from run where tenant = of_tenant and id = any(ids);
$$;
set local role sojourn_owner;

revoke create on schema public from sojourn_keyring;
