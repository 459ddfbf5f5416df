-- Users of one tenant who see nothing of each other.
--
--   api_key.confined   the key's callers see and touch what is its user's alone; of a token its issuer says so
--   scope()            takes handles with a seventh field: `tenant|user|key|expiry|kid|confined|signature`. In what it gives,
--                      the sixth is `confined` for them, and the seventh is the tenant for all others
--   scope_whole()      that tenant: what the policies below ask first, so that it is all that the others pay
--   upload             which confined user brought which blob: whoever has the bytes may read them
--
-- A confined handle opens the rows of its user, and through a run in its sight what hangs on that: events, words, mail. What
-- is the tenant's own it may read where its runs are made of it, and change nowhere. The rules: a policy reads the tenant
-- and the user off one handle in one look, so that a handle that is changed halfway through a statement opens no more than
-- either did; and every door below asks in_sight(), or is closed.

grant create on schema public to sojourn_keyring; -- until the end of this file

alter table api_key add column confined boolean not null default false;
grant select (confined) on api_key to sojourn_api;
grant select (start_at) on run to sojourn_keyring;
create index session_user_id on session (user_id, tenant, id); -- for lists; it reads the table once, and writers wait

create table upload (
    tenant   text not null,
    digest   text not null,
    user_id  text not null,
    primary key (tenant, digest, user_id),
    foreign key (tenant, digest) references blob on delete cascade deferrable initially deferred
);
alter table upload enable row level security, force row level security;
create policy keyring on upload to sojourn_keyring using (true);
grant select, insert on upload to sojourn_keyring;

-- ---- handles ------------------------------------------------------------------------------------

set local role sojourn_keyring;
drop function scope_mint(text, text, text, timestamptz);
create function scope_mint(
    for_tenant text, for_user text, for_key text, until timestamptz, confined boolean default false
) returns text
language plpgsql volatile set search_path = pg_catalog, public, pg_temp as $$
declare
    key scope_key;
    payload text;
begin
    select * into strict key from scope_key order by created_at desc limit 1;
    payload := concat_ws('|', for_tenant, for_user, for_key, floor(extract(epoch from until))::bigint, key.kid,
        case when confined then 'confined' end);
    return payload || '|' || scope_sign(payload, key);
end $$;

create or replace function scope() returns text[]
language plpgsql stable parallel safe security definer set search_path = pg_catalog, public, pg_temp as $$
declare
    handle text := current_setting('app.scope', true);
    part text[] := string_to_array(handle, '|');
    fields integer := cardinality(part);
    key scope_key;
begin
    if fields is null or fields <> 6 and (fields <> 7 or part[6] <> 'confined') or part[4] !~ '^[0-9]{1,12}$'
        or part[4]::bigint <= extract(epoch from clock_timestamp()) then
        return null;
    end if;
    select * into key from scope_key where kid = part[5];
    if key.kid is null or part[fields] <> scope_sign(substr(handle, 1, length(handle) - length(part[fields]) - 1), key) then
        return null;
    end if;
    return case fields when 6 then part || part[1] else part[1:6] end;
end $$;
set local role sojourn_owner;

create function scope_whole() returns text language sql stable parallel safe as $$ select (scope())[7] $$;

-- The user whom the caller is confined to; null for others.
create function scope_own() returns text language plpgsql stable parallel safe as $$
declare
    caller text[] := scope();
begin
    return case when caller[6] = 'confined' then caller[2] end;
end $$;

-- Whether the caller's handle lets it see what is this user's, for doors.
create function in_sight(of_user text) returns boolean language plpgsql stable as $$
declare
    caller text[] := scope();
begin
    return caller[6] <> 'confined' or caller[2] = of_user;
end $$;

-- Whether a confined caller is this user.
create function owned(of_tenant text, of_user text) returns boolean language plpgsql stable as $$
declare
    caller text[] := scope();
begin
    return caller[6] = 'confined' and caller[1] = of_tenant and caller[2] = of_user;
end $$;

-- Whether a run is a confined caller's: so is its session, and with it what was said there before.
create function run_owned(of_tenant text, of_user text, of_session text) returns boolean
language plpgsql volatile security definer set search_path = pg_catalog, public, pg_temp as $$
begin
    return owned(of_tenant, of_user) and exists (
        select from session s where s.tenant = of_tenant and s.id = of_session and s.user_id = of_user
    );
end $$;

-- Whether a confined caller sees a run, even one that was written by the same statement.
create function run_seen(of_tenant text, of_run text) returns boolean
language plpgsql volatile security definer set search_path = pg_catalog, public, pg_temp as $$
declare
    caller text[] := scope();
begin
    return caller[6] = 'confined' and caller[1] = of_tenant and exists (
        select from run r join session s on s.tenant = r.tenant and s.id = r.session_id
        where r.tenant = of_tenant and r.id = of_run and r.user_id = caller[2] and s.user_id = caller[2]
    );
end $$;

-- Whether a confined caller may know a blob: it brought the bytes, or a run or a session of its own names them.
create function blob_seen(of_tenant text, of_digest text) returns boolean
language plpgsql volatile security definer set search_path = pg_catalog, public, pg_temp as $$
declare
    caller text[] := scope();
begin
    return caller[6] = 'confined' and caller[1] = of_tenant and (
        exists (
            select from upload u where u.tenant = of_tenant and u.digest = of_digest and u.user_id = caller[2]
        ) or exists (
            select from blob_use b join run r on r.tenant = b.tenant and r.id = b.run_id
            join session s on s.tenant = r.tenant and s.id = r.session_id
            where b.digest = of_digest and b.tenant = of_tenant and r.user_id = caller[2] and s.user_id = caller[2]
        ) or exists (
            select from session s where s.workspace = of_digest and s.tenant = of_tenant and s.user_id = caller[2]
        )
    );
end $$;

-- It comes after blob_is_its_digest, so whoever is noted had the bytes; and before a conflict with the same bytes is seen.
create function note_upload() returns trigger
language plpgsql security definer set search_path = pg_catalog, public, pg_temp as $$
declare
    caller text[] := scope();
begin
    if caller[6] = 'confined' and caller[1] = new.tenant then
        insert into upload (tenant, digest, user_id) values (new.tenant, new.digest, caller[2]) on conflict do nothing;
    end if;
    return new;
end $$;
create trigger note_upload before insert on blob for each row
    when (split_part(current_setting('app.scope', true), '|', 6) = 'confined') execute function note_upload();

-- Whether the queue of the caller's tenant is full; who is confined does not see all of it, and is bounded by it.
create function queue_is_full(most integer, later boolean) returns boolean
language plpgsql stable security definer set search_path = pg_catalog, public, pg_temp as $$
declare
    of_tenant text := scope_tenant();
begin
    return (select count(*) >= most from (
        select from run where tenant = of_tenant and status = 'queued' limit most
    ) as queued) and (select count(*) >= most from (
        select from run
        where tenant = of_tenant and status = 'queued' and coalesce(start_at > now(), false) = later limit most
    ) as alike);
end $$;

grant execute on function scope_whole to sojourn_api, sojourn_keyring;
grant execute on function scope_own, owned, run_owned, run_seen, blob_seen, queue_is_full to sojourn_api;

-- ---- the wall -----------------------------------------------------------------------------------

do $$
declare
    whole constant text := 'tenant = (select scope_whole())';
    own constant text := '(tenant, user_id) = (select s[1], s[2] from scope() as s where s[6] = ''confined'')';
    one text;
begin
    -- What is a user's. A plan for callers who are not confined gets no node more, where that would be felt.
    foreach one in array array['ledger', 'idempotency', 'reservation', 'day_account'] loop
        execute format('alter policy tenant on %I using (%s or %s)', one, whole, own);
    end loop;
    execute format(
        'alter policy tenant on session using (%s or owned(tenant, user_id))
        with check (%1$s or owned(tenant, user_id) and (workspace is null or blob_seen(tenant, workspace)))', whole
    );
    execute format('alter policy tenant on run using (%s or run_owned(tenant, user_id, session_id))', whole);
    execute format('alter policy tenant on schedule using (%s or %s) with check (%1$s)', whole, own);
    execute format('create policy kept on schedule as restrictive for delete to sojourn_api using (%s)', whole);
    execute format(
        'alter policy tenant on day_limit using (
            %s or %s or whose <> ''user'' and tenant = (select s[1] from scope() as s where s[6] = ''confined'')
        ) with check (%1$s)', whole, own
    );
    -- What hangs on a run.
    foreach one in array array['inbox', 'journal', 'message', 'delta', 'blob_use', 'stopped_run'] loop
        execute format('alter policy tenant on %I using (%s or run_seen(tenant, run_id))', one, whole);
    end loop;
    execute format(
        'alter policy tenant on blob_use with check (%s or run_seen(tenant, run_id) and blob_seen(tenant, digest))', whole
    );
    execute format('alter policy tenant on fire using (%s or run_seen(tenant, id)) with check (%1$s)', whole);
    execute format('alter policy tenant on blob using (%s or blob_seen(tenant, digest))', whole);
    -- Of a confined caller it is kept as `user|run`: another user's imports are neither known nor in the way.
    execute format(
        'alter policy tenant on imported_run using (%s or (tenant, split_part(run_id, ''|'', 1)) = (
            select s[1], s[2] from scope() as s where s[6] = ''confined''
        ))', whole
    );
    -- What is the tenant's own: runs are made of it, so it is read, and changed by nobody who is confined.
    foreach one in array array['agent', 'agent_version'] loop
        execute format('alter policy tenant on %I with check (%s)', one, whole);
    end loop;
    -- And what is no concern of theirs.
    foreach one in array array[
        'api_key', 'stop', 'audit', 'audit_head', 'webhook', 'webhook_delivery', 'alert', 'secret', 'guardrail'
    ] loop
        execute format('alter policy tenant on %I using (%s)', one, whole);
    end loop;
end $$;

-- ---- doors --------------------------------------------------------------------------------------

grant execute on function in_sight, owned, scope_tenant to sojourn_keyring;
alter function run_owned owner to sojourn_keyring;
alter function run_seen owner to sojourn_keyring;
alter function blob_seen owner to sojourn_keyring;
alter function note_upload owner to sojourn_keyring;
alter function queue_is_full owner to sojourn_keyring;
set local role sojourn_keyring;

create or replace function authenticate(key_hash bytea)
returns table (tenant text, key_id text, user_id text, scopes text[], handle text, handle_expires_at timestamptz)
language plpgsql security definer set search_path = pg_catalog, public, pg_temp as $$
declare
    key api_key;
    until timestamptz;
begin
    select * into key from api_key k
    where k.hash = key_hash and k.revoked_at is null and (k.expires_at is null or k.expires_at > now());
    if key.id is null then
        return;
    end if;
    if key.last_used_at is null or key.last_used_at < now() - interval '1 minute' then
        update api_key k set last_used_at = now() where (k.tenant, k.id) in (
            select l.tenant, l.id from api_key l where l.tenant = key.tenant and l.id = key.id
            for no key update skip locked -- one of many callers writes it, and nobody waits
        );
    end if;
    until := least(key.expires_at, now() + interval '5 minutes');
    return query select key.tenant, key.id, key.user_id, key.scopes,
        scope_mint(key.tenant, key.user_id, key.id, until, key.confined), until;
end $$;

-- A broker that says nothing of `confined` signs as before.
drop function admit(uuid, text, text, text, text, bigint, bytea);
create function admit(
    broker_id uuid, for_tenant text, for_user text, token_id text, scopes text, until_s bigint, signature bytea,
    confined boolean default false
) returns table (handle text, until timestamptz)
language plpgsql strict security definer set search_path = pg_catalog, public, pg_temp as $$
declare
    said bytea := convert_to(
        concat_ws('|', for_tenant, for_user, token_id, scopes, until_s, case when confined then 'confined' end), 'UTF8'
    );
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
    return query select scope_mint(t.id, for_user, rtrim(token_id || ' ' || scopes), ends, confined), ends
    from tenant t where t.id = for_tenant and ends > now();
end $$;

-- As in 0011_callers.sql; and whatever its scopes, a confined caller administers nothing.
create or replace function need_scope(named text, wanted text[]) returns text
language plpgsql stable set search_path = pg_catalog, public, pg_temp as $$
declare
    caller text[] := scope();
begin
    if caller[6] = 'confined' and named like 'admin:%' then
        raise exception 'no confined caller has the scope %', named using errcode = 'insufficient_privilege';
    end if;
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

drop function create_key(text, bytea, text, text, text, text[], timestamptz);
create function create_key(
    key_id text, key_hash bytea, prefix text, user_id text, name text, scopes text[], expires_at timestamptz,
    confined boolean default false
) returns void
language sql security definer set search_path = pg_catalog, public, pg_temp as $$
    insert into api_key (tenant, id, hash, prefix, user_id, name, scopes, expires_at, confined)
    values (key_manager(), key_id, key_hash, prefix, user_id, name, scopes, expires_at, confined)
$$;

create or replace function replace_key(
    old_id text, new_id text, new_hash bytea, new_prefix text, overlap interval
) returns text
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
    insert into api_key (tenant, id, hash, prefix, user_id, name, scopes, expires_at, confined) values (
        of_tenant, new_id, new_hash, new_prefix, old.user_id, old.name, old.scopes,
        now() + (old.expires_at - old.created_at), old.confined
    );
    update api_key k set replaced_by = new_id, expires_at = least(k.expires_at, now() + overlap)
    where k.tenant = of_tenant and k.id = old_id;
    update schedule s set key_id = new_id where s.tenant = of_tenant and s.key_id = old_id;
    return '';
end $$;

create or replace function hook_secret(of_run text) returns bytea
language sql stable security definer set search_path = pg_catalog, public, pg_temp as $$
    select hook_sign(r.tenant, r.id) from run r
    where r.tenant = (scope())[1] and r.id = of_run and in_sight(r.user_id)
$$;

create or replace function lease_heard_at(of_run text) returns timestamptz
language sql stable security definer set search_path = pg_catalog, public, pg_temp as $$
    select w.seen_at from run r join worker w on w.id = r.lease_worker
    where r.tenant = (scope())[1] and r.id = of_run and in_sight(r.user_id)
$$;

-- A schedule acts as a key that is not confined.
create or replace function take_schedule(schedule_name text) returns boolean
language sql security definer set search_path = pg_catalog, public, pg_temp as $$
    with taken as (
        update schedule s set user_id = k.user_id, key_id = k.id from api_key k
        where s.tenant = scope_whole() and s.name = schedule_name
            and k.tenant = s.tenant and k.id = (scope())[3] and k.revoked_at is null
        returning 1
    )
    select exists (select from taken)
$$;

create or replace function delete_run(of_run text) returns text
language plpgsql security definer set search_path = pg_catalog, public, pg_temp as $$
declare
    of_tenant text := (scope())[1];
    its record;
    named text[];
begin
    select r.session_id, r.finished_at into its from run r
    where r.tenant = of_tenant and r.id = of_run and in_sight(r.user_id) for update;
    if not found then
        return null;
    elsif its.finished_at is null then
        return 'unfinished';
    end if;
    perform from session s where s.tenant = of_tenant and s.id = its.session_id for update;
    if exists (
        select from run r where r.session_id = its.session_id and r.tenant = of_tenant and r.id <> of_run
            and (r.finished_at is null or (r.finished_at, r.id) > (its.finished_at, of_run))
    ) then
        return 'continued';
    end if;
    perform drop_runs(of_tenant, array[of_run]);
    select p.digests into named from purge_run(of_tenant, of_run, 10000) as p;
    perform look_soon(array_fill(of_tenant, array[cardinality(named)]), named);
    return 'deleted';
end $$;

create or replace function delete_session(of_session text) returns text
language plpgsql security definer set search_path = pg_catalog, public, pg_temp as $$
declare
    of_tenant text := (scope())[1];
    closed boolean;
    ids text[];
begin
    perform from session s where s.tenant = of_tenant and s.id = of_session and in_sight(s.user_id);
    if not found then
        return null;
    end if;
    select array_agg(id) into ids from (
        select r.id from run r where r.session_id = of_session and r.tenant = of_tenant for update
    ) as its;
    select s.closed_at is not null into closed from session s
    where s.tenant = of_tenant and s.id = of_session for update;
    if closed is null then
        return null;
    elsif not closed or exists (
        select from run r where r.session_id = of_session and r.tenant = of_tenant and r.finished_at is null
    ) then
        return 'open';
    end if;
    if ids is not null then
        perform drop_runs(of_tenant, ids);
    end if;
    perform look_soon(array[of_tenant], array[drop_session(of_tenant, of_session)]);
    return 'deleted';
end $$;

grant execute on function admit, create_key to sojourn_api;
set local role sojourn_owner;
revoke create on schema public from sojourn_keyring;
