-- Who calls: callers whose tokens an API process has verified, and API keys that are replaced with overlap.
--
--   broker            an API process's secret for a day: what it signs with it, admit() believes
--   open_broker()     makes one, for a process that can log in as the owner; the secret leaves in the answer alone
--   admit()           trades a broker's word for a handle of at most five minutes
--   replace_key()     makes a key's successor and lets the key itself end after an overlap
--
-- The database cannot verify a JWT's signature, so it believes a process that can. The rules: SQL under sojourn_api opens
-- no broker and reads none; a broker's secret is never an argument, so no log and no list of activities shows it.
--
-- The handle of such a caller names, in place of a key, its token and what the token allows: `corp:0f3a... runs:read`.
-- need_scope() is the one place that knows.

grant create on schema public to sojourn_keyring; -- until the end of this file

create table broker (
    id      uuid primary key default gen_random_uuid(),
    secret  bytea not null default random_block() check (length(secret) = 64),
    until   timestamptz not null default now() + interval '1 day'
);
alter table broker owner to sojourn_keyring;

alter table api_key add column replaced_by text;
grant select (replaced_by) on api_key to sojourn_api;

-- ---- doors ------------------------------------------------------------------------------------

create function open_broker() returns table (id uuid, secret bytea)
language plpgsql security definer set search_path = pg_catalog, public, pg_temp as $$
begin
    delete from broker b where b.until <= now();
    return query insert into broker default values returning broker.id, broker.secret;
end $$;

-- No row where there is no such tenant. No field may hold a bar, so a signature fits one set of fields only.
create function admit(
    broker_id uuid, for_tenant text, for_user text, token_id text, scopes text, until_s bigint, signature bytea
) returns table (handle text, until timestamptz)
language plpgsql strict security definer set search_path = pg_catalog, public, pg_temp as $$
declare
    said bytea := convert_to(concat_ws('|', for_tenant, for_user, token_id, scopes, until_s), 'UTF8');
    ends timestamptz := least(to_timestamp(until_s), now() + interval '5 minutes');
    secret bytea;
begin
    select b.secret into secret from broker b where b.id = broker_id and b.until > now();
    if secret is null or sha256(signature) <> sha256(hmac_sha256(said, secret))
        or for_user !~ '^[^|[:cntrl:]]{1,200}$'
        or token_id !~ '^[a-z0-9-]{1,32}:[0-9a-f]{16}$'
        or scopes !~ '^([a-z]+:[a-z*]+|\*)?( ([a-z]+:[a-z*]+|\*))*$' then
        raise exception 'no broker vouches for this caller' using errcode = 'insufficient_privilege';
    end if;
    return query select scope_mint(t.id, for_user, rtrim(token_id || ' ' || scopes), ends), ends
    from tenant t where t.id = for_tenant and ends > now();
end $$;

-- Raise insufficient_privilege unless the handle is of a living key, or of a verified token, with one of the scopes; give
-- its tenant.
create function need_scope(named text, wanted text[]) returns text
language plpgsql stable set search_path = pg_catalog, public, pg_temp as $$
declare
    caller text[] := scope();
begin
    if (string_to_array(caller[3], ' '))[2:] && wanted then
        return caller[1];
    end if;
    perform from api_key k
    where k.tenant = caller[1] and k.id = caller[3] and k.revoked_at is null and k.scopes && wanted;
    if not found then
        raise exception 'this needs the scope %', named using errcode = 'insufficient_privilege';
    end if;
    return caller[1];
end $$;

-- Make a key like another one: its name, user, scopes and length of life, and the schedules that act as it. The other one
-- ends after the overlap, or when it would have anyway. Null where there is no such key; else what keeps it from being
-- replaced, or nothing.
create function replace_key(old_id text, new_id text, new_hash bytea, new_prefix text, overlap interval) returns text
language plpgsql security definer set search_path = pg_catalog, public, pg_temp as $$
declare
    of_tenant text := key_manager();
    old api_key;
begin
    select * into old from api_key k where k.tenant = of_tenant and k.id = old_id for update;
    if old.id is null then
        return null;
    elsif old.revoked_at is not null then
        return 'was revoked';
    elsif old.expires_at <= now() then
        return 'has expired';
    elsif old.replaced_by is not null then
        return 'was replaced by ' || old.replaced_by;
    end if;
    insert into api_key (tenant, id, hash, prefix, user_id, name, scopes, expires_at) values (
        of_tenant, new_id, new_hash, new_prefix, old.user_id, old.name, old.scopes,
        now() + (old.expires_at - old.created_at)
    );
    update api_key k set replaced_by = new_id, expires_at = least(k.expires_at, now() + overlap)
    where k.tenant = of_tenant and k.id = old_id;
    update schedule s set key_id = new_id where s.tenant = of_tenant and s.key_id = old_id;
    return '';
end $$;

grant execute on function admit, replace_key to sojourn_api;
do $$
declare
    one text;
begin
    foreach one in array array['open_broker', 'admit', 'need_scope', 'replace_key'] loop
        execute format('alter function %I owner to sojourn_keyring', one);
    end loop;
end $$;

set local role sojourn_keyring;
grant execute on function open_broker to sojourn_owner;

-- As in 0003_doors.sql and 0004_moving.sql, and for callers with tokens, too.
create or replace function key_manager() returns text
language sql stable set search_path = pg_catalog, public, pg_temp as $$
    select need_scope('admin:keys', array['*', 'admin:*', 'admin:keys'])
$$;

create or replace function sealing_key(offered text, offered_secret bytea) returns table (issuer text, secret bytea)
language plpgsql security definer set search_path = pg_catalog, public, pg_temp as $$
declare
    of_tenant text := need_scope('runs:read', array['*', 'runs:*', 'runs:read']);
begin
    insert into seal_key (tenant, issuer, secret) values (of_tenant, offered, offered_secret) on conflict do nothing;
    return query select s.issuer, s.secret from seal_key s where s.tenant = of_tenant and s.state = 'active';
end $$;
set local role sojourn_owner;

revoke create on schema public from sojourn_keyring;
