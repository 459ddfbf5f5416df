"""What `sojourn keys rotate` does, with the login of the database's owner.

The rule: a line, or a JSON object, for each step as soon as it is done; no key is shown but public ones.
"""

from argparse import Namespace
from datetime import timedelta
from pathlib import Path

import msgspec

from sojourn import settings, wiring
from sojourn.cli.command import Shell
from sojourn.cli.commands.clock.times import seconds
from sojourn.cli.commands.simulating import run
from sojourn.cli.exits import OK, USAGE, Stop
from sojourn.cli.terminal import count
from sojourn.identity.secrets import rotation
from sojourn.identity.secrets.rotation import Done, Wanted
from sojourn.identity.secrets.vault import missing_in
from sojourn.settings import Settings
from sojourn.store.migrate import pending
from sojourn.store.vault import roots
from sojourn.store.vault.rotation import alone

OVERLAP_MAX = timedelta(days=365)


def rotate(args: Namespace, shell: Shell) -> int:
    """Renew what the flags name."""
    using = settings.load(shell.environ_for(args))
    wanted = _wanted(args, using)
    run(_renew(using, wanted, args, shell))
    return OK


async def _renew(using: Settings, wanted: Wanted, args: Namespace, shell: Shell) -> None:
    keys, steps = wiring.root_keys(using), []
    async with wiring.existing_database(using) as database:
        if await pending(database):
            raise Stop("The database is of an older release: start `sojourn serve` of this one first.")
        async with alone(database) as conn:
            known = await roots.read(database)
            _see_root_keys(wanted, missing_in(keys, known))
            async for done in rotation.renew(conn, keys, known, wanted):
                steps.append(done)
                if not args.json:
                    shell.out.line(_told(done, args.overlap))
        left = (await roots.read(database)).plain
    if args.json:
        shell.print_json({"steps": [msgspec.to_builtins(step) for step in steps], "plain": left})
    elif wanted.root is not None:
        shell.err.line(f"Keep the older root key with the backups from before: they need it. {keys.where}", "dim")
    elif wanted.data and known.current is None:
        shell.err.line(
            "There is no root key, so nothing is sealed: `sojourn keys rotate --root FILE` makes one.", "yellow"
        )


def _see_root_keys(wanted: Wanted, missing: str) -> None:
    """Raise Stop where a root key is missing that is needed, or is to be given up and is there."""
    if wanted.lost and not missing:
        raise Stop("The root key is here, and opens everything: leave --lost out, and nothing is given up.")
    if missing and not wanted.lost and (wanted.root or wanted.data or wanted.signing is not None):
        raise Stop(missing)


def _wanted(args: Namespace, using: Settings) -> Wanted:
    """What the flags name; all but the root key if they name nothing. Raises Stop."""
    if (overlap_s := seconds(args.overlap)) > OVERLAP_MAX.total_seconds():
        raise Stop(f"--overlap is {OVERLAP_MAX.days}d at most.", USAGE)
    if args.lost and not args.root:
        raise Stop("--lost needs --root FILE: what comes is kept under that root key.", USAGE)
    root = Path(args.root).absolute() if args.root else None
    if root == using.root_key_path:
        raise Stop(f"{root} is the file that the API reads: name another one for the new key.", USAGE)
    everything = not (args.scope or args.hooks or args.signing or args.data or args.root)
    return Wanted(
        scope=args.scope or everything,
        hooks=args.hooks or everything,
        data=args.data or everything,
        signing=() if everything else tuple(args.signing) if args.signing else None,
        root=root,
        lost=args.lost,
        overlap=timedelta(seconds=overlap_s),
        by=wiring.operator(),
    )


def _told(done: Done, overlap: str) -> str:
    """A step, for people."""
    match done.what:
        case "scope":
            return f"scopes are signed with the key {done.id}; those of the older keys end within 5 minutes"
        case "hooks":
            return f"webhooks' secrets are made of the key {done.id}; older secrets are good for {overlap}"
        case "data":
            return f"{done.tenant}: the data key is {done.id}, {count(done.count, 'secret')} sealed with it"
        case "signing":
            return f"{done.tenant}: exports are signed by {done.id}; tell those who trust the one before"
        case "root":
            return f"what is new is kept under the root key {done.id}"
        case "wrapped":
            return f"{done.tenant}: {count(done.count, 'data key')} under the root key {done.id} now"
        case "lost":
            return "what the lost root key has sealed is given up"
        case _:
            return f"{count(done.count, 'older key')} taken away that nothing can use"
