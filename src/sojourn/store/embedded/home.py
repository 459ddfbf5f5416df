"""The folder `<data_dir>/postgres`, and the user id that its server runs as. Called by `initdb` and `cluster`.

The rule: data and socket folder are 0700 and belong to the server's user; the configuration, the locks and the
passwords belong to us. PostgreSQL refuses to run as root, so root's server gets a user id that nobody else has.
"""

import hashlib
import os
from pathlib import Path

import msgspec

from sojourn.errors import StoreUnavailable

PRIVATE_UIDS = range(60_578, 61_184)
"""User ids that no system gives to anybody. Source: https://systemd.io/UIDS-GIDS (read 2025-11)."""


class Owner(msgspec.Struct, frozen=True):
    """The user and group that the server runs as."""

    uid: int
    gid: int

    @property
    def is_other(self) -> bool:
        """Say whether the server runs as somebody else than this process."""
        return self.uid != os.geteuid()


class Home(msgspec.Struct, frozen=True):
    """Every path of one embedded server."""

    root: Path
    data: Path
    """PostgreSQL's own folder; it exists only when it is complete."""
    run: Path
    """The folder of the socket."""
    log: Path
    config: Path
    hba: Path
    passwords: Path
    users_lock: Path
    """Shared by every process that uses the server."""
    server_lock: Path
    """Held by the keeper and by each process of the server, as long as they live."""


def home_in(data_dir: Path) -> Home:
    """Name the paths below a data folder."""
    root = data_dir.resolve() / "postgres"
    names = (
        "data",
        "run",
        "server.log",
        "postgresql.conf",
        "pg_hba.conf",
        "passwords.json",
        "users.lock",
        "server.lock",
    )
    return Home(root, *(root / name for name in names))


def prepare(home: Home) -> Owner:
    """Make the folders and return who runs the server.

    Raises StoreUnavailable when that user cannot reach them.
    """
    data_dir = home.root.parent
    if not data_dir.exists():
        data_dir.mkdir(parents=True, mode=0o700)
    home.root.mkdir(mode=0o700, exist_ok=True)
    owner = _owner(home)
    if owner.is_other:
        _let_pass(home.root, owner)
        _refuse_closed_folders(home.root, owner)
    home.run.mkdir(mode=0o700, exist_ok=True)
    give(home.run, owner)
    return owner


def give(folder: Path, owner: Owner) -> None:
    """Make a folder and all that is in it the owner's; a symlink is given, never followed."""
    if not owner.is_other:
        return
    os.chown(folder, owner.uid, owner.gid, follow_symlinks=False)
    for _, folders, files, fd in os.fwalk(folder):
        for name in (*folders, *files):
            os.chown(name, owner.uid, owner.gid, dir_fd=fd, follow_symlinks=False)


def _owner(home: Home) -> Owner:
    """Choose who runs the server: the owner of its data, else ourselves, else (as root) an id derived from the path."""
    if home.data.exists() and (uid := home.data.stat().st_uid) != 0:
        if os.geteuid() not in (0, uid):
            raise StoreUnavailable(
                f"{home.root} belongs to user id {uid}. Run Sojourn as that user, or set another SOJOURN_DATA_DIR."
            )
        return Owner(uid, home.data.stat().st_gid)
    if os.geteuid() != 0:
        return Owner(os.geteuid(), os.getegid())
    digest = hashlib.sha256(bytes(home.root)).digest()
    uid = PRIVATE_UIDS[int.from_bytes(digest[:4], "big") % len(PRIVATE_UIDS)]
    return Owner(uid, uid)


def _let_pass(root: Path, owner: Owner) -> None:
    """Let the owner pass our two folders, and list neither."""
    root.parent.chmod(root.parent.stat().st_mode | 0o001)
    try:
        os.chown(root, -1, owner.gid)
    except OSError as error:
        raise StoreUnavailable(
            "Root's database server needs a user id of its own, and this system or container gives none "
            f"({error.strerror}). Run Sojourn as an ordinary user, or set SOJOURN_DATABASE_URL."
        ) from error
    root.chmod(0o710)


def _refuse_closed_folders(path: Path, owner: Owner) -> None:
    """Raise StoreUnavailable when a folder on the way to `path` does not let the server's user pass."""
    for folder in (path, *path.parents):
        stat = folder.stat()
        shift = 6 if stat.st_uid == owner.uid else 3 if stat.st_gid == owner.gid else 0
        if not stat.st_mode >> shift & 0o1:
            raise StoreUnavailable(
                f"Started by root, the database server runs as user id {owner.uid}, which may not pass {folder} "
                f"(mode {stat.st_mode & 0o777:o}). Set SOJOURN_DATA_DIR to a folder that others may pass, such as "
                "/var/lib/sojourn, or run Sojourn as an ordinary user."
            )
