"""What `sojourn backup` and `restore` do, with the login of the database's owner.

The rules: a file has its name only once it is whole; a file that fails any check is not begun with.
"""

import os
import secrets
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from sojourn import __version__, settings, wiring
from sojourn.cli.command import Shell
from sojourn.cli.commands.simulating import run
from sojourn.cli.exits import OK, Stop
from sojourn.cli.terminal import count, size
from sojourn.errors import OverLimit, SandboxUnavailable
from sojourn.identity.secrets import roots
from sojourn.identity.secrets.roots import RootKeys
from sojourn.identity.secrets.vault import missing_in
from sojourn.sandboxes.placing import ARCHIVE_BYTES_MAX
from sojourn.sandboxes.sandbox import Provider
from sojourn.settings import Settings
from sojourn.store.backup import container
from sojourn.store.backup.container import PIECE_BYTES, Checked, Files, Footer, Header, Writer
from sojourn.store.backup.dump import Placed, dump
from sojourn.store.backup.load import fits, load
from sojourn.store.migrate import load as migrations
from sojourn.store.vault import roots as kept_roots

BESIDE = ".root-key"


def backup(args: Namespace, shell: Shell) -> int:
    """Write a backup."""
    using, path, began = settings.load(shell.environ_for(args)), Path(args.file).absolute(), time.monotonic()
    beside = path.with_name(path.name + BESIDE)
    for taken in (path, *([beside] if args.with_root_key else ())):
        if taken.exists():
            raise Stop(f"{taken} exists, and no backup is written over another one. Name another file.")
    keys = wiring.root_keys(using)
    if args.with_root_key and not keys.ids:
        raise Stop("There is no root key here to be written beside it.")
    told = _told(args, shell)
    with _part(path) as (draft, file):
        footer = run(_written(using, keys, file, told))
        if args.verify:
            file.flush()
            told("reading it again")
            container.check(draft, keys.mac)
    if args.with_root_key:
        roots.write(beside, *(keys.key(root) for root in keys.ids), replace=False)
    report = _report(footer, path.stat().st_size, time.monotonic() - began)
    if args.json:
        shell.print_json({"file": str(path), "root_key": str(beside) if args.with_root_key else None, **report})
        return OK
    shell.out.line(f"{path}: {size(report['bytes'])} in {report['seconds']:.1f} s", "bold")
    _show(footer, shell)
    if args.with_root_key:
        shell.out.line(f"{beside} is the root key: keep it apart from the backup.", "yellow")
    elif keys.ids:
        shell.out.line(
            f"The root key {keys.ids[0]} is not in it, and nothing sealed opens without: keep it, too.", "yellow"
        )
    return OK


def restore(args: Namespace, shell: Shell) -> int:
    """Check a backup, and fill an empty database with it."""
    using, path, began = settings.load(shell.environ_for(args)), Path(args.file).absolute(), time.monotonic()
    beside = path.with_name(path.name + BESIDE)
    told = _told(args, shell)
    told("reading it")
    checked = _checked(using, path, beside, without=args.without_root_key)
    fits(checked.header, migrations())
    if not args.verify:
        run(_filled(using, path, checked, told))
        if beside.exists() and not using.root_key and not using.root_key_path.exists():
            roots.write(using.root_key_path, *roots.read(beside).values(), replace=False)
    report = {
        **_report(checked.footer, checked.size_bytes, time.monotonic() - began),
        **msgspec.to_builtins(checked.header),
        "vouched": checked.vouched,
        "restored": not args.verify,
    }
    if args.json:
        shell.print_json(report)
        return OK
    made = f"{checked.header.made_at:%Y-%m-%d %H:%M:%S} UTC by {checked.header.host}, release {checked.header.release}"
    shell.out.line(f"{'It is whole' if args.verify else 'Restored'}: made {made}", "bold")
    _show(checked.footer, shell)
    if not checked.vouched:
        shell.out.line("Nobody vouches for it: it has no root key's code, or the root key was not asked for.", "yellow")
    if not args.verify:
        shell.out.line(f"Start it: sojourn serve --data-dir {using.data_dir}")
    return OK


async def _written(using: Settings, keys: RootKeys, file: BinaryIO, told: Callable[[str], None]) -> Footer:
    """Write the whole file; what is at its end."""
    writer, host = Writer(file), wiring.host_name(using)
    header = Header(release=__version__, host=host, made_at=wiring.now())
    async with wiring.existing_database(using) as database:
        if missing := missing_in(keys, await kept_roots.read(database)):
            raise Stop(missing)
        found = await dump(database, writer, header, told=told, by=wiring.operator())
    elsewhere = Counter(one.host for one in found.placed if one.host != host)
    sandboxes, sessions = wiring.open_sandboxes(using), 0
    try:
        for one in found.placed:
            if one.host == host:
                told(f"files of {one.id}")
                taken = await _files(sandboxes, using, one, writer)
                sessions += taken
                elsewhere[host] += not taken
    finally:
        await sandboxes.close()
    footer = Footer(sequences=found.sequences, size_bytes=writer.sizes, sessions=sessions, elsewhere=dict(+elsewhere))
    writer.end(footer, root=found.root, vouch=keys.mac)
    return footer


async def _files(sandboxes: Provider, using: Settings, session: Placed, writer: Writer) -> bool:
    """Write what a session's workspace holds now, which may be newer than its run; False where it has none here."""
    limits = using.sandbox_limits
    limits = msgspec.structs.replace(limits, disk_bytes=min(limits.disk_bytes, ARCHIVE_BYTES_MAX))
    try:
        async with sandboxes.alone(session.id):
            snapshot = await sandboxes.copy(session.id, limits)
    except (OverLimit, SandboxUnavailable):
        return False
    if snapshot is None:
        return False
    writer.begin(Files(session.tenant, session.id, snapshot.digest, len(snapshot.data)))
    for at in range(0, len(snapshot.data), PIECE_BYTES):
        writer.add(snapshot.data[at : at + PIECE_BYTES])
    return True


async def _filled(using: Settings, path: Path, checked: Checked, told: Callable[[str], None]) -> None:
    wiring.make_data_folder(using.data_path)
    async with wiring.open_database(using) as database:
        await load(database, path, checked, told, by=wiring.operator())


def _checked(using: Settings, path: Path, beside: Path, *, without: bool) -> Checked:
    """Read the file to its end, with the root key that it names. Raises Stop where that is not at hand, and Invalid."""
    wanted, keys = container.head(path).roots, wiring.root_keys(using)
    if without or not wanted:
        return container.check(path, None)
    for at_hand in (keys, RootKeys("", beside)):
        if at_hand.has(wanted[0]):
            return container.check(path, at_hand.mac)
    raise Stop(
        f"The root key {wanted[0]} is not at hand, which shows that nobody changed the backup. Put it {keys.where} or "
        f"into {beside}; where it is lost, restore with --without-root-key."
    )


@contextmanager
def _part(path: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """A file under another name, which gets its own once it is on the disk. Raises Stop."""
    draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        with open(draft, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            yield draft, file
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            raise Stop(f"{path} has come to be meanwhile, and no backup is written over another one.")
        draft.rename(path)
    except OSError as error:
        raise Stop(f"{path} cannot be written: {error.strerror}.") from None
    finally:
        draft.unlink(missing_ok=True)


def _told(args: Namespace, shell: Shell) -> Callable[[str], None]:
    """Says what is worked on, beside the output."""
    return lambda what: None if args.json else shell.err.line(f"  {what}", "dim")


def _report(footer: Footer, size_bytes: int, seconds: float) -> dict[str, Any]:
    return {
        "bytes": size_bytes,
        "seconds": round(seconds, 3),
        "content_bytes": sum(footer.size_bytes.values()),
        "sessions": footer.sessions,
        "elsewhere": footer.elsewhere,
    }


def _show(footer: Footer, shell: Shell) -> None:
    """What is in it, and what is not."""
    content = size(sum(footer.size_bytes.values()))
    shell.out.line(
        f"  {content} in {count(len(footer.size_bytes), 'table')}; files of {count(footer.sessions, 'open session')}"
    )
    for host, sessions in sorted(footer.elsewhere.items()):
        shell.out.line(f"  not in it: the files of {count(sessions, 'session')} on the host {host}", "yellow")
