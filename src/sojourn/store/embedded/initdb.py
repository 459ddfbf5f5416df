"""Makes the data folder: once, whole or not at all. Called by `cluster`, which holds the server's lock.

The rule: what needs the superuser happens here, in single-user mode, where nobody can connect; the running server
refuses that login.
"""

import os
import secrets
import shutil
from functools import partial
from pathlib import Path

import msgspec

from sojourn.errors import StoreUnavailable
from sojourn.store.embedded import programs
from sojourn.store.embedded.home import Home, Owner, give
from sojourn.store.roles import LOGINS, SUPERUSER, embedded_sql

INITDB_FLAGS = (
    *("--username", SUPERUSER, "--encoding=UTF8"),
    *("--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"),  # no system update changes the order
)
SINGLE_FLAGS = ("-c", "exit_on_error=on", "-c", "log_min_error_statement=panic")  # the statements hold passwords

CONFIG = """\
# Written at every start. Settings of your own go into local.conf beside this file.
listen_addresses = ''
unix_socket_directories = '../run'
unix_socket_permissions = 0700
max_connections = 200
shared_buffers = 128MB
random_page_cost = 1.1
io_method = sync
max_parallel_workers_per_gather = 0         # parallel queries need more shared memory than a container may have
max_parallel_maintenance_workers = 0
wal_level = minimal
max_wal_senders = 0
synchronous_commit = on
fsync = {fsync}
full_page_writes = {fsync}
autovacuum_naptime = 15s                    # a queue leaves many dead rows
idle_in_transaction_session_timeout = 60s
timezone = UTC
log_timezone = UTC
log_min_messages = log                      # no failed statements: they hold what users wrote
log_min_error_statement = panic
log_error_verbosity = terse
log_checkpoints = off
include_if_exists = 'local.conf'
"""

HBA = f"""\
local all {SUPERUSER} reject
local all {",".join(LOGINS)} scram-sha-256
"""


def create(home: Home, owner: Owner, *, lock: int, fsync: bool) -> None:
    """Make the data folder beside its final place and rename it when it is complete."""
    draft, maker, folder = home.root / "draft", programs.named(owner), programs.find(home, owner)
    must = partial(_must, maker, lock)
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(mode=0o700)
    give(draft, maker)
    must(folder / "initdb", "--pgdata", draft, *INITDB_FLAGS, *([] if fsync else ["--no-sync"]))
    passwords = {name: secrets.token_urlsafe(32) for name in LOGINS}
    script = "".join(f"{statement};\n\n" for statement in embedded_sql(passwords))
    flags = [*SINGLE_FLAGS, "-c", f"fsync={fsync}"]
    must(folder / "postgres", "--single", "-j", *flags, "-D", draft, "template1", stdin=script)
    give(draft, owner)
    write(home.passwords, msgspec.json.encode(passwords), mode=0o600)
    draft.rename(home.data)
    _sync(home.root)


def configure(home: Home, owner: Owner, *, fsync: bool) -> None:
    """Write the configuration that the next start reads; it is ours, and the server may only read it."""
    gid = owner.gid if owner.is_other else -1
    write(home.config, CONFIG.format(fsync="on" if fsync else "off").encode(), mode=0o640, gid=gid)
    write(home.hba, HBA.encode(), mode=0o640, gid=gid)


def write(path: Path, content: bytes, *, mode: int, gid: int = -1) -> None:
    """Replace a file in one step, so that a crash leaves the old one or the new one."""
    draft = path.with_name(f"{path.name}.draft")
    draft.unlink(missing_ok=True)
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
        os.fchown(fd, -1, gid)
        os.fchmod(fd, mode)
        file.flush()
        os.fsync(fd)
    draft.rename(path)


def _must(maker: Owner, lock: int, *command: str | Path, stdin: str = "") -> None:
    """Run a program and raise StoreUnavailable with its last words when it fails."""
    done = programs.run(maker, *command, stdin=stdin, lock=lock)
    if done.returncode != 0:
        raise StoreUnavailable(explain(done.stdout))


def explain(said: str) -> str:
    """Turn the last words of a server that did not start into what to do."""
    last = " ".join(said.split("\n")[-6:]).strip()
    if any(words in said for words in ("No space left on device", "Check free disk space", "Disk quota exceeded")):
        return (
            f"The disk of the data folder is full. Free at least 200 MB there and start again. The last words: {last}"
        )
    return f"The database server did not start. The last words: {last}"


def _sync(folder: Path) -> None:
    """Make a rename in a folder durable."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
