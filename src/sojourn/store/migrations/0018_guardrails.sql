-- Guardrails: named rules for what passes through a tenant's runs, or through everybody's.
--
-- A row is a version, and nothing of it ever changes: to change a guardrail is to write the next one, and to end it is
-- to write one without rules. So what was in force at any time can be read, and who made it so.

create table guardrail (
    tenant   text not null,
    name     text not null check (name ~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$'),
    version  integer not null check (version > 0),
    spec     text,
    made_by  text not null,
    made_at  timestamptz not null default clock_timestamp(),
    primary key (tenant, name, version)
);
alter table guardrail alter spec set storage external;
comment on column guardrail.tenant is '* is every tenant, and the operator''s';
comment on column guardrail.spec is 'the rules; null ends it';
create index guardrail_made on guardrail (made_at);

alter table guardrail enable row level security, force row level security;
create policy tenant on guardrail to sojourn_api using (tenant = (select scope_tenant()));
create policy own on guardrail as restrictive for insert to sojourn_api with check (made_by = (select scope_user()));
create policy engine on guardrail for select to sojourn_engine using (true);
create policy keyring on guardrail to sojourn_keyring using (true);

grant select on guardrail to sojourn_api, sojourn_engine;
grant insert (tenant, name, version, spec, made_by) on guardrail to sojourn_api;
grant select, insert (tenant, name, version, spec, made_by) on guardrail to sojourn_keyring;
