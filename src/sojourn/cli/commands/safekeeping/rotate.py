"""`sojourn keys rotate`: new keys for an installation that goes on. What it does is in rotating.py.

The rule: its help says which old keys are still good, and for how long.
"""

from sojourn.cli.command import JSON, Command, flag
from sojourn.cli.commands.server import DATA_DIR, served

ABOUT = """
For the operator. It needs no API key and no running server, but what the server itself has: the data folder,
as the user that runs the server, or SOJOURN_DATABASE_URL, and the root key. The server goes on meanwhile.
Without a flag all keys but the root key are renewed.

  --scope      signs what every database connection may see. Old ones live 5 minutes more
  --hooks      makes webhooks' secrets: `sojourn hook RUN` shows the new one, the old one is good for --overlap
  --signing    signs a tenant's exports. What the old key signed stays good; who trusts it must trust the new one
  --data       seals tenants' secrets, which are sealed anew at once
  --root FILE  wraps the data keys. FILE is made if it is not there; the key is also put first into the file that
               the API reads, which notices without a restart. With SOJOURN_ROOT_KEY, add the new key there first

Workers take old keys away once nothing can use them. Killed half way, it is run again. A second one waits.

--lost, with --root: the old root key is gone for good. Every sealed secret is given up; tenants' exports are
signed with new keys from then on. Nothing else is sealed, so runs, files and API keys are not touched.
"""

ROTATE = Command(
    "Renew the keys of the installation itself",
    served("safekeeping.rotating", "rotate"),
    flags=(
        flag("--scope", action="store_true", help="the key that scopes are signed with"),
        flag("--hooks", action="store_true", help="the key that webhooks' secrets are made of"),
        flag("--signing", metavar="TENANT", action="append", help="a tenant's signing key; again for more"),
        flag("--data", action="store_true", help="every tenant's data key"),
        flag("--root", metavar="FILE", help="the root key: the new one is in FILE, or is made there"),
        flag("--lost", action="store_true", help="with --root: give up what the lost root key has sealed"),
        flag("--overlap", metavar="TIME", default="1d", help="old webhook secrets are good so long: 15m, 2h, 3d (1d)"),
        DATA_DIR,
        JSON,
    ),
    about=ABOUT,
    examples=(
        "sojourn keys rotate",
        "sojourn keys rotate --hooks --overlap 2h",
        "sojourn keys rotate --root /secure/root-2.key",
    ),
)
