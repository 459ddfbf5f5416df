-- Who did what: the audit log, one chain of rows for each tenant and one for the operator (tenant '*').
--
--   audit           what was done or refused, and by whom; append-only, kept for ever
--   audit_head      the last row of each chain; whoever appends waits for it until the other one has committed
--   audit_digest()  row n's hash: SHA-256 over its fields and the hash of row n - 1
--
-- The rules: a row is written in the transaction of what it tells, so neither is there without the other; who did it is
-- read off the signed scope. No role of ours changes or deletes a row. The owner of the database could, so a head can be
-- kept elsewhere: `sojourn audit verify --from HEAD` proves that nothing up to it has changed since.

grant create on schema public to sojourn_keyring; -- until the end of this file

create table audit (
    tenant      text not null,
    n           bigint not null check (n > 0),
    at          timestamptz not null,
    action      text not null check (action ~ '^[a-z_]{1,40}\.[a-z_]{1,40}$'),
    subject     text not null check (length(subject) <= 1000),
    operator    boolean not null,
    user_id     text not null,
    key_id      text not null,
    request_id  text not null check (length(request_id) <= 128),
    address     text not null check (length(address) <= 128),
    outcome     text not null check (outcome in ('done', 'refused')),
    detail      jsonb not null,
    hash        bytea not null check (length(hash) = 32),
    primary key (tenant, n),
    constraint audit_detail_is_small check (length(detail::text) <= 8000),
    constraint audit_detail_is_text check (
        jsonb_typeof(detail) = 'object' and not jsonb_path_exists(detail, '$.* ? (@.type() != "string")')
    )
);
comment on column audit.operator is 'done by the owner of the database; user_id is then a login of its machine';
create index audit_refused on audit (tenant, user_id, key_id, action, at) where outcome = 'refused';
create trigger append_only before update or delete or truncate on audit execute function refuse_change();

create table audit_head (
    tenant  text primary key,
    n       bigint not null default 0,
    hash    bytea not null default decode(repeat('00', 32), 'hex')
) with (fillfactor = 50);

do $$
declare
    one text;
begin
    foreach one in array array['audit', 'audit_head'] loop
        execute format('alter table %I enable row level security, force row level security', one);
        execute format('create policy tenant on %I for select to sojourn_api using (tenant = (select scope_tenant()))', one);
        execute format('create policy keyring on %I to sojourn_keyring using (true)', one);
    end loop;
end $$;
grant select on audit, audit_head to sojourn_api;
grant select, insert on audit to sojourn_keyring;
grant select, insert, update on audit_head to sojourn_keyring;

-- Every field is written as `bytes:text,`, so that no two rows read alike; docs/operate/audit.md tells it field by field.
create function audit_digest(entry audit, before bytea) returns bytea
language sql stable set search_path = pg_catalog, public, pg_temp as $$
    select sha256(string_agg(convert_to(octet_length(convert_to(field, 'UTF8')) || ':' || field || ',', 'UTF8'), '' order by place))
    from unnest(
        array[
            'sojourn-audit-1', entry.tenant, entry.n::text,
            to_char(entry.at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
            entry.action, entry.subject, entry.operator::text, entry.user_id, entry.key_id, entry.request_id,
            entry.address, entry.outcome
        ]
        || (
            select coalesce(array_agg(word order by key collate "C", part), '{}')
            from jsonb_each_text(entry.detail), lateral (values (1, key), (2, value)) as pair (part, word)
        )
        || encode(before, 'hex')
    ) with ordinality as f (field, place)
$$;

create function audit_append(entry audit) returns void
language plpgsql volatile set search_path = pg_catalog, public, pg_temp as $$
declare
    head audit_head;
begin
    insert into audit_head (tenant) values (entry.tenant) on conflict do nothing;
    select * into strict head from audit_head h where h.tenant = entry.tenant for no key update;
    entry.n := head.n + 1;
    entry.at := clock_timestamp();
    entry.hash := audit_digest(entry, head.hash);
    insert into audit select entry.*;
    update audit_head h set n = entry.n, hash = entry.hash where h.tenant = entry.tenant;
end $$;

-- Whether a refusal of this caller was written down within the hour: more of them would say nothing new.
create function audit_told(caller text[], of_action text) returns boolean
language sql volatile set search_path = pg_catalog, public, pg_temp as $$
    select exists (
        select from audit a
        where a.tenant = caller[1] and a.user_id = caller[2] and a.key_id = caller[3] and a.action = of_action
            and a.outcome = 'refused' and a.at > clock_timestamp() - interval '1 hour'
    )
$$;

-- Append to the chain of the caller's tenant. It is the last that a transaction does: the next one waits for its commit.
create function audit_act(
    of_action text, of_subject text, of_detail jsonb, of_request text, from_address text, with_outcome text
) returns void
language plpgsql volatile security definer set search_path = pg_catalog, public, pg_temp as $$
declare
    caller text[] := scope();
begin
    if caller is null then
        raise exception 'this needs a scope' using errcode = 'insufficient_privilege';
    end if;
    caller[3] := split_part(caller[3], ' ', 1); -- behind the id of a token stand its scopes
    if with_outcome = 'refused' then
        if audit_told(caller, of_action) then
            return;
        end if;
        perform from audit_head h where h.tenant = caller[1] for no key update;
        if audit_told(caller, of_action) then
            return;
        end if;
    end if;
    perform audit_append(row(
        caller[1], null, null, of_action, of_subject, false, caller[2], caller[3], of_request, from_address,
        with_outcome, of_detail, null
    )::audit);
end $$;

-- Append what the operator did to his own chain, and to that of the tenant that it is about. Nobody may but the keyring.
create function audit_operator(about text, by_login text, of_action text, of_subject text, of_detail jsonb) returns void
language plpgsql volatile set search_path = pg_catalog, public, pg_temp as $$
declare
    chain text;
begin
    foreach chain in array case when about = '*' then array['*'] else array['*', about] end loop
        perform audit_append(row(
            chain, null, null, of_action, of_subject, true, by_login, '', '', '', 'done',
            case when about = '*' or chain = about then of_detail else of_detail || jsonb_build_object('tenant', about) end,
            null
        )::audit);
    end loop;
end $$;

grant execute on function audit_act to sojourn_api;
do $$
declare
    one text;
begin
    foreach one in array array['audit_digest', 'audit_append', 'audit_told', 'audit_act', 'audit_operator'] loop
        execute format('alter function %I owner to sojourn_keyring', one);
    end loop;
end $$;
revoke create on schema public from sojourn_keyring;
