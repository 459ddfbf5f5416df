"""What `sojourn simulate` does.

The rule: of the server it imports the simulator alone.
"""

import errno
from argparse import Namespace
from collections.abc import Coroutine
from typing import Any

import uvloop

from sojourn.cli.command import Shell
from sojourn.cli.exits import OK, USAGE, Stop
from sojourn.models import simulator


def simulate(args: Namespace, shell: Shell) -> int:
    """Run the model simulator until a signal ends it. Raises Stop for a port that is none."""
    if not 0 <= args.port < 65536:  # uvloop would take the rest of a division
        raise Stop("--port is a number from 0 to 65535.", USAGE)
    run(simulator.serve(args.host, args.port, script_path=args.script, seed=args.seed, log_path=args.log))
    return OK


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """Run something of the server's side; a port that is taken is the caller's to change."""
    try:
        return uvloop.run(work)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise Stop("The port is taken: another server runs there, or choose one with --port.") from None
