"""Who may log in, and what each role is. Called by the embedded server's first start and by `db`.

The rule: nothing of ours is a superuser, makes roles or passes row level security. `sojourn_owner` owns the database
and never logs in; `sojourn_api` and `sojourn_engine` own nothing; `sojourn_keyring` alone reads the scope keys.
"""

import msgspec

SUPERUSER = "postgres"
OWNER, KEYRING, API, ENGINE = "sojourn_owner", "sojourn_keyring", "sojourn_api", "sojourn_engine"
MIGRATE = "sojourn_migrate"
LOGINS = (MIGRATE, API, ENGINE)
"""The logins of the embedded server; an operator's server has whatever logins its URLs name."""


class Dsns(msgspec.Struct, frozen=True):
    """Where each role logs in; the three may be one URL, whose login is then a member of all the roles."""

    migrate: str
    api: str
    engine: str
    session: str = ""
    """For LISTEN and the locks that workers live by, where `api` goes through a pooler."""

    def __repr__(self) -> str:
        return "Dsns(...)"  # they hold passwords


def embedded_sql(passwords: dict[str, str]) -> list[str]:
    """Write what makes roles and database on an empty server of ours, run once by its superuser.

    The passwords are random, so that stretching them would only make every connection slower. The migrating login may
    make databases, for a restore or a test beside the live one.
    """
    return [
        "set scram_iterations = 1",
        *(f"create role {name} nologin" for name in (OWNER, KEYRING)),
        *(f"create role {name} login password '{passwords[name]}'" for name in LOGINS),
        f"alter role {MIGRATE} createdb",
        f"grant {KEYRING} to {OWNER} with inherit false, set true",
        f"grant {OWNER} to {MIGRATE} with inherit true, set true",
        "create extension vector",
        f"create database sojourn owner {OWNER}",
        *closing_sql("sojourn"),
    ]


def closing_sql(database: str) -> list[str]:
    """Write what closes a database to all but our roles; its owner runs it."""
    return [
        f'revoke all on database "{database}" from public',
        f'grant connect on database "{database}" to {OWNER}, {API}, {ENGINE}',
    ]


def administrator_sql(database: str, login: str) -> list[str]:
    """Write what an operator's server needs for a login; each statement may be run again."""
    return [
        *(
            f"do $$ begin create role {name} nologin; exception when duplicate_object then null; end $$"
            for name in (OWNER, KEYRING, API, ENGINE)
        ),
        f"grant {KEYRING} to {OWNER} with inherit false, set true",
        f'grant {OWNER}, {API}, {ENGINE} to "{login}" with inherit true, set true',
        *closing_sql(database),
        f'grant create on database "{database}" to {OWNER}',
        f"grant all on schema public to {OWNER} with grant option",
    ]


READY = f"""
select pg_has_role('{OWNER}', '{KEYRING}', 'set')
   and (select bool_and(pg_has_role(role, 'set')) from unnest($1::name[]) role)
   and has_database_privilege('{OWNER}', current_database(), 'create')
   and has_schema_privilege('{OWNER}', 'public', 'create')
   and has_database_privilege('{API}', current_database(), 'connect')
   and has_database_privilege('{ENGINE}', current_database(), 'connect')
"""
"""Whether an operator's server has all this, as seen by a login that must be able to take on the roles $1."""
