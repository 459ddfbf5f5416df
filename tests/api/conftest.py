"""What every test of the API stands on.

api       the running application: `api.get(...)`, `api.post(...)`, one key each for two tenants
player    a worker that the test plays itself
"""

from collections.abc import AsyncIterator

import pytest
from played_worker import Player
from served_api import Served, serve

from sojourn.store.db import Database


@pytest.fixture
async def api(database: Database) -> AsyncIterator[Served]:
    async with serve(database) as served:
        yield served


@pytest.fixture
async def player(api: Served) -> AsyncIterator[Player]:
    player = await Player.start(api.parts.database, api.parts.doorbell.ring)
    yield player
    await player.close()
