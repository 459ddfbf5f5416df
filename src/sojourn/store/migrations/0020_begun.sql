-- What was ever begun on a session's files goes with their archive, so that the next host knows what was not.
--
-- The record counts while no host has the files. A host that gets them keeps a record of its own, and a worker of an
-- older release, which knows of none, must not leave an old one behind: so getting them empties it.

alter table session add column begun text;
comment on column session.begun is 'the provider''s record that belongs to the archive; null where it is not known';
grant update (begun) on session to sojourn_api, sojourn_engine;

create function forget_begun() returns trigger language plpgsql as $$
begin
    new.begun := null;
    return new;
end $$;
create trigger forget_begun before update of host on session for each row
    when (new.host is not null) execute function forget_begun();
