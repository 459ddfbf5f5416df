-- How often: what requests have taken of their rate limits, and the limits that an operator set for one tenant.
--
--   tenant.rates   {"CLASS.SUBJECT": {"max", "window_s", "burst"} or "off"}, in place of the settings; `rates_at` is when it
--                  last changed, so that the API's processes read what is new and nothing else
--   rate           for each subject (a tenant, a user, an agent) the time at which nothing that it took counts any more
--
-- The limit is GCRA: what is taken moves `full_at` on by `every`, from now where it lies behind, and must not move it
-- further than `burst` times `every` ahead. The rules: of all limits of a request, or of none; by this server's clock,
-- read under the lock; and nobody waits for the disk. The table is unlogged: after a crash, and on a server that was a
-- replica, all limits begin anew. A row whose time has passed says what no row says, and goes.

grant create on schema public to sojourn_keyring; -- until the end of this file

alter table tenant add column rates jsonb, add column rates_at timestamptz;
create index tenant_rates on tenant (rates_at) where rates_at is not null;

create unlogged table rate (
    tenant   text not null,
    class    text not null,
    subject  text not null check (subject in ('tenant', 'user', 'agent')),
    name     text not null,
    full_at  timestamptz not null,
    primary key (tenant, class, subject, name)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);
comment on column rate.name is 'the user or the agent; empty for the tenant as a whole';

alter table rate enable row level security, force row level security;
create policy keyring on rate to sojourn_keyring using (true);
create policy keyring on idempotency for select to sojourn_keyring using (true);
create policy keyring on agent for select to sojourn_keyring using (true);

grant select (rates, rates_at) on tenant to sojourn_engine;
grant update (rates, rates_at) on tenant to sojourn_keyring;
grant select, insert, update, delete on rate to sojourn_keyring;
grant select (tenant, user_id, key, route, request_digest, status, expires_at) on idempotency to sojourn_keyring;
grant select (tenant, name) on agent to sojourn_keyring;

-- Take one of every limit of each request; a request that one of its limits refuses takes of none. They come in the order
-- of tenant and class, in which the locks are taken, and name their limits in the order tenant, user, agent, null where
-- there is none. An agent that does not exist has no limit: its name is the caller's, and would fill the table. What was
-- answered before by the same Idempotency-Key takes nothing; an upload has no digest, and is known by its key and route.
--
-- The outcome is taken, refused or replayed; `debts_us` says for each limit how far `full_at` lies ahead now.
create function take_rates(asked json) returns table (outcome text, debts_us bigint[])
language plpgsql security definer set search_path = pg_catalog, public, pg_temp as $$
declare
    subjects constant text[] := array['tenant', 'user', 'agent'];
    names text[];
    now_at timestamptz;
    free_at timestamptz[];
    line text := '';
    one record;
begin
    perform set_config('synchronous_commit', 'off', true);
    for one in
        select * from json_to_recordset(asked) as a (
            tenant text, class text, "user" text, agent text, key text, route text, digest text, every_us bigint[],
            bursts bigint[]
        )
    loop
        if line <> one.tenant || ' ' || one.class then
            line := one.tenant || ' ' || one.class;
            perform pg_advisory_xact_lock(20556, hashtext(line));
            now_at := clock_timestamp();
        end if;
        names := array['', one."user", one.agent];
        free_at := array[null, null, null];
        outcome := 'taken';
        if one.every_us[3] is not null
            and not exists (select from agent a where a.tenant = one.tenant and a.name = one.agent) then
            one.every_us[3] := null;
        end if;
        if one.key is not null and exists (
            select from idempotency i
            where i.tenant = one.tenant and i.user_id = one."user" and i.key = one.key and i.route = one.route
                and i.request_digest = coalesce(one.digest, i.request_digest)
                and i.status is not null and i.expires_at > now_at
        ) then
            outcome := 'replayed';
        end if;
        for n in 1..3 loop
            continue when one.every_us[n] is null;
            free_at[n] := greatest(now_at, (
                select r.full_at from rate r
                where r.tenant = one.tenant and r.class = one.class and r.subject = subjects[n] and r.name = names[n]
            ));
            if outcome = 'taken' and free_at[n] - now_at > (one.bursts[n] - 1) * one.every_us[n] * interval '1 us' then
                outcome := 'refused';
            end if;
        end loop;
        for n in 1..3 loop
            debts_us[n] := null;
            continue when one.every_us[n] is null;
            if outcome = 'taken' then
                free_at[n] := free_at[n] + one.every_us[n] * interval '1 us';
                insert into rate (tenant, class, subject, name, full_at)
                values (one.tenant, one.class, subjects[n], names[n], free_at[n])
                on conflict (tenant, class, subject, name) do update set full_at = excluded.full_at;
            end if;
            debts_us[n] := extract(epoch from free_at[n] - now_at) * 1000000;
        end loop;
        return next;
    end loop;
end $$;

-- Forget whose time has passed, `most` at once; nobody waits for it.
create function expire_rates(most integer) returns integer
language sql security definer set search_path = pg_catalog, public, pg_temp as $$
    with past as (
        select tenant, class, subject, name from rate where full_at < now() limit most for update skip locked
    ), gone as (
        delete from rate r using past p
        where (r.tenant, r.class, r.subject, r.name) = (p.tenant, p.class, p.subject, p.name) returning 1
    )
    select count(*)::integer from gone
$$;

grant execute on function take_rates, expire_rates to sojourn_engine;
alter function take_rates owner to sojourn_keyring;
alter function expire_rates owner to sojourn_keyring;
revoke create on schema public from sojourn_keyring;
