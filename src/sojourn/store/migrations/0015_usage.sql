-- What calls cost that gave no reply, and since when a tenant's ledger is whole.
--
--   ledger.estimated      the provider gave no whole count: the call was cut, or it never counts
--   run.estimated_calls   so many of a run's calls are in its sums by an estimate
--   tenant.ledger_since   what was paid before is deleted, all or some of it; null where nothing ever was
--
-- A release that does not know them writes the defaults.

alter table ledger add column estimated boolean not null default false;
alter table run add column estimated_calls integer not null default 0;
alter table tenant add column ledger_since timestamptz;

grant update (estimated_calls) on run to sojourn_engine;
grant select (ledger_since), update (ledger_since) on tenant to sojourn_keyring;

-- As in 0006_retention.sql, and noted for whoever sums up.
grant create on schema public to sojourn_keyring;
set local role sojourn_keyring;
create or replace function expire_ledger(kept_days integer, most integer) returns integer
language plpgsql security definer set search_path = pg_catalog, public, pg_temp as $$
declare
    n integer := 0;
begin
    perform from tidying where task = 'ledger' for update skip locked;
    if found then
        with gone as (
            delete from ledger l using (
                select old.* from tenant t cross join lateral (
                    select o.tenant, o.run_id, o.seq from ledger o
                    where o.tenant = t.id and o.at < expiry(t.ledger_kept_days, kept_days) order by o.at limit most
                ) as old
                limit most
            ) as old
            where l.tenant = old.tenant and l.run_id = old.run_id and l.seq = old.seq
            returning l.tenant, l.at
        ), last as (
            select g.tenant, count(*) as n, max(g.at) as at from gone g group by g.tenant
        ), noted as (
            update tenant t set ledger_since = greatest(t.ledger_since, last.at + interval '1 microsecond')
            from last where t.id = last.tenant
        )
        select coalesce(sum(last.n), 0) into n from last;
    end if;
    return n;
end $$;
set local role sojourn_owner;
revoke create on schema public from sojourn_keyring;
