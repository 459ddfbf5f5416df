-- Secrets at rest, and keys that are changed while they are used.
--
--   root_key   the ids of the root keys, never the keys: those are with the API's processes and the operator
--   data_key   a tenant's keys, each wrapped by a root key: at most one is current, which seals
--   secret     what a tenant's vault keeps, by name and version, sealed by a data key
--   seal_key   has its secret half sealed, where there is a root key; `secret` holds what was not sealed yet
--   hook_key   has an end: until then webhooks that are signed with it are good, beside those of the newest
--   end_keys() takes away what nothing can use any more
--
-- The rules: nothing here opens a seal, so what the database holds is good for nothing without a root key. Only an owner's
-- login ends a key; a transaction that chose a key before it was ended still finds it for an hour. Older releases go on:
-- to export with a key that is sealed they must be asked again, as if the database were away, until a newer one answers.

grant create on schema public to sojourn_keyring; -- until the end of this file

create table root_key (
    id          text primary key check (id ~ '^[0-9a-f]{16}$'),
    created_at  timestamptz not null default now(),
    ended_at    timestamptz
);
create unique index root_key_current on root_key ((true)) where ended_at is null;

create table data_key (
    tenant      text not null references tenant,
    id          text not null check (id ~ '^[A-Za-z0-9_-]{1,64}$'),
    root_key    text not null references root_key,
    wrapped     bytea not null check (length(wrapped) = 60),
    created_at  timestamptz not null default now(),
    ended_at    timestamptz,
    primary key (tenant, id)
);
create unique index data_key_current on data_key (tenant) where ended_at is null;

create table secret (
    tenant      text not null,
    name        text not null check (name ~ '^[!-~]{1,200}$'),
    version     integer not null check (version >= 1),
    data_key    text not null,
    sealed      bytea not null check (length(sealed) between 28 and 65564),
    created_at  timestamptz not null default now(),
    primary key (tenant, name, version),
    foreign key (tenant, data_key) references data_key
);

alter table seal_key add column sealed bytea, add column data_key text;
alter table seal_key drop constraint seal_key_has_its_secret;
alter table seal_key
    add foreign key (tenant, data_key) references data_key,
    add constraint seal_key_has_its_secret check (num_nonnulls(secret, sealed) = (state = 'active')::integer),
    add constraint seal_key_has_its_data_key check ((sealed is null) = (data_key is null));

do $$
declare
    one text;
begin
    foreach one in array array['data_key', 'secret'] loop
        execute format('alter table %I enable row level security, force row level security', one);
        execute format('create policy tenant on %I to sojourn_api using (tenant = (select scope_tenant()))', one);
        execute format('create policy keyring on %I to sojourn_keyring using (true)', one);
    end loop;
end $$;
grant select on root_key, data_key, secret to sojourn_api;
grant insert (tenant, id, root_key, wrapped) on data_key to sojourn_api;
grant insert (tenant, name, version, data_key, sealed) on secret to sojourn_api;
grant delete on secret to sojourn_api;
grant select, insert, update, delete on root_key, data_key, secret to sojourn_keyring;

-- ---- webhooks, and handles ----------------------------------------------------------------------

set local role sojourn_keyring;
alter default privileges revoke execute on functions from public;
alter table hook_key add column ends_at timestamptz;
create or replace function hook_sign(for_tenant text, for_run text) returns bytea
language sql stable set search_path = pg_catalog, public, pg_temp as $$
    select sha256(outer_pad || sha256(inner_pad || convert_to(for_tenant || '|' || for_run, 'UTF8'))) from hook_key
    where ends_at is null order by created_at desc limit 1
$$;

-- Whether one of the keys that are still good made this signature; it takes as long for every run.
create function hook_fits(for_tenant text, for_run text, data bytea, signature bytea) returns boolean
language sql stable set search_path = pg_catalog, public, pg_temp as $$
    select count(*) > 0 from (
        select hmac_sha256(
            data, sha256(outer_pad || sha256(inner_pad || convert_to(for_tenant || '|' || for_run, 'UTF8')))
        ) as good
        from hook_key where ends_at is null or ends_at > now()
    ) as keys where sha256(signature) = sha256(good)
$$;

create or replace function hook_scope(of_run text, message_id text, sent_s bigint, body bytea, signature bytea) returns text
language sql security definer set search_path = pg_catalog, public, pg_temp as $$
    with there as materialized (
        select r.tenant, r.user_id from run r where r.id = of_run and r.finished_at is null
    )
    select scope_mint(claimed.tenant, claimed.user_id, '', now() + interval '1 minute')
    from (table there union all select '', '' where not exists (table there)) as claimed
    where abs(extract(epoch from now()) - sent_s) <= 300
        and hook_fits(claimed.tenant, of_run, convert_to(message_id || '.' || sent_s || '.', 'UTF8') || body, signature)
$$;

-- Another key for scopes; handles of the older ones live as long as they say, five minutes at most.
create function renew_scope_key() returns text
language sql volatile set search_path = pg_catalog, public, pg_temp as $$
    insert into scope_key (kid, inner_pad, outer_pad, created_at)
    values (gen_random_uuid(), random_block(), random_block(), clock_timestamp()) returning kid
$$;

-- Another key for webhooks; the one before is good for so long.
create function renew_hook_key(overlap interval) returns text
language sql volatile set search_path = pg_catalog, public, pg_temp as $$
    update hook_key set ends_at = now() + overlap where ends_at is null;
    insert into hook_key (kid, inner_pad, outer_pad, created_at)
    values (gen_random_uuid(), random_block(), random_block(), clock_timestamp()) returning kid
$$;

-- Take away what nothing can use any more; how many keys that was.
create function end_keys() returns integer
language plpgsql security definer set search_path = pg_catalog, public, pg_temp as $$
declare
    gone integer := 0;
    swept integer;
begin
    delete from scope_key k where exists (
        select from scope_key n where n.created_at > k.created_at and n.created_at < now() - interval '10 minutes'
    );
    get diagnostics swept = row_count;
    gone := gone + swept;
    delete from hook_key where ends_at < now();
    get diagnostics swept = row_count;
    gone := gone + swept;
    delete from data_key d where d.ended_at < now() - interval '1 hour'
        and not exists (select from secret s where s.tenant = d.tenant and s.data_key = d.id)
        and not exists (select from seal_key s where s.tenant = d.tenant and s.data_key = d.id);
    get diagnostics swept = row_count;
    gone := gone + swept;
    delete from root_key r where r.ended_at < now() - interval '1 hour'
        and not exists (select from data_key d where d.root_key = r.id);
    get diagnostics swept = row_count;
    return gone + swept;
end $$;
grant execute on function end_keys to sojourn_engine;

-- ---- keys that sign exports ---------------------------------------------------------------------

-- Raise insufficient_privilege unless the caller may read runs; give its tenant.
create function exporter() returns text
language sql stable set search_path = pg_catalog, public, pg_temp as $$
    select need_scope('runs:read', array['*', 'runs:*', 'runs:read'])
$$;

-- The key that the caller's tenant signs with, as it is kept: sealed, with the wrapped data key, or not yet.
create function signing_key()
returns table (tenant text, issuer text, secret bytea, sealed bytea, data_key text, root_key text, wrapped bytea)
language sql stable security definer set search_path = pg_catalog, public, pg_temp as $$
    select s.tenant, s.issuer, s.secret, s.sealed, s.data_key, d.root_key, d.wrapped
    from seal_key s left join data_key d on d.tenant = s.tenant and d.id = s.data_key
    where s.tenant = exporter() and s.state = 'active'
$$;

-- Let a sealed key be the tenant's where it has none.
create function offer_signing_key(offered text, offered_sealed bytea, of_data_key text) returns void
language sql security definer set search_path = pg_catalog, public, pg_temp as $$
    insert into seal_key (tenant, issuer, sealed, data_key) values (exporter(), offered, offered_sealed, of_data_key)
    on conflict do nothing
$$;

-- Sign with a sealed key from now on.
create function rotate_signing_key(fresh text, fresh_sealed bytea, of_data_key text) returns void
language plpgsql security definer set search_path = pg_catalog, public, pg_temp as $$
declare
    of_tenant text := key_manager();
begin
    update seal_key s set state = 'retired', secret = null, sealed = null, data_key = null, ended_at = now()
    where s.tenant = of_tenant and s.state = 'active';
    insert into seal_key (tenant, issuer, sealed, data_key) values (of_tenant, fresh, fresh_sealed, of_data_key);
end $$;

-- The doors of older releases, and of a server without a root key: they know of no sealed key.
create or replace function sealing_key(offered text, offered_secret bytea) returns table (issuer text, secret bytea)
language plpgsql security definer set search_path = pg_catalog, public, pg_temp as $$
declare
    of_tenant text := exporter();
begin
    insert into seal_key (tenant, issuer, secret) values (of_tenant, offered, offered_secret) on conflict do nothing;
    return query select s.issuer, s.secret from seal_key s where s.tenant = of_tenant and s.secret is not null;
    if not found then
        raise exception 'a newer release must be asked: the key is sealed' using errcode = 'lock_not_available';
    end if;
end $$;

create or replace function rotate_seal_key(fresh text, fresh_secret bytea) returns void
language plpgsql security definer set search_path = pg_catalog, public, pg_temp as $$
declare
    of_tenant text := key_manager();
begin
    update seal_key s set state = 'retired', secret = null, sealed = null, data_key = null, ended_at = now()
    where s.tenant = of_tenant and s.state = 'active';
    insert into seal_key (tenant, issuer, secret) values (of_tenant, fresh, fresh_secret);
end $$;

create or replace function revoke_seal_key(of_issuer text) returns boolean
language sql security definer set search_path = pg_catalog, public, pg_temp as $$
    with revoked as (
        update seal_key s set state = 'revoked', secret = null, sealed = null, data_key = null, ended_at = now()
        where s.tenant = key_manager() and s.issuer = of_issuer returning 1
    )
    select exists (select from revoked)
$$;

grant execute on function signing_key, offer_signing_key, rotate_signing_key to sojourn_api;
set local role sojourn_owner;
revoke create on schema public from sojourn_keyring;
