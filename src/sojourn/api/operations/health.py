"""/healthz and /readyz. A load balancer sends requests where the second says 200.

The rule: neither asks for a key, and neither tells anything about anybody's data.
"""

import msgspec

from sojourn.api.http.codes import Stopping
from sojourn.api.route import Answer, Ask, Route
from sojourn.errors import StoreUnavailable
from sojourn.store import health
from sojourn.store.migrate import pending


class Up(msgspec.Struct, frozen=True, kw_only=True):
    """The process answers."""

    status: str = "ok"


class Readiness:
    """Remembers that the schema was current once: it cannot fall behind a process that runs."""

    def __init__(self) -> None:
        self.current = False

    async def ready(self, ask: Ask[None, None]) -> Answer:
        """Say whether requests can be served. Raises Stopping, and StoreUnavailable with the reason."""
        if ask.parts.stopping.is_set():
            raise Stopping("This server was told to stop. Send requests elsewhere.")
        await health.ping(ask.parts.database)
        if not self.current:
            if missing := await pending(ask.parts.database):
                raise StoreUnavailable(f"Migrations are to be applied: {', '.join(missing)}. `sojourn serve` does it.")
            self.current = True
        return Answer(body=Up())


async def up(ask: Ask[None, None]) -> Answer:
    """Say that the process is up."""
    return Answer(body=Up())


def routes() -> tuple[Route, ...]:
    """The routes, with a memory of their own."""
    return (
        Route(
            method="GET",
            path="/healthz",
            handler=up,
            summary="Is the process up?",
            tag="operations",
            public=True,
            answers={200: (Up, "It is")},
        ),
        Route(
            method="GET",
            path="/readyz",
            handler=Readiness().ready,
            summary="Can requests be served?",
            detail="The database answers, its schema is current, and the server was not told to stop.",
            tag="operations",
            public=True,
            answers={200: (Up, "They can")},
            refusals=("store.unavailable", "server.stopping"),
        ),
    )
