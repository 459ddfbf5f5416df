"""`sojourn backup` and `restore`. What they do is in saving.py, which imports the server.

The rule: they say what is not in the file as clearly as what is.
"""

from sojourn.cli.command import JSON, Command, flag
from sojourn.cli.commands.server import DATA_DIR, served

BACKUP = """
The database as it is at one moment, while everything goes on, and the files of sessions that are open on this
machine. Files that are open on other machines are not in it: they are named. So are two things that are never in
it: the root key, unless --with-root-key puts it beside the file, and the settings.

It needs no API key and no running server, but what the server itself has: the data folder, as the user that
runs the server, or SOJOURN_DATABASE_URL. Only its owner can read FILE. Keep it as you keep the database.
"""
RESTORE = """
Into a new data folder, or into an empty database that SOJOURN_DATABASE_URL names. The file is read to its end
first; then all of it is there, or nothing. A backup of an older release is brought up to this one. The root key
must be at hand (root.key in the data folder, SOJOURN_ROOT_KEY, or FILE.root-key): it shows that nobody else
wrote the file. Then start `sojourn serve`: runs go on from where they stood.
"""

COMMANDS = {
    "backup": Command(
        "Write the whole installation into one file",
        served("safekeeping.saving", "backup"),
        flags=(
            flag("file", metavar="FILE", help="the file to make"),
            flag("--with-root-key", action="store_true", help="write the root key beside it, into FILE.root-key"),
            flag("--verify", action="store_true", help="read it again before it gets its name"),
            DATA_DIR,
            JSON,
        ),
        about=BACKUP,
        examples=("sojourn backup /backups/monday.sojourn --verify", "sojourn backup new.sojourn --with-root-key"),
    ),
    "restore": Command(
        "Make an installation of a backup, where there is none",
        served("safekeeping.saving", "restore"),
        flags=(
            flag("file", metavar="FILE", help="a file that `sojourn backup` made"),
            flag("--verify", action="store_true", help="only read it, and say what is in it"),
            flag("--without-root-key", action="store_true", help="do not ask who wrote it; its secrets stay sealed"),
            DATA_DIR,
            JSON,
        ),
        about=RESTORE,
        examples=(
            "sojourn restore /backups/monday.sojourn --verify",
            "sojourn restore /backups/monday.sojourn --data-dir /var/lib/sojourn-new",
        ),
    ),
}
