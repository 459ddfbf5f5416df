"""`sojourn tenants`: what each tenant may use of this installation.

The rule: it is for the operator. It asks the database and no server, and an API key is neither needed nor enough.
"""

from sojourn.cli.command import JSON, Command, Group, flag
from sojourn.cli.commands.server import DATA_DIR, served

SET = """
For the operator. It needs no key and no running server, but what the server itself has: the data folder,
as the user that runs the server, or SOJOURN_DATABASE_URL. Workers and API keep the new limits at once. Runs
that are being worked on when a limit is lowered go on to their next pause; no new ones begin meanwhile.

N is a number; `none` takes the tenant's own limit away, so that the settings hold.

--rate CLASS.SUBJECT=MAX/WINDOW_S/BURST says how often requests may come: MAX in every WINDOW_S seconds in the
long run, and BURST at once. CLASS is runs, writes, reads, streams or decisions; SUBJECT is tenant (all of it),
user (each of its users) or agent (each of its agents). `off` takes the limit away, `none` lets the settings hold.
"""

COMMANDS = {
    "tenants": Group(
        "What each tenant may use",
        {
            "list": Command(
                "List the tenants with their queues and limits",
                served("serving", "list_tenants"),
                flags=(DATA_DIR, JSON),
                about="A limit that is not shown is that of the settings.",
                examples=("sojourn tenants list",),
            ),
            "set": Command(
                "Change a tenant's limits",
                served("serving", "set_tenant"),
                flags=(
                    flag("tenant", metavar="TENANT", help="the tenant's id"),
                    flag("--runs-max", metavar="N", help="runs that workers hold at once; 0 stops its queue"),
                    flag("--queued-max", metavar="N", help="runs that wait; more are refused with 429"),
                    flag(
                        "--runs-kept-days",
                        metavar="N",
                        help="how long sessions are kept with their runs; 0 is for ever",
                    ),
                    flag("--ledger-kept-days", metavar="N", help="how long it is kept what runs cost; 0 is for ever"),
                    flag("--usd-day", metavar="N", help="US dollars that it may spend on models in a day (UTC)"),
                    flag("--tokens-day", metavar="N", help="tokens that it may use in a day"),
                    flag("--user-usd-day", metavar="N", help="US dollars that each of its users may spend in a day"),
                    flag("--user-tokens-day", metavar="N", help="tokens that each of its users may use in a day"),
                    flag("--rate", metavar="LIMIT", action="append", default=[], help="how often; again for more"),
                    DATA_DIR,
                    JSON,
                ),
                about=SET,
                examples=(
                    "sojourn tenants set default --runs-max 20",
                    "sojourn tenants set acme --queued-max none",
                    "sojourn tenants set acme --rate runs.user=60/60/10 --rate runs.tenant=1000/3600/100",
                ),
            ),
        },
    )
}
