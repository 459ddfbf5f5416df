-- A webhook's secret is replaced without a moment in which its receiver refuses what it is sent: for a while messages are
-- signed with the former one too. The former one is kept by a trigger, since no process may read either.

alter table webhook add column former_secret bytea, add column former_until timestamptz;
comment on column webhook.former_secret is 'good until `former_until`; null where the secret was never replaced';

create function keep_former_secret() returns trigger language plpgsql as $$
begin
    new.former_secret := old.secret;
    return new;
end $$;
create trigger replaced before update of secret on webhook for each row execute function keep_former_secret();

grant create on schema public to sojourn_keyring; -- for the moment that its function is replaced
set local role sojourn_keyring;
-- Source: Standard Webhooks 1.0.0, symmetric signatures, and several of them with a blank between.
create or replace function sign_delivery(of_tenant text, delivery_id text, sent_s bigint) returns text
language sql stable security definer set search_path = pg_catalog, public, pg_temp as $$
    select string_agg('v1,' || encode(
        hmac_sha256(convert_to(d.id || '.' || sent_s || '.' || d.body, 'UTF8'), good.secret), 'base64'
    ), ' ' order by good.n)
    from webhook_delivery d join webhook w on w.tenant = d.tenant and w.id = d.webhook_id
    cross join lateral (
        values (1, w.secret), (2, case when w.former_until > now() then w.former_secret end)
    ) as good (n, secret)
    where d.tenant = of_tenant and d.id = delivery_id and good.secret is not null
$$;
set local role sojourn_owner;
revoke create on schema public from sojourn_keyring;

grant select (former_until) on webhook to sojourn_api;
grant update (secret, former_until) on webhook to sojourn_api;
grant select (former_secret, former_until) on webhook to sojourn_keyring;
