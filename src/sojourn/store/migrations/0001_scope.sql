-- Tenants, keys, and the signed scope that every row of a tenant is guarded by.
--
--   tenant       the wall: data never crosses it
--   api_key      who may call, by the SHA-256 of a random token
--   hook_key     the secret that those of the runs' webhooks are made from; sojourn_keyring alone can read it
--   scope_key    the secrets that scopes are signed with; sojourn_keyring alone can read them
--   scope()      what the handle in app.scope allows, or null; every row level security policy asks it
--   scope_mint() signs a handle; only the functions of 0003_doors.sql can call it
--
-- A handle is `tenant|user|key|expiry|kid|signature`. It is set with `set_config('app.scope', ..., true)`, so it ends with
-- its transaction. The database mints and verifies it: no process of ours holds a signing key, and SQL under our roles
-- cannot make one up. The rules: a role of ours owns nothing; a function is executable by those named here and nobody
-- else; a policy that sees no valid handle shows no row.

alter default privileges for role sojourn_owner revoke execute on functions from public;
grant usage on schema public to sojourn_api, sojourn_engine, sojourn_keyring;
grant create on schema public to sojourn_keyring; -- until the end of 0003, for the functions and the table that it owns

create table tenant (
    id          text primary key check (id ~ '^[A-Za-z0-9_-]{1,64}$'),
    created_at  timestamptz not null default now()
);

create table api_key (
    tenant        text not null references tenant,
    id            text not null check (id ~ '^[A-Za-z0-9_-]{1,64}$'),
    hash          bytea not null unique check (length(hash) = 32),
    prefix        text not null,
    user_id       text not null check (user_id ~ '^[^|[:cntrl:]]{1,200}$'),
    name          text not null,
    scopes        text[] not null,
    created_at    timestamptz not null default now(),
    expires_at    timestamptz,
    revoked_at    timestamptz,
    last_used_at  timestamptz,
    primary key (tenant, id)
);

-- HMAC-SHA256 over two random blocks: the core has sha256() and no extension is needed.
create table scope_key (
    kid         text primary key,
    inner_pad   bytea not null check (length(inner_pad) = 64),
    outer_pad   bytea not null check (length(outer_pad) = 64),
    created_at  timestamptz not null default now()
);

create function random_block() returns bytea language sql volatile as $$
    select sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()))
        || sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()))
$$;

create function scope_sign(payload text, key scope_key) returns text language sql immutable as $$
    select encode(sha256(key.outer_pad || sha256(key.inner_pad || convert_to(payload, 'UTF8'))), 'hex')
$$;

create function scope_mint(for_tenant text, for_user text, for_key text, until timestamptz) returns text
language plpgsql volatile set search_path = pg_catalog, public, pg_temp as $$
declare
    key scope_key;
    payload text;
begin
    select * into strict key from scope_key order by created_at desc limit 1;
    payload := concat_ws('|', for_tenant, for_user, for_key, floor(extract(epoch from until))::bigint, key.kid);
    return payload || '|' || scope_sign(payload, key);
end $$;

create function scope() returns text[]
language plpgsql stable parallel safe security definer set search_path = pg_catalog, public, pg_temp as $$
declare
    handle text := current_setting('app.scope', true);
    part text[] := string_to_array(handle, '|');
    key scope_key;
begin
    if cardinality(part) is distinct from 6 or part[4] !~ '^[0-9]{1,12}$'
        or part[4]::bigint <= extract(epoch from clock_timestamp()) then
        return null;
    end if;
    select * into key from scope_key where kid = part[5];
    if key.kid is null or part[6] <> scope_sign(substr(handle, 1, length(handle) - length(part[6]) - 1), key) then
        return null;
    end if;
    return part;
end $$;

create function scope_tenant() returns text language sql stable parallel safe as $$ select (scope())[1] $$;
create function scope_user() returns text language sql stable parallel safe as $$ select (scope())[2] $$;

insert into scope_key (kid, inner_pad, outer_pad) values (gen_random_uuid(), random_block(), random_block());

-- The secret that outside systems sign a run's webhooks with, made from one key: nothing is kept for each run.
create table hook_key (
    kid         text primary key,
    inner_pad   bytea not null check (length(inner_pad) = 64),
    outer_pad   bytea not null check (length(outer_pad) = 64),
    created_at  timestamptz not null default now()
);
insert into hook_key (kid, inner_pad, outer_pad) values (gen_random_uuid(), random_block(), random_block());

create function hook_sign(for_tenant text, for_run text) returns bytea
language sql stable set search_path = pg_catalog, public, pg_temp as $$
    select sha256(outer_pad || sha256(inner_pad || convert_to(for_tenant || '|' || for_run, 'UTF8'))) from hook_key
$$;

create function hmac_sha256(data bytea, key bytea) returns bytea
language plpgsql immutable set search_path = pg_catalog, public, pg_temp as $$
declare
    inner_pad bytea := decode(repeat('36', 64), 'hex');
    outer_pad bytea := decode(repeat('5c', 64), 'hex');
begin
    for i in 0 .. length(key) - 1 loop
        inner_pad := set_byte(inner_pad, i, get_byte(key, i) # 54);
        outer_pad := set_byte(outer_pad, i, get_byte(key, i) # 92);
    end loop;
    return sha256(outer_pad || sha256(inner_pad || data));
end $$;

grant execute on function scope, scope_tenant, scope_user to sojourn_api, sojourn_engine;
alter table scope_key owner to sojourn_keyring;
alter table hook_key owner to sojourn_keyring;
alter function hook_sign owner to sojourn_keyring;
alter function hmac_sha256 owner to sojourn_keyring;
alter function random_block owner to sojourn_keyring;
alter function scope_sign owner to sojourn_keyring;
alter function scope_mint owner to sojourn_keyring;
alter function scope owner to sojourn_keyring;
