"""How a command ends: the exit codes, and the one exception that carries a message out.

Every command returns one of these codes or raises `Stop`; `main` turns both into the process's end. The rule: a code
means the same for every command, and scripts may rely on it.
"""

OK = 0
FAILED = 1
USAGE = 2
UNREACHABLE = 3
UNAUTHENTICATED = 4
NOT_FOUND = 5
CANCELLED = 6
WAITING = 7
INTERRUPTED = 130

MEANINGS = {
    OK: "ok",
    FAILED: "failed or refused",
    USAGE: "wrong usage",
    UNREACHABLE: "server not reachable",
    UNAUTHENTICATED: "not authenticated",
    NOT_FOUND: "not found",
    CANCELLED: "run cancelled",
    WAITING: "run waits for somebody",
    INTERRUPTED: "interrupted (Ctrl-C)",
}

OF_STATUS = {"completed": OK, "failed": FAILED, "cancelled": CANCELLED, "suspended": WAITING}
"""The code for a run's status; a run that is still going has none."""


class Stop(Exception):
    """The command ends here. The message says what happened and what to do, in one line."""

    def __init__(self, message: str, code: int = FAILED) -> None:
        super().__init__(message)
        self.code = code
