-- What a tenant and each of its users may spend in a day, of UTC by this server's clock, over all runs and workers.
--
--   tenant       the operator's bounds: of the tenant, and of each of its users; null means what the settings say
--   day_limit    bounds of the tenant's own admin beside them; the lesser one holds
--   reservation  what a model call in flight may cost at most; once it is closed, what it did cost
--   day_account  what closed reservations of a day came to, by user, and under the empty name for all of the tenant
--   day_wait     the runs that wait until a pool has room for their next call
--
-- A worker reserves before it calls, under a lock of the tenant that it holds for moments; the commit that pays closes
-- the reservation, and touches no row of another run; whoever reserves next adds what is closed to the day. So a sum is
-- never kept in two places. A reservation counts for the day on which it was made. The rule: none outlives its run,
-- whoever ends it: the database itself drops what is open once a run is neither queued nor running.

grant create on schema public to sojourn_keyring; -- until the end of this file

alter table tenant
    add column usd_day_micros bigint check (usd_day_micros >= 0),
    add column tokens_day bigint check (tokens_day >= 0),
    add column user_usd_day_micros bigint check (user_usd_day_micros >= 0),
    add column user_tokens_day bigint check (user_tokens_day >= 0),
    add column day_limited boolean not null default false;
comment on column tenant.day_limited is 'its admin set bounds: day_limit has some';

create table day_limit (
    tenant      text not null references tenant,
    whose       text not null check (whose in ('tenant', 'users', 'user')),
    user_id     text not null default '' check (user_id ~ '^[^|[:cntrl:]]{0,200}$'),
    usd_micros  bigint check (usd_micros >= 0),
    tokens      bigint check (tokens >= 0),
    set_by      text not null,
    set_at      timestamptz not null default now(),
    primary key (tenant, whose, user_id),
    constraint day_limit_user check ((whose = 'user') = (user_id <> ''))
);
comment on column day_limit.whose is 'users: each of them for whom there is no row of its own';

create table reservation (
    tenant           text not null,
    run_id           text not null,
    call             text not null,
    user_id          text not null,
    day              date not null,
    held_usd_micros  bigint not null default 0,
    held_tokens      bigint not null default 0,
    usd_micros       bigint not null default 0,
    tokens           bigint not null default 0,
    open             boolean not null default true,
    primary key (tenant, run_id, call)
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
comment on column reservation.call is 'frame, step and attempt of the model call';

create table day_account (
    tenant      text not null,
    day         date not null,
    user_id     text not null,
    usd_micros  bigint not null default 0,
    tokens      bigint not null default 0,
    primary key (tenant, day, user_id)
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

create table day_wait (
    tenant      text not null,
    run_id      text not null,
    wait        text not null,
    user_id     text not null,
    usd_micros  bigint not null,
    tokens      bigint not null,
    since       timestamptz not null default clock_timestamp(),
    primary key (tenant, run_id, wait)
);
comment on column day_wait.usd_micros is 'what the call that was not made may cost at most';

do $$
declare
    one text;
begin
    foreach one in array array['day_limit', 'reservation', 'day_account', 'day_wait'] loop
        execute format('alter table %I enable row level security, force row level security', one);
        execute format('create policy engine on %I to sojourn_engine using (true)', one);
        if one <> 'day_wait' then
            execute format('create policy tenant on %I to sojourn_api using (tenant = (select scope_tenant()))', one);
        end if;
    end loop;
end $$;
create policy own on day_limit as restrictive for insert to sojourn_api with check (set_by = (select scope_user()));

grant select on day_limit, reservation, day_account to sojourn_api;
grant insert, update (usd_micros, tokens, set_by, set_at) on day_limit to sojourn_api;
grant select on day_limit to sojourn_engine;
grant select, insert, update, delete on reservation, day_account, day_wait to sojourn_engine;
grant select (usd_day_micros, tokens_day, user_usd_day_micros, user_tokens_day, day_limited) on tenant to sojourn_engine;
grant select (tenant, at, user_id, input, cache_read, cache_write, output, usd_micros) on ledger to sojourn_engine;
grant update (usd_day_micros, tokens_day, user_usd_day_micros, user_tokens_day, day_limited) on tenant to sojourn_keyring;
grant select on day_limit to sojourn_keyring;
create policy keyring on day_limit for select to sojourn_keyring using (true);

create function drop_reservations() returns trigger language plpgsql as $$
begin
    delete from reservation where tenant = new.tenant and run_id = new.id and open;
    return null;
end $$;
create trigger drop_reservations after update of status on run for each row
    when (new.status not in ('queued', 'running') and new.status <> old.status) execute function drop_reservations();

-- Who begins a run or drives one asks a row that it has at hand whether there are pools.
create function note_day_limits() returns trigger
language plpgsql security definer set search_path = pg_catalog, public, pg_temp as $$
begin
    update tenant t set day_limited = exists (
        select from day_limit l where l.tenant = t.id and coalesce(l.usd_micros, l.tokens) is not null
    ) where t.id = new.tenant;
    return null;
end $$;
create trigger note_day_limits after insert or update on day_limit for each row execute function note_day_limits();

-- What binds a call of this user. `defaults` are the settings': of the tenant in micro-USD and in tokens, and of each user.
create function day_bounds(of_tenant text, of_user text, defaults bigint[])
returns table (pool text, user_id text, usd_max bigint, tokens_max bigint) language sql stable as $$
    select 'tenant', '', least(coalesce(t.usd_day_micros, defaults[1]), l.usd_micros),
        least(coalesce(t.tokens_day, defaults[2]), l.tokens)
    from tenant t left join day_limit l on l.tenant = t.id and l.whose = 'tenant'
    where t.id = of_tenant
    union all
    select 'user', of_user,
        least(coalesce(t.user_usd_day_micros, defaults[3]), coalesce(own.usd_micros, l.usd_micros)),
        least(coalesce(t.user_tokens_day, defaults[4]), coalesce(own.tokens, l.tokens))
    from tenant t left join day_limit l on l.tenant = t.id and l.whose = 'users'
    left join day_limit own on own.tenant = t.id and own.whose = 'user' and own.user_id = of_user
    where t.id = of_tenant
$$;

-- The pools that a call of this user is paid from, with what was spent of them today and what is held. What is held for
-- the calls `but` of a run is left out. What was paid before a pool was first asked today (`base`) is in the ledger alone;
-- once there was one on the day before, all of today goes through reservations.
create function day_pools(of_tenant text, of_user text, defaults bigint[], of_run text default '', but text[] default '{}')
returns table (
    pool text, user_id text, until timestamptz, usd_max bigint, tokens_max bigint, usd bigint, tokens bigint,
    held_usd bigint, held_tokens bigint, base_usd bigint, base_tokens bigint
) language sql volatile as $$
    with clock as materialized (
        select (clock_timestamp() at time zone 'UTC')::date as today
    )
    select b.pool, b.user_id, (today + 1)::timestamp at time zone 'UTC', b.usd_max, b.tokens_max,
        base.usd + r.usd, base.tokens + r.tokens, r.held_usd, r.held_tokens, base.usd, base.tokens
    from clock cross join day_bounds(of_tenant, of_user, defaults) b
    left join day_account s on s.tenant = of_tenant and s.day = today and s.user_id = b.user_id
    cross join lateral (
        select coalesce(sum(o.usd_micros), 0)::bigint as usd, coalesce(sum(o.tokens), 0)::bigint as tokens,
            coalesce(sum(greatest(0, o.held_usd_micros - o.usd_micros)) filter (where o.open and not mine), 0)::bigint
                as held_usd,
            coalesce(sum(greatest(0, o.held_tokens - o.tokens)) filter (where o.open and not mine), 0)::bigint
                as held_tokens
        from (
            select *, x.run_id = of_run and x.call = any(but) as mine from reservation x
            where x.tenant = of_tenant and x.day = today and b.user_id in ('', x.user_id)
        ) as o
    ) as r
    cross join lateral (
        select coalesce(sum(l.usd_micros), 0)::bigint as usd,
            coalesce(sum(l.input + l.cache_read + l.cache_write + l.output), 0)::bigint as tokens
        from ledger l
        where s.day is null and l.tenant = of_tenant and l.at >= today::timestamp at time zone 'UTC'
            and b.user_id in ('', l.user_id) and not exists (
                select from day_account y where y.tenant = of_tenant and y.day = today - 1 and y.user_id = b.user_id
            )
    ) as paid
    cross join lateral (
        select coalesce(s.usd_micros, greatest(0, paid.usd - r.usd)) as usd,
            coalesce(s.tokens, greatest(0, paid.tokens - r.tokens)) as tokens
    ) as base
$$;

-- Begin a day of a tenant and a user, and add to the days what was closed.
create function day_opened(of_tenant text, of_user text) returns void language plpgsql volatile as $$
declare
    today date := (clock_timestamp() at time zone 'UTC')::date;
begin
    insert into day_account (tenant, day, user_id, usd_micros, tokens)
    select distinct of_tenant, today, p.user_id, p.base_usd, p.base_tokens
    from (
        select of_user as id
        union select r.user_id from reservation r where r.tenant = of_tenant and r.day = today and not r.open
    ) as who
    cross join lateral day_pools(of_tenant, who.id, '{}') as p
    where not exists (select from day_account s where s.tenant = of_tenant and s.day = today and s.user_id = who.id)
    on conflict do nothing;
    if found then
        delete from day_account where tenant = of_tenant and day < today - 1;
    end if;
    with closed as (
        delete from reservation where tenant = of_tenant and not open returning user_id, day, usd_micros, tokens
    )
    insert into day_account as s (tenant, day, user_id, usd_micros, tokens)
    select of_tenant, closed.day, who.id, sum(closed.usd_micros), sum(closed.tokens)
    from closed cross join lateral (values (''), (closed.user_id)) as who (id)
    group by closed.day, who.id
    on conflict (tenant, day, user_id) do update
        set usd_micros = s.usd_micros + excluded.usd_micros, tokens = s.tokens + excluded.tokens;
end $$;

-- Set aside what a model call may cost at most, in every pool that it is paid from, or say why not. `usd` is null where
-- the price is not known. `ending` are calls of the same run that its next commit closes, and `owed` what it pays. The
-- lock is held for no disk: the commit that announces the call comes later in the same log, and waits for both.
create function reserve_day(
    of_worker text, of_tenant text, of_run text, of_fence bigint, of_call text, usd bigint, tokens bigint, ending text[],
    owed_usd bigint, owed_tokens bigint, defaults bigint[],
    out verdict text, out pool text, out measure text, out bound bigint, out until timestamptz
) language plpgsql volatile as $$
declare
    who text;
begin
    select r.user_id into who from run r
    where r.tenant = of_tenant and r.id = of_run and r.fence = of_fence and r.lease_worker = of_worker;
    if who is null then
        verdict := 'lost';
        return;
    end if;
    perform set_config('synchronous_commit', 'off', true);
    perform pg_advisory_xact_lock(x'504a0017'::integer, hashtext(of_tenant));
    perform day_opened(of_tenant, who);
    select v.said, p.pool, m.name, m.bound, p.until into verdict, pool, measure, bound, until
    from day_pools(of_tenant, who, defaults, of_run, array_append(ending, of_call)) as p
    cross join lateral (values
        ('usd', p.usd_max, p.usd + owed_usd, p.held_usd, reserve_day.usd),
        ('tokens', p.tokens_max, p.tokens + owed_tokens, p.held_tokens, reserve_day.tokens)
    ) as m (name, bound, used, held, want)
    cross join lateral (
        select case
            when m.want is null then 'price'
            when m.used + m.want > m.bound then 'exhausted'
            when m.used + m.held + m.want > m.bound then 'later'
            else 'held'
        end as said
    ) as v
    where m.bound is not null
    order by array_position(array['price', 'exhausted', 'later', 'held'], v.said), p.pool, m.name
    limit 1;
    if coalesce(verdict, 'held') = 'held' then
        insert into reservation as r (tenant, run_id, call, user_id, day, held_usd_micros, held_tokens)
        values (of_tenant, of_run, of_call, who, (clock_timestamp() at time zone 'UTC')::date, coalesce(usd, 0), tokens)
        on conflict (tenant, run_id, call) do update set day = excluded.day, open = true,
            held_usd_micros = excluded.held_usd_micros, held_tokens = excluded.held_tokens;
        verdict := 'held';
    end if;
end $$;

-- Take out of the line the runs of a tenant whose next calls fit into the room that there is, the first ones first, and
-- those that wait no longer.
create function day_fed(of_tenant text, defaults bigint[]) returns table (run_id text, wait text)
language plpgsql volatile as $$
#variable_conflict use_column
begin
    if not pg_try_advisory_xact_lock(x'504a0017'::integer, hashtext(of_tenant)) then
        return;
    end if;
    return query
    with line as (
        select w.*, row_number() over (order by w.since, w.run_id, w.wait) as place, exists (
            select from run r where r.tenant = w.tenant and r.id = w.run_id and r.status = 'suspended'
                and position(w.wait in r.waits::text) > 0
        ) as waiting
        from (select * from day_wait where tenant = of_tenant order by since, run_id, wait limit 200) as w
    ), room as (
        select l.user_id,
            min(coalesce(p.usd_max - p.usd - p.held_usd, 9e18)) filter (where p.pool = 'tenant') as usd,
            min(coalesce(p.tokens_max - p.tokens - p.held_tokens, 9e18)) filter (where p.pool = 'tenant') as tokens,
            min(coalesce(p.usd_max - p.usd - p.held_usd, 9e18)) filter (where p.pool = 'user') as own_usd,
            min(coalesce(p.tokens_max - p.tokens - p.held_tokens, 9e18)) filter (where p.pool = 'user') as own_tokens
        from (select distinct line.user_id from line where line.waiting) as l
        cross join lateral day_pools(of_tenant, l.user_id, defaults) as p
        group by l.user_id
    ), fitting as (
        select line.run_id, line.wait, room.*, sum(line.usd_micros) over (order by place) as usd_all,
            sum(line.tokens) over (order by place) as tokens_all,
            sum(line.usd_micros) over (partition by line.user_id order by place) as usd_own,
            sum(line.tokens) over (partition by line.user_id order by place) as tokens_own
        from line join room using (user_id)
        where waiting and line.usd_micros <= least(room.usd, own_usd) and line.tokens <= least(room.tokens, own_tokens)
    ), gone as (
        delete from day_wait d using line
        where d.tenant = of_tenant and d.run_id = line.run_id and d.wait = line.wait and (not waiting or exists (
            select from fitting f where f.run_id = line.run_id and f.wait = line.wait and usd_all <= f.usd
                and usd_own <= own_usd and tokens_all <= f.tokens and tokens_own <= own_tokens
        ))
        returning d.run_id, d.wait, waiting, place
    )
    select gone.run_id, gone.wait from gone where waiting order by place;
end $$;

grant execute on function day_bounds, day_pools to sojourn_api, sojourn_engine;
grant execute on function day_opened, reserve_day, day_fed to sojourn_engine;
alter function note_day_limits owner to sojourn_keyring;
revoke create on schema public from sojourn_keyring;
