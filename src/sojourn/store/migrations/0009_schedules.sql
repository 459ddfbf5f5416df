-- Runs that begin later: one at a time (run.start_at), and again and again (schedule).
--
--   schedule   what to run and when; `since` is the time up to which every fire is dealt with
--   fire       finds the runs of a schedule, and keeps a time from being fired twice
--
-- A schedule has `due_at` exactly while it is to be looked at, now or later. The API's processes take due ones with
-- due_schedule(), which locks the row, so a fire is one transaction of one of them: the run, its fire, and the new
-- `since`. The rule: a schedule acts as the key that made, changed or resumed it last, and as no other; it stops with it.

grant create on schema public to sojourn_keyring; -- until the end of this file

alter table run add column start_at timestamptz, add column schedule text, add column fire_at timestamptz;
comment on column run.start_at is 'no worker takes it before; null where it was to begin at once';
comment on column run.fire_at is 'null where somebody fired the schedule out of turn';
grant insert (start_at, schedule, fire_at) on run to sojourn_api;

create table schedule (
    tenant        text not null references tenant,
    name          text not null check (name ~ '^[!-~]{1,100}$'),
    user_id       text not null,
    key_id        text not null,
    spec          json not null,
    created_at    timestamptz not null default now(),
    since         timestamptz not null,
    next_at       timestamptz,
    due_at        timestamptz,
    paused_at     timestamptz,
    tries         integer not null default 0,
    last_fire_at  timestamptz,
    last_run_id   text,
    error_code    text,
    error_detail  text,
    error_at      timestamptz,
    fired         bigint not null default 0,
    missed        bigint not null default 0,
    skipped       bigint not null default 0,
    refused       bigint not null default 0,
    primary key (tenant, name)
) with (fillfactor = 80);
create index schedule_due on schedule (due_at) where due_at is not null;

create table fire (
    tenant    text not null,
    id        text not null,
    schedule  text not null,
    fire_at   timestamptz,
    primary key (tenant, id),
    foreign key (tenant, id) references run on delete cascade
);
comment on column fire.id is 'the run';
create unique index fire_once on fire (schedule, fire_at, tenant);

alter table schedule enable row level security, force row level security;
alter table fire enable row level security, force row level security;
create policy tenant on schedule to sojourn_api using (tenant = (select scope_tenant()));
create policy tenant on fire to sojourn_api using (tenant = (select scope_tenant()));
create policy own on schedule as restrictive for insert to sojourn_api
    with check (user_id = (select scope_user()) and key_id = (select (scope())[3]));
create policy keyring on schedule to sojourn_keyring using (true);

grant select, delete on schedule to sojourn_api;
grant insert (tenant, name, user_id, key_id, spec, created_at, since, next_at, due_at, paused_at) on schedule to sojourn_api;
grant update (spec, since, next_at, due_at, paused_at, tries, last_fire_at, last_run_id, error_code, error_detail,
    error_at, fired, missed, skipped, refused) on schedule to sojourn_api;
grant select, insert on fire to sojourn_api;
grant select (tenant, name, user_id, key_id, due_at) on schedule to sojourn_keyring;
grant update (user_id, key_id, next_at, due_at, paused_at, error_code, error_detail, error_at) on schedule to sojourn_keyring;

-- ---- doors ------------------------------------------------------------------------------------

-- Lock the schedule that has been due for longest and lend one minute in its tenant, as the key that it acts as. One
-- whose key has ended is paused, and lends nothing. The scope names no key, so it manages none.
create function due_schedule()
returns table (tenant text, name text, user_id text, key_id text, scopes text[], handle text, now_at timestamptz)
language plpgsql security definer set search_path = pg_catalog, public, pg_temp as $$
declare
    due record;
    key api_key;
begin
    select s.tenant, s.name, s.user_id, s.key_id into due from schedule s where s.due_at <= clock_timestamp()
    order by s.due_at limit 1 for no key update skip locked;
    if due.name is null then
        return;
    end if;
    select * into key from api_key k
    where k.tenant = due.tenant and k.id = due.key_id and k.revoked_at is null
        and (k.expires_at is null or k.expires_at > clock_timestamp());
    if key.id is null then
        update schedule s set paused_at = clock_timestamp(), next_at = null, due_at = null, error_at = clock_timestamp(),
            error_code = 'schedule.key_ended',
            error_detail = 'The key ' || due.key_id || ' was revoked or has expired. Resume the schedule with another one.'
        where s.tenant = due.tenant and s.name = due.name;
    end if;
    return query select due.tenant, due.name, due.user_id, due.key_id, key.scopes,
        case when key.id is not null then scope_mint(due.tenant, due.user_id, '', now() + interval '1 minute') end,
        clock_timestamp();
end $$;

-- When a schedule of any tenant is due next.
create function next_schedule_at() returns timestamptz
language sql stable security definer set search_path = pg_catalog, public, pg_temp as $$
    select min(due_at) from schedule where due_at is not null
$$;

-- Let a schedule act as the caller's key from now on; false where there is no such schedule, or the key has ended.
create function take_schedule(schedule_name text) returns boolean
language sql security definer set search_path = pg_catalog, public, pg_temp as $$
    with taken as (
        update schedule s set user_id = k.user_id, key_id = k.id from api_key k
        where s.tenant = (scope())[1] and s.name = schedule_name
            and k.tenant = s.tenant and k.id = (scope())[3] and k.revoked_at is null
        returning 1
    )
    select exists (select from taken)
$$;

grant execute on function due_schedule, next_schedule_at, take_schedule to sojourn_api;
do $$
declare
    one text;
begin
    foreach one in array array['due_schedule', 'next_schedule_at', 'take_schedule'] loop
        execute format('alter function %I owner to sojourn_keyring', one);
    end loop;
end $$;
revoke create on schema public from sojourn_keyring;
