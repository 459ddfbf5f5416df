-- Runs that move: what exports are signed with, whose exports are let in, and which were let in before.
--
--   seal_key         a tenant's Ed25519 keys: at most one active, which signs; retired ones verify, revoked ones do not
--   trusted_issuer   public keys of others, whose exports may be imported
--   imported_run     how far a run was imported that began elsewhere, so that no older export of it is let in
--
-- A tenant has keys of its own, so that an export crosses the wall between two tenants only where the second one trusts
-- the first. The rules: the secret half leaves the database through sealing_key() alone and is gone once its key is not
-- active; who manages API keys says who is trusted, and ends a key.

grant create on schema public to sojourn_keyring; -- until the end of this file

create table seal_key (
    tenant      text not null references tenant,
    issuer      text not null check (issuer ~ '^ed25519:[A-Za-z0-9_-]{43}$'),
    secret      bytea check (length(secret) = 32),
    state       text not null default 'active' check (state in ('active', 'retired', 'revoked')),
    created_at  timestamptz not null default now(),
    ended_at    timestamptz,
    primary key (tenant, issuer),
    constraint seal_key_has_its_secret check ((secret is not null) = (state = 'active')),
    constraint seal_key_ended check ((ended_at is null) = (state = 'active'))
);
create unique index seal_key_active on seal_key (tenant) where state = 'active';
comment on column seal_key.issuer is 'the public half: ed25519: and 32 bytes in base64url';

create table trusted_issuer (
    tenant    text not null references tenant,
    issuer    text not null check (issuer ~ '^ed25519:[A-Za-z0-9_-]{43}$'),
    name      text not null,
    added_at  timestamptz not null default now(),
    added_by  text not null,
    primary key (tenant, issuer)
);

create table imported_run (
    tenant       text not null references tenant,
    run_id       text not null,
    rev          bigint not null,
    became       text not null,
    imported_at  timestamptz not null default now(),
    primary key (tenant, run_id)
);
comment on column imported_run.run_id is 'its id where it was exported; `became` is the newest run made of it here';

do $$
declare
    one text;
begin
    foreach one in array array['seal_key', 'trusted_issuer', 'imported_run'] loop
        execute format('alter table %I enable row level security, force row level security', one);
        execute format('create policy tenant on %I to sojourn_api using (tenant = (select scope_tenant()))', one);
    end loop;
end $$;
create policy keyring on seal_key to sojourn_keyring using (true);
create policy keyring on trusted_issuer to sojourn_keyring using (true);

grant select (tenant, issuer, state, created_at, ended_at) on seal_key to sojourn_api;
grant select on trusted_issuer, imported_run to sojourn_api;
grant insert on imported_run to sojourn_api;
grant update (rev, became, imported_at) on imported_run to sojourn_api;
grant select, insert, update on seal_key to sojourn_keyring;
grant select, insert, delete on trusted_issuer to sojourn_keyring;

-- A run that comes from elsewhere may begin with open questions, and with what was spent on it there.
grant insert (status, waits, steps, input_tokens, cache_read_tokens, cache_write_tokens, output_tokens,
    reasoning_tokens, usd_micros) on run to sojourn_api;
create policy begun on run as restrictive for insert to sojourn_api with check (status in ('queued', 'suspended'));

-- ---- doors ------------------------------------------------------------------------------------

-- The key that the caller's tenant signs with; the one offered becomes it where there is none.
create function sealing_key(offered text, offered_secret bytea) returns table (issuer text, secret bytea)
language plpgsql security definer set search_path = pg_catalog, public, pg_temp as $$
declare
    caller text[] := scope();
begin
    perform from api_key k
    where k.tenant = caller[1] and k.id = caller[3] and k.revoked_at is null
        and k.scopes && array['*', 'runs:*', 'runs:read'];
    if not found then
        raise exception 'this needs the scope runs:read' using errcode = 'insufficient_privilege';
    end if;
    insert into seal_key (tenant, issuer, secret) values (caller[1], offered, offered_secret) on conflict do nothing;
    return query select s.issuer, s.secret from seal_key s where s.tenant = caller[1] and s.state = 'active';
end $$;

-- Sign with another key from now on; what the one before has signed stays good.
create function rotate_seal_key(fresh text, fresh_secret bytea) returns void
language plpgsql security definer set search_path = pg_catalog, public, pg_temp as $$
declare
    of_tenant text := key_manager();
begin
    update seal_key s set state = 'retired', secret = null, ended_at = now()
    where s.tenant = of_tenant and s.state = 'active';
    insert into seal_key (tenant, issuer, secret) values (of_tenant, fresh, fresh_secret);
end $$;

-- Take a key's signatures for nothing from now on; false where there is no such key.
create function revoke_seal_key(of_issuer text) returns boolean
language sql security definer set search_path = pg_catalog, public, pg_temp as $$
    with revoked as (
        update seal_key s set state = 'revoked', secret = null, ended_at = now()
        where s.tenant = key_manager() and s.issuer = of_issuer returning 1
    )
    select exists (select from revoked)
$$;

create function trust_issuer(of_issuer text, issuer_name text) returns void
language sql security definer set search_path = pg_catalog, public, pg_temp as $$
    insert into trusted_issuer (tenant, issuer, name, added_by)
    values (key_manager(), of_issuer, issuer_name, (scope())[2])
    on conflict do nothing
$$;

create function distrust_issuer(of_issuer text) returns boolean
language sql security definer set search_path = pg_catalog, public, pg_temp as $$
    with gone as (
        delete from trusted_issuer t where t.tenant = key_manager() and t.issuer = of_issuer returning 1
    )
    select exists (select from gone)
$$;

grant execute on function sealing_key, rotate_seal_key, revoke_seal_key, trust_issuer, distrust_issuer to sojourn_api;
do $$
declare
    one text;
begin
    foreach one in array array[
        'sealing_key', 'rotate_seal_key', 'revoke_seal_key', 'trust_issuer', 'distrust_issuer'
    ] loop
        execute format('alter function %I owner to sojourn_keyring', one);
    end loop;
end $$;
revoke create on schema public from sojourn_keyring;
