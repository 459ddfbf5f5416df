-- Who may do what: row level security, grants, and the few functions that step over them.
--
--   sojourn_api      sees a tenant's rows through a handle, and nothing without one
--   sojourn_engine   drives the runs of all tenants, guarded by lease and fence; blobs and the writing of sessions only
--                    through a handle that engine_scope() or session_scope() gives it; keys never
--   sojourn_keyring  owns the doors below; nobody logs in as it
--
-- The rule: what this file does not allow is refused. tests/store/test_isolation.py walks the catalogue and fails on a
-- table, function or grant that it does not know.

-- ---- the wall ---------------------------------------------------------------------------------

do $$
declare
    one text;
begin
    foreach one in array array[
        'api_key', 'agent', 'agent_version', 'agent_spec', 'session', 'run', 'inbox', 'journal', 'message', 'ledger',
        'delta', 'blob', 'idempotency'
    ] loop
        execute format('alter table %I enable row level security, force row level security', one);
        execute format('create policy tenant on %I to sojourn_api using (tenant = (select scope_tenant()))', one);
    end loop;
    foreach one in array array['run', 'inbox', 'journal', 'message', 'ledger', 'delta'] loop
        execute format('create policy engine on %I to sojourn_engine using (true)', one);
    end loop;
end $$;
alter table tenant enable row level security, force row level security;
create policy tenant on tenant to sojourn_api using (id = (select scope_tenant()));

-- What a caller writes is written in its own name, and is only the beginning of a run.
create policy own on run as restrictive for insert to sojourn_api with check (user_id = (select scope_user()));
create policy own on session as restrictive for insert to sojourn_api with check (user_id = (select scope_user()));
create policy own on idempotency as restrictive to sojourn_api using (user_id = (select scope_user()));
create policy first on journal as restrictive for insert to sojourn_api with check (seq = 1);
create policy first on message as restrictive for insert to sojourn_api with check (frame_id = '/' or exists (
    select from journal j
    where j.tenant = message.tenant and j.run_id = message.run_id and j.seq = 1 and j.kind = 'adopted'
));

create policy engine on agent_spec for select to sojourn_engine using (true);
create policy engine on session for select to sojourn_engine using (true);
create policy lent on session for update to sojourn_engine using (tenant = (select scope_tenant()));
create policy lent on blob to sojourn_engine using (tenant = (select scope_tenant()));
create policy expired on idempotency to sojourn_engine using (expires_at < now());

create policy keyring on tenant to sojourn_keyring using (true);
create policy keyring on api_key to sojourn_keyring using (true);
create policy keyring on session for select to sojourn_keyring using (true);
create policy keyring on run for select to sojourn_keyring using (true);

-- ---- grants -----------------------------------------------------------------------------------

grant select on tenant, agent, agent_version, agent_spec, session, run, journal, message, ledger, delta, blob,
    idempotency to sojourn_api;
grant select (tenant, id, prefix, user_id, name, scopes, created_at, expires_at, revoked_at, last_used_at)
    on api_key to sojourn_api;
grant select (tenant, run_id, id, event) on inbox to sojourn_api;
grant insert on agent, agent_version, agent_spec, journal, message, blob, idempotency to sojourn_api;
grant insert (tenant, id, user_id) on session to sojourn_api;
grant insert (tenant, run_id, event) on inbox to sojourn_api;
grant insert (tenant, id, session_id, user_id, agent_name, agent_version, agent_digest, priority, due_at, seq, input,
    limits, labels, snapshot) on run to sojourn_api;
grant update (live_version, archived_at) on agent to sojourn_api;
grant update (closed_at, used_at, host, backend, workspace, enforced, wanted_at) on session to sojourn_api;
grant update (status, due_at, mail_last) on run to sojourn_api;
grant update (route, request_digest, status, body, created_at, expires_at), delete on idempotency to sojourn_api;

grant select on agent_spec, session, run, inbox, journal, message, blob, delta to sojourn_engine;
grant select, insert, update, delete on worker to sojourn_engine;
grant usage on sequence worker_key to sojourn_engine;
grant insert on journal, message, ledger, delta, blob to sojourn_engine;
grant delete on inbox, delta to sojourn_engine;
grant update (closed_at, used_at, host, backend, workspace, enforced, wanted_at) on session to sojourn_engine;
grant update (status, due_at, lease_worker, fence, claims, mail_read, seq, started_at, finished_at, steps, input_tokens,
    cache_read_tokens, cache_write_tokens, output_tokens, reasoning_tokens, usd_micros, result, error_code,
    error_detail, limits, waits, snapshot) on run to sojourn_engine;
grant select (expires_at), delete on idempotency to sojourn_engine;

grant select, insert on tenant to sojourn_keyring;
grant select, insert, update on api_key to sojourn_keyring;
grant select (tenant, id, session_id, user_id, lease_worker, fence, finished_at) on run to sojourn_keyring;
grant select (tenant, id, user_id, host) on session to sojourn_keyring;
grant select (id, host) on worker to sojourn_keyring;

-- ---- doors ------------------------------------------------------------------------------------

-- Trade a key for a handle of at most five minutes: so long does a revoked key live on.
create function authenticate(key_hash bytea)
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
        scope_mint(key.tenant, key.user_id, key.id, until), until;
end $$;

-- Raise insufficient_privilege unless the handle is of a living key that may manage keys; give its tenant.
create function key_manager() returns text
language plpgsql stable set search_path = pg_catalog, public, pg_temp as $$
declare
    caller text[] := scope();
begin
    perform from api_key k
    where k.tenant = caller[1] and k.id = caller[3] and k.revoked_at is null
        and k.scopes && array['*', 'admin:*', 'admin:keys'];
    if not found then
        raise exception 'this needs the scope admin:keys' using errcode = 'insufficient_privilege';
    end if;
    return caller[1];
end $$;

create function create_key(
    key_id text, key_hash bytea, prefix text, user_id text, name text, scopes text[], expires_at timestamptz
) returns void
language sql security definer set search_path = pg_catalog, public, pg_temp as $$
    insert into api_key (tenant, id, hash, prefix, user_id, name, scopes, expires_at)
    values (key_manager(), key_id, key_hash, prefix, user_id, name, scopes, expires_at)
$$;

create function revoke_key(key_id text) returns boolean
language sql security definer set search_path = pg_catalog, public, pg_temp as $$
    with revoked as (
        update api_key k set revoked_at = coalesce(k.revoked_at, now())
        where k.tenant = key_manager() and k.id = key_id returning 1
    )
    select exists (select from revoked)
$$;

-- Make a tenant with its first key; false when there is such a tenant already.
create function found_tenant(new_tenant text, key_id text, key_hash bytea, prefix text, user_id text, scopes text[])
returns boolean
language plpgsql security definer set search_path = pg_catalog, public, pg_temp as $$
begin
    insert into tenant (id) values (new_tenant) on conflict do nothing;
    if not found then
        return false;
    end if;
    insert into api_key (tenant, id, hash, prefix, user_id, name, scopes)
    values (new_tenant, key_id, key_hash, prefix, user_id, 'first key', scopes);
    return true;
end $$;

-- Lend a worker one minute in the tenant of a run, for the lease and fence that it shows; null when they are not current.
create function engine_scope(of_worker text, of_tenant text, of_run text, of_fence bigint) returns text
language sql security definer set search_path = pg_catalog, public, pg_temp as $$
    select scope_mint(r.tenant, r.user_id, '', now() + interval '1 minute') from run r
    where r.tenant = of_tenant and r.id = of_run and r.fence = of_fence and r.lease_worker = of_worker
$$;

-- The same for a session whose sandbox is on the worker's host, while no worker of that host has a lease in it.
create function session_scope(of_worker text, of_tenant text, of_session text) returns text
language sql security definer set search_path = pg_catalog, public, pg_temp as $$
    select scope_mint(s.tenant, s.user_id, '', now() + interval '1 minute')
    from session s join worker w on w.host = s.host
    where w.id = of_worker and s.tenant = of_tenant and s.id = of_session and not exists (
        select from run r join worker v on v.id = r.lease_worker
        where r.tenant = s.tenant and r.session_id = s.id and v.host = s.host
    )
$$;

-- The secret of a run's webhooks, for a caller of its tenant; null where it has no such run.
create function hook_secret(of_run text) returns bytea
language sql stable security definer set search_path = pg_catalog, public, pg_temp as $$
    select hook_sign(r.tenant, r.id) from run r where r.tenant = (scope())[1] and r.id = of_run
$$;

-- Lend one minute in the tenant of a run for a webhook that is signed with its secret; null for any other, after the same
-- work, so that nobody learns from the time which runs there are. Anybody may ask: only run_unfinished is read for it.
create function hook_scope(of_run text, message_id text, sent_s bigint, body bytea, signature bytea) returns text
language sql security definer set search_path = pg_catalog, public, pg_temp as $$
    with there as materialized (
        select r.tenant, r.user_id from run r where r.id = of_run and r.finished_at is null
    )
    select scope_mint(claimed.tenant, claimed.user_id, '', now() + interval '1 minute')
    from (table there union all select '', '' where not exists (table there)) as claimed
    where abs(extract(epoch from now()) - sent_s) <= 300
        and sha256(signature) = sha256(hmac_sha256(
            convert_to(message_id || '.' || sent_s || '.', 'UTF8') || body, hook_sign(claimed.tenant, of_run)
        ))
$$;

-- First the grants, then the owner: afterwards only sojourn_keyring could give them.
grant execute on function authenticate, create_key, revoke_key, hook_secret, hook_scope to sojourn_api;
grant execute on function engine_scope, session_scope to sojourn_engine;
do $$
declare
    one text;
begin
    foreach one in array array[
        'authenticate', 'key_manager', 'create_key', 'revoke_key', 'found_tenant', 'engine_scope', 'session_scope',
        'hook_secret', 'hook_scope'
    ] loop
        execute format('alter function %I owner to sojourn_keyring', one);
    end loop;
end $$;
set local role sojourn_keyring;
grant execute on function found_tenant to sojourn_owner;
set local role sojourn_owner;
revoke create on schema public from sojourn_keyring;
