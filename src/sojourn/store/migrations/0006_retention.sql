-- What is kept how long, and how it goes.
--
--   tenant     runs_kept_days and ledger_kept_days, in place of the settings: 0 is for ever, null is as the settings say
--   blob_use   which run names which blob; a session names the archive of its files in its own row
--   blob_tally what the bytes of a tenant's blobs add up to: a row for each that came or went, made one row now and then
--   purge      runs that are gone for everybody, and whose rows are deleted piece by piece
--   tidying    how far the workers have come with it, and how much went
--
-- A session goes as a whole, once nothing of it was used for as long as its tenant keeps runs: later runs read what the
-- earlier ones said. The ledger stays: it is the bill. A blob goes once nothing names it, its upload was long enough ago,
-- and `look_at` has come. The rules: what a door deletes it has locked and then looked at again; nobody waits for a row
-- that is in use; a door deletes no more at once than it is told; and blobs of older code, which says no `look_at`, stay.

grant create on schema public to sojourn_keyring; -- until the end of this file

alter table tenant
    add column runs_kept_days integer check (runs_kept_days >= 0),
    add column ledger_kept_days integer check (ledger_kept_days >= 0);

-- What lists ask for among finished runs: an entry is made once, when a run ends. Of completed ones there are always some.
create index run_agent on run (agent_name, tenant, id) where finished_at is not null;
create index run_user on run (user_id, tenant, id) where finished_at is not null;
create index run_failed on run (status, tenant, id) where status in ('failed', 'cancelled');

create index session_used on session (used_at, id);

alter table blob
    add column kept_until timestamptz not null default '-infinity',
    add column look_at timestamptz not null default 'infinity';
create index blob_look on blob (look_at) where look_at < 'infinity';
create index session_workspace on session (workspace, tenant) where workspace is not null;
alter table session add foreign key (tenant, workspace) references blob not valid;

-- A check would hash the bytes at each update of another column.
create function blob_is_its_digest() returns trigger language plpgsql as $$
begin
    if new.digest <> 'sha256:' || encode(sha256(new.data), 'hex') or new.bytes <> length(new.data) then
        raise exception 'these bytes are not %', new.digest using errcode = 'check_violation';
    end if;
    return new;
end $$;
create trigger blob_is_its_digest before insert or update of digest, bytes, data on blob
    for each row execute function blob_is_its_digest();
alter table blob drop constraint blob_is_its_digest;

create table blob_use (
    tenant  text not null,
    run_id  text not null,
    digest  text not null,
    primary key (tenant, run_id, digest),
    foreign key (tenant, digest) references blob
);
create index blob_use_digest on blob_use (digest, tenant);

-- What a caller brings in names its blobs: the database looks, so no way in can forget it. A worker says its own.
create function note_blobs() returns trigger language plpgsql as $$
declare
    said bytea;
begin
    if tg_table_name = 'inbox' then
        said := new.event;
    else
        said := new.body;
    end if;
    insert into blob_use (tenant, run_id, digest)
    select b.tenant, new.run_id, b.digest from blob b
    where b.tenant = new.tenant and b.digest in (
        select name[1] from regexp_matches(encode(said, 'escape'), 'sha256:[0-9a-f]{64}', 'g') as name
    )
    on conflict do nothing;
    return null;
end $$;
create trigger note_blobs after insert on message for each row
    when (current_user = 'sojourn_api' and position('sha256:'::bytea in new.body) > 0) execute function note_blobs();
create trigger note_blobs after insert on inbox for each row
    when (position('sha256:'::bytea in new.event) > 0) execute function note_blobs();

-- Rows are only added, so those who bring blobs do not wait for each other; the sum of a few is quick, that of all was not.
create table blob_tally (
    tenant  text not null references tenant,
    id      bigint generated always as identity,
    bytes   bigint not null,
    primary key (tenant, id) include (bytes)
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

create function tally_blobs() returns trigger
language plpgsql security definer set search_path = pg_catalog, public, pg_temp as $$
begin
    if tg_op = 'INSERT' then
        insert into blob_tally (tenant, bytes) values (new.tenant, new.bytes);
    else
        insert into blob_tally (tenant, bytes) values (old.tenant, -old.bytes);
    end if;
    return null;
end $$;
create trigger tally_blobs after insert or delete on blob for each row execute function tally_blobs();

create table purge (
    tenant   text not null,
    run_id   text not null,
    gone_at  timestamptz not null default now(),
    primary key (tenant, run_id)
);
create index purge_gone on purge (gone_at);

create table tidying (
    task      text primary key,
    after_at  timestamptz not null default '-infinity',
    after_id  text not null default '',
    gone      bigint not null default 0
);
comment on column tidying.gone is 'how many rows went, for the metrics';
insert into tidying (task) values ('sessions'), ('runs'), ('rows'), ('ledger'), ('blobs');

-- Many small deletes leave many dead rows: they are cleared before they are a fifth of the table.
alter table journal set (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.1);
alter table message set (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.1);
alter table ledger set (autovacuum_vacuum_scale_factor = 0.02);
alter table session set (autovacuum_vacuum_scale_factor = 0.02);
alter table blob set (autovacuum_vacuum_scale_factor = 0.02, toast.autovacuum_vacuum_scale_factor = 0.02);
alter table purge set (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);

-- History is still only added to; what was given up goes through a door.
create or replace function refuse_change() returns trigger language plpgsql as $$
begin
    if tg_op = 'DELETE' and current_user = 'sojourn_keyring' then
        return null;
    end if;
    raise exception '% is append-only', tg_table_name using errcode = 'restrict_violation';
end $$;

-- ---- who may do what --------------------------------------------------------------------------

alter table blob_use enable row level security, force row level security;
alter table blob_tally enable row level security, force row level security;
alter table purge enable row level security, force row level security;
create policy tenant on blob_use to sojourn_api using (tenant = (select scope_tenant()));
create policy tenant on blob_tally to sojourn_api using (tenant = (select scope_tenant()));
create policy lent on blob_tally for select to sojourn_engine using (tenant = (select scope_tenant()));
create policy lent on blob_use to sojourn_engine using (tenant = (select scope_tenant()));
create policy engine on purge for select to sojourn_engine using (true);
do $$
declare
    one text;
begin
    foreach one in array array[
        'session', 'run', 'inbox', 'journal', 'message', 'ledger', 'delta', 'blob', 'blob_use', 'blob_tally', 'purge'
    ] loop
        execute format('create policy tidy on %I to sojourn_keyring using (true)', one);
    end loop;
end $$;

grant select, insert on blob_use to sojourn_api, sojourn_engine;
grant select on blob_tally to sojourn_api, sojourn_engine;
grant update (kept_until, look_at) on blob to sojourn_api, sojourn_engine;
grant select on purge to sojourn_engine;
grant select (id, runs_kept_days, ledger_kept_days) on tenant to sojourn_engine;
grant select on tidying to sojourn_engine;
grant update (gone) on tidying to sojourn_engine;
grant update (runs_kept_days, ledger_kept_days) on tenant to sojourn_keyring;
grant select (closed_at, used_at, workspace), update (used_at), delete on session to sojourn_keyring;
grant update (status), delete on run to sojourn_keyring;
grant select (tenant, run_id), delete on inbox to sojourn_keyring;
grant select (tenant, run_id, seq), delete on journal to sojourn_keyring;
grant select (tenant, run_id, frame_id, slot), delete on message to sojourn_keyring;
grant select (tenant, run_id, id), delete on delta to sojourn_keyring;
grant select (tenant, run_id, seq, at), delete on ledger to sojourn_keyring;
grant select (tenant, digest, bytes, kept_until, look_at), update (look_at), delete on blob to sojourn_keyring;
grant select, delete on blob_use to sojourn_keyring;
grant select, insert, update (bytes), delete on blob_tally to sojourn_keyring;
grant select, insert, update, delete on purge to sojourn_keyring;
grant select, update on tidying to sojourn_keyring;

-- ---- steps of the doors below, which nobody else can call ---------------------------------------

-- Before when something has expired; null where it never does.
create function expiry(own_days integer, set_days integer) returns timestamptz language sql stable as $$
    select now() - make_interval(days => nullif(coalesce(own_days, set_days), 0))
$$;

-- Add the tally of tenants up that has become long.
create function add_up() returns void
language sql volatile set search_path = pg_catalog, public, pg_temp as $$
    with some_rows as (
        delete from blob_tally t where (t.tenant, t.id) in (
            select o.tenant, o.id from blob_tally o
            where o.tenant in (select l.tenant from blob_tally l group by l.tenant having count(*) > 100)
            limit 10000 for update skip locked
        ) returning t.tenant, t.bytes
    )
    insert into blob_tally (tenant, bytes) select tenant, sum(bytes) from some_rows group by tenant
$$;

-- Let blobs be looked at soon. A transaction calls it once, at its end: all lock them in one order.
create function look_soon(tenants text[], digests text[]) returns void
language sql volatile set search_path = pg_catalog, public, pg_temp as $$
    select from blob b where (b.tenant, b.digest) in (select * from unnest(tenants, digests)) and b.look_at < 'infinity'
    order by b.tenant, b.digest for no key update;
    update blob b set look_at = greatest(b.kept_until, now())
    where (b.tenant, b.digest) in (select * from unnest(tenants, digests)) and b.look_at < 'infinity';
$$;

-- Make runs whose rows the caller has locked go for everybody; their rows follow by purge_run().
create function drop_runs(of_tenant text, ids text[]) returns void
language sql volatile set search_path = pg_catalog, public, pg_temp as $$
    insert into purge (tenant, run_id) select of_tenant, unnest(ids);
    delete from inbox where tenant = of_tenant and run_id = any(ids);
    delete from run where tenant = of_tenant and id = any(ids);
$$;

-- Delete a session without runs; the archive of its files, for look_soon().
create function drop_session(of_tenant text, of_session text) returns text
language sql volatile set search_path = pg_catalog, public, pg_temp as $$
    delete from session s where s.tenant = of_tenant and s.id = of_session returning s.workspace
$$;

-- Delete up to `most` rows of a run that is gone; how many, and the blobs that it named, for look_soon(). A reader may
-- still be at it, so events go before their words.
create function purge_run(of_tenant text, of_run text, most integer, out gone integer, out digests text[])
language plpgsql volatile set search_path = pg_catalog, public, pg_temp as $$
declare
    n integer;
    room integer := most;
begin
    digests := '{}';
    delete from journal j where j.tenant = of_tenant and j.run_id = of_run and j.seq in (
        select i.seq from journal i where i.tenant = of_tenant and i.run_id = of_run order by i.seq limit room
    );
    get diagnostics n = row_count;
    room := room - n;
    delete from message m where m.tenant = of_tenant and m.run_id = of_run and (m.frame_id, m.slot) in (
        select i.frame_id, i.slot from message i where i.tenant = of_tenant and i.run_id = of_run limit room
    );
    get diagnostics n = row_count;
    room := room - n;
    delete from delta d where d.tenant = of_tenant and d.run_id = of_run and d.id in (
        select i.id from delta i where i.tenant = of_tenant and i.run_id = of_run limit room
    );
    get diagnostics n = row_count;
    room := room - n;
    if room > 0 then
        with dropped as (delete from blob_use u where u.tenant = of_tenant and u.run_id = of_run returning u.digest)
        select coalesce(array_agg(digest), '{}') into digests from dropped;
        delete from purge p where p.tenant = of_tenant and p.run_id = of_run;
    end if;
    gone := most - room;
end $$;

-- End a session of which nothing was used since `before`, or its newest runs where there are more than `most`: those that
-- stay are still a conversation. How many runs went, or null where it stays: it is in use, or not so old; and the archive
-- of its files, for look_soon().
create function expire_session(
    of_tenant text, of_session text, before timestamptz, most integer, out went integer, out archive text
)
language plpgsql volatile set search_path = pg_catalog, public, pg_temp as $$
declare
    there integer;
    ids text[];
begin
    perform from session s
    where s.tenant = of_tenant and s.id = of_session and s.used_at < before for update skip locked;
    if not found or exists (
        select from run r where r.session_id = of_session and r.tenant = of_tenant
            and (r.finished_at is null or r.finished_at >= before)
    ) then
        return;
    end if;
    select count(*) into there from (
        select from run r where r.session_id = of_session and r.tenant = of_tenant limit most
    ) as newest;
    select coalesce(array_agg(id), '{}') into ids from (
        select r.id from run r where r.session_id = of_session and r.tenant = of_tenant
        order by r.finished_at desc limit most for update skip locked
    ) as newest;
    if cardinality(ids) < there then
        return;
    end if;
    if there > 0 then
        perform drop_runs(of_tenant, ids);
    end if;
    if there < most then
        archive := drop_session(of_tenant, of_session);
    end if;
    went := there;
end $$;

-- ---- doors for workers --------------------------------------------------------------------------

-- Look at the next `most` sessions, the longest unused first, and end those that have expired; one worker at a time. A
-- pass is over where fewer than `most` were looked at. Null where another worker is at it.
create function expire_sessions(kept_days integer, most integer, out looked integer, out sessions integer, out runs integer)
language plpgsql security definer set search_path = pg_catalog, public, pg_temp as $$
declare
    place tidying;
    one record;
    its record;
    tenants text[] := '{}';
    archives text[] := '{}';
begin
    select * into place from tidying where task = 'sessions' for update skip locked;
    if not found then
        return;
    end if;
    looked := 0;
    sessions := 0;
    runs := 0;
    for one in
        select s.tenant, s.id, s.used_at, expiry(t.runs_kept_days, kept_days) as before
        from session s join tenant t on t.id = s.tenant
        where (s.used_at, s.id) > (place.after_at, place.after_id)
            and s.used_at < (select max(expiry(u.runs_kept_days, kept_days)) from tenant u)
        order by s.used_at, s.id limit most
    loop
        looked := looked + 1;
        select * into its from expire_session(one.tenant, one.id, one.before, most - runs);
        runs := runs + coalesce(its.went, 0);
        if runs >= most then
            looked := most;
            exit;
        end if;
        sessions := sessions + (its.went is not null)::integer;
        if its.archive is not null then
            tenants := tenants || one.tenant;
            archives := archives || its.archive;
        end if;
        place.after_at := one.used_at;
        place.after_id := one.id;
    end loop;
    if looked < most then
        place.after_at := '-infinity';
        place.after_id := '';
    end if;
    perform look_soon(tenants, archives);
    update tidying set after_at = place.after_at, after_id = place.after_id where task = 'sessions';
end $$;

-- Delete up to `most` rows of runs that are gone; how many. Any number of workers share the work.
create function purge_runs(most integer) returns integer
language plpgsql security definer set search_path = pg_catalog, public, pg_temp as $$
declare
    one purge;
    its record;
    room integer := most;
    tenants text[] := '{}';
    named text[] := '{}';
begin
    for one in select * from purge order by gone_at limit most for update skip locked loop
        select * into its from purge_run(one.tenant, one.run_id, room);
        room := room - its.gone;
        tenants := tenants || array_fill(one.tenant, array[cardinality(its.digests)]);
        named := named || its.digests;
        exit when room <= 0;
    end loop;
    perform look_soon(tenants, named);
    return most - room;
end $$;

-- Delete up to `most` rows of the ledger that have expired; how many. One worker at a time.
create function expire_ledger(kept_days integer, most integer) returns integer
language plpgsql security definer set search_path = pg_catalog, public, pg_temp as $$
declare
    n integer := 0;
begin
    perform from tidying where task = 'ledger' for update skip locked;
    if found then
        delete from ledger l using (
            select old.* from tenant t cross join lateral (
                select o.tenant, o.run_id, o.seq from ledger o
                where o.tenant = t.id and o.at < expiry(t.ledger_kept_days, kept_days) order by o.at limit most
            ) as old
            limit most
        ) as old
        where l.tenant = old.tenant and l.run_id = old.run_id and l.seq = old.seq;
        get diagnostics n = row_count;
    end if;
    return n;
end $$;

-- Look at up to `most` blobs, or about `most_bytes`, and delete those that nothing names; how many were looked at and
-- went. Each is locked first: whoever names one meanwhile waits for this, and whoever was faster is seen.
create function sweep_blobs(most integer, most_bytes bigint, out looked integer, out gone integer)
language plpgsql security definer set search_path = pg_catalog, public, pg_temp as $$
declare
    one record;
    named boolean;
    room bigint := most_bytes;
begin
    looked := 0;
    gone := 0;
    for one in
        select tenant, digest, bytes, kept_until from blob
        where look_at < now() and look_at < 'infinity' order by look_at limit most for update skip locked
    loop
        looked := looked + 1;
        named := exists (
            select from blob_use u where u.digest = one.digest and u.tenant = one.tenant
        ) or exists (
            select from session s where s.workspace = one.digest and s.tenant = one.tenant
        );
        if named or one.kept_until > now() then
            update blob b set look_at = case when named then now() + interval '7 days' else one.kept_until end
            where b.tenant = one.tenant and b.digest = one.digest;
        else
            delete from blob b where b.tenant = one.tenant and b.digest = one.digest;
            gone := gone + 1;
            room := room - one.bytes;
        end if;
        exit when room <= 0;
    end loop;
    perform add_up();
end $$;

-- ---- doors for callers --------------------------------------------------------------------------

-- Delete a run of the caller's tenant: 'deleted', 'unfinished', 'continued' where a later run of its session reads it, or
-- null where there is none. Runs are locked before their session, as by whoever begins one.
create function delete_run(of_run text) returns text
language plpgsql security definer set search_path = pg_catalog, public, pg_temp as $$
declare
    of_tenant text := (scope())[1];
    its record;
    named text[];
begin
    select r.session_id, r.finished_at into its from run r where r.tenant = of_tenant and r.id = of_run for update;
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

-- Delete a closed session of the caller's tenant with its runs: 'deleted', 'open', or null where there is none.
create function delete_session(of_session text) returns text
language plpgsql security definer set search_path = pg_catalog, public, pg_temp as $$
declare
    of_tenant text := (scope())[1];
    closed boolean;
    ids text[];
begin
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

grant execute on function expire_sessions, purge_runs, expire_ledger, sweep_blobs to sojourn_engine;
grant execute on function delete_run, delete_session to sojourn_api;
do $$
declare
    one text;
begin
    foreach one in array array[
        'expiry', 'add_up', 'tally_blobs', 'look_soon', 'drop_runs', 'drop_session', 'purge_run', 'expire_session', 'expire_sessions', 'purge_runs',
        'expire_ledger', 'sweep_blobs', 'delete_run', 'delete_session'
    ] loop
        execute format('alter function %I owner to sojourn_keyring', one);
    end loop;
end $$;
set local role sojourn_keyring;
insert into blob_tally (tenant, bytes) select tenant, sum(bytes) from blob group by tenant;
set local role sojourn_owner;
revoke create on schema public from sojourn_keyring;
