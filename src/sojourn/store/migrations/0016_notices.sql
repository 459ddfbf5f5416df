-- What tenants are told without asking: webhooks, and the alerts that operators and tenants want to hear of.
--
--   webhook            where a tenant wants events sent, which ones, and the secret that they are signed with
--   webhook_delivery   one message for one webhook: it has `due_at` exactly while it is still to be sent
--   alert              something that somebody should look at: open, then closed
--   spend_day          what a user, an agent and a tenant spent on a day that is over
--   alert_round        when the alerts are looked for next; who moves it on does it
--
-- Whoever ends or suspends a run, or opens an alert, writes the deliveries in the same transaction: triggers do it, so no
-- way out can forget it, and a tenant without webhooks pays one look into an index. Workers send. The rules: the secret
-- leaves the database once, in the answer that makes it, for sign_delivery() signs inside; a webhook has at most 5,000
-- deliveries that wait; whoever locks a webhook and its deliveries locks the webhook first.

grant create on schema public to sojourn_keyring; -- until the end of this file

create table webhook (
    tenant         text not null references tenant,
    id             text not null check (id ~ '^whk_[0-9A-Za-z]{16,40}$'),
    url            text not null check (length(url) <= 2048),
    events         text[] not null check (cardinality(events) between 1 and 32),
    description    text not null default '',
    secret         bytea not null check (length(secret) = 32),
    made_by        text not null,
    created_at     timestamptz not null default now(),
    disabled_at    timestamptz,
    disabled_code  text check (disabled_code in ('caller', 'gone', 'failing')),
    failures       integer not null default 0,
    failing_since  timestamptz,
    rest_until     timestamptz not null default '-infinity',
    primary key (tenant, id),
    constraint webhook_disabled check ((disabled_at is null) = (disabled_code is null))
) with (fillfactor = 80);
comment on column webhook.rest_until is 'a worker sends to it, or it failed and is left alone for a while';
comment on column webhook.failures is 'since it last took anything';

create table webhook_delivery (
    tenant        text not null,
    id            text not null check (id ~ '^msg_[0-9A-Za-z]{16,40}$'),
    webhook_id    text not null,
    type          text not null,
    body          text not null,
    created_at    timestamptz not null default now(),
    due_at        timestamptz,
    attempts      integer not null default 0,
    tries         integer not null default 0,
    attempted_at  timestamptz,
    delivered_at  timestamptz,
    dead_at       timestamptz,
    status        integer,
    error         text,
    primary key (tenant, id),
    foreign key (tenant, webhook_id) references webhook on delete cascade,
    constraint webhook_delivery_stands check (num_nonnulls(due_at, delivered_at, dead_at) = 1)
) with (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05);
alter table webhook_delivery alter body set storage external;
comment on column webhook_delivery.attempts is 'all of them: each has its number; `tries` are those since it was last asked for';
create index webhook_delivery_due on webhook_delivery (tenant, webhook_id, due_at) where due_at is not null;
create index webhook_delivery_of on webhook_delivery (tenant, webhook_id, id);
create index webhook_delivery_made on webhook_delivery (created_at);

create table alert (
    tenant     text not null references tenant,
    id         text not null check (id ~ '^alr_[0-9A-Za-z]{16,40}$'),
    kind       text not null check (kind ~ '^[a-z]{1,20}$'),
    what       text not null check (what in ('tenant', 'user', 'agent', 'webhook')),
    subject    text not null default '',
    day        date,
    value      bigint not null,
    bound      bigint not null,
    detail     text not null,
    opened_at  timestamptz not null,
    closed_at  timestamptz,
    acked_at   timestamptz,
    acked_by   text,
    primary key (tenant, id)
);
comment on column alert.day is 'of what is told once a day (UTC); null for what is told once until it is over';
create unique index alert_open on alert (kind, what, subject, tenant) where closed_at is null and day is null;
create unique index alert_of_day on alert (day, kind, what, subject, tenant) where day is not null;
create index alert_opened on alert (opened_at);

create table spend_day (
    tenant      text not null references tenant,
    day         date not null,
    what        text not null,
    subject     text not null,
    usd_micros  bigint not null,
    primary key (tenant, day, what, subject)
);

create table alert_round (
    one     boolean primary key default true check (one),
    due_at  timestamptz not null
);
insert into alert_round (due_at) values ('-infinity');

-- For the error rate of the last hour: an entry is made once, when a run ends.
create index run_ended on run (finished_at) where finished_at is not null;

do $$
declare
    one text;
begin
    foreach one in array array['webhook', 'webhook_delivery', 'alert'] loop
        execute format('alter table %I enable row level security, force row level security', one);
        execute format('create policy tenant on %I to sojourn_api using (tenant = (select scope_tenant()))', one);
        execute format('create policy engine on %I to sojourn_engine using (true)', one);
    end loop;
end $$;
alter table spend_day enable row level security, force row level security;
create policy engine on spend_day to sojourn_engine using (true);
create policy keyring on webhook to sojourn_keyring using (true);
create policy keyring on webhook_delivery to sojourn_keyring using (true);
create policy own on webhook as restrictive for insert to sojourn_api with check (made_by = (select scope_user()));

grant select (tenant, id, url, events, description, made_by, created_at, disabled_at, disabled_code, failures,
    failing_since, rest_until) on webhook to sojourn_api, sojourn_engine;
grant insert (tenant, id, url, events, description, secret, made_by) on webhook to sojourn_api;
grant update (url, events, description, disabled_at, disabled_code, failures, failing_since, rest_until)
    on webhook to sojourn_api;
grant delete on webhook to sojourn_api;
grant update (disabled_at, disabled_code, failures, failing_since, rest_until) on webhook to sojourn_engine;
grant select on webhook_delivery to sojourn_api, sojourn_engine;
grant insert (tenant, id, webhook_id, type, body, due_at) on webhook_delivery to sojourn_api;
grant update (due_at, tries, delivered_at, dead_at, error) on webhook_delivery to sojourn_api;
grant update (due_at, attempts, tries, attempted_at, delivered_at, dead_at, status, error), delete
    on webhook_delivery to sojourn_engine;
grant select on alert to sojourn_api, sojourn_engine;
grant update (acked_at, acked_by) on alert to sojourn_api;
grant insert, update (closed_at), delete on alert to sojourn_engine;
grant select, insert, delete on spend_day to sojourn_engine;
grant select, update on alert_round to sojourn_engine;
grant select (tenant, at, user_id, agent_name, usd_micros) on ledger to sojourn_engine;
grant select (tenant, id, events, disabled_at, secret) on webhook to sojourn_keyring;
grant select (tenant, id, webhook_id, due_at, body) on webhook_delivery to sojourn_keyring;
grant insert (tenant, id, webhook_id, type, body, due_at) on webhook_delivery to sojourn_keyring;

-- ---- no event without its deliveries -----------------------------------------------------------

-- A fresh, time-ordered id.
create function fresh_id(prefix text) returns text language sql volatile as $$
    select prefix || '_' || lpad(to_hex((extract(epoch from clock_timestamp()) * 1000)::bigint), 12, '0')
        || substr(replace(gen_random_uuid()::text, '-', ''), 1, 20)
$$;

create function utc_text(at timestamptz) returns text language sql stable as $$
    select to_char(at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
$$;

-- Whether a webhook wants an event of this type.
create function wants(events text[], type text) returns boolean language sql immutable as $$
    select events && array[type, split_part(type, '.', 1) || '.*', '*']
$$;

-- Write what the tenant's webhooks are to be sent; one that has 5,000 waiting gets no more.
create function announce(of_tenant text, about text, data json) returns void
language sql volatile set search_path = pg_catalog, public, pg_temp as $$
    insert into webhook_delivery (tenant, id, webhook_id, type, body, due_at)
    select w.tenant, fresh_id('msg'), w.id, about,
        json_build_object('type', about, 'timestamp', utc_text(now()), 'data', data)::text, now()
    from webhook w
    where w.tenant = of_tenant and w.disabled_at is null and wants(w.events, about) and (
        select count(*) from (
            select from webhook_delivery d
            where d.tenant = w.tenant and d.webhook_id = w.id and d.due_at is not null limit 5000
        ) as waiting
    ) < 5000
$$;

-- The waits of a run by id and kind; what they ask is read through the API. The words in it may be anything.
create function named_waits(waits json) returns json language plpgsql stable as $$
begin
    return (
        select json_agg(json_build_object('id', wait ->> 'id', 'kind', wait ->> 'kind'))
        from json_array_elements(waits) as wait
    );
exception when others then
    return null;
end $$;

create function announce_run() returns trigger
language plpgsql security definer set search_path = pg_catalog, public, pg_temp as $$
begin
    perform from webhook w
    where w.tenant = new.tenant and w.disabled_at is null and wants(w.events, 'run.' || new.status);
    if found then
        perform announce(new.tenant, 'run.' || new.status, json_build_object(
            'run_id', new.id, 'session_id', new.session_id, 'user_id', new.user_id, 'agent', new.agent_name,
            'version', new.agent_version, 'status', new.status, 'error', new.error_code, 'steps', new.steps,
            'usd_micros', new.usd_micros, 'labels', new.labels, 'schedule', new.schedule,
            'waits', case when new.status = 'suspended' then named_waits(new.waits) end
        ));
    end if;
    return null;
end $$;
create trigger announced after update of status on run for each row
    when (new.status is distinct from old.status
        and new.status in ('completed', 'failed', 'cancelled', 'suspended', 'quarantined'))
    execute function announce_run();

create function announce_alert() returns trigger
language plpgsql security definer set search_path = pg_catalog, public, pg_temp as $$
begin
    perform announce(new.tenant, 'alert.' || new.kind, json_build_object(
        'alert_id', new.id, 'kind', new.kind, 'what', new.what, 'subject', new.subject, 'value', new.value,
        'bound', new.bound, 'detail', new.detail, 'opened_at', utc_text(new.opened_at)
    ));
    return null;
end $$;
create trigger announced after insert on alert for each row execute function announce_alert();

-- ---- doors -------------------------------------------------------------------------------------

-- The signature of a delivery that is sent at that second: the only use of a webhook's secret.
-- Source: Standard Webhooks 1.0.0, symmetric signatures.
create function sign_delivery(of_tenant text, delivery_id text, sent_s bigint) returns text
language sql stable security definer set search_path = pg_catalog, public, pg_temp as $$
    select 'v1,' || encode(
        hmac_sha256(convert_to(d.id || '.' || sent_s || '.' || d.body, 'UTF8'), w.secret), 'base64'
    )
    from webhook_delivery d join webhook w on w.tenant = d.tenant and w.id = d.webhook_id
    where d.tenant = of_tenant and d.id = delivery_id
$$;

grant execute on function fresh_id to sojourn_engine, sojourn_api;
grant execute on function sign_delivery to sojourn_engine;
do $$
declare
    one text;
begin
    foreach one in array array[
        'fresh_id', 'utc_text', 'wants', 'announce', 'named_waits', 'announce_run', 'announce_alert', 'sign_delivery'
    ] loop
        execute format('alter function %I owner to sojourn_keyring', one);
    end loop;
end $$;
revoke create on schema public from sojourn_keyring;
