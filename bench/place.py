"""Places to measure in, of which nothing is left: a data folder, and an empty database in one. Called by the benches.

The rule: a folder is removed when its database server has ended, as a server that stops still writes.
"""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.conftest import until

from sojourn.store import embedded
from sojourn.store.db import Database, connect
from sojourn.store.migrate import migrate

STOP_S = 60.0


@asynccontextmanager
async def data_folder() -> AsyncIterator[Path]:
    """Give a data folder of its own."""
    folder = Path(tempfile.mkdtemp(prefix="sojourn-bench-"))
    try:
        yield folder
    finally:
        await until(lambda: not embedded.running(folder), STOP_S)
        await asyncio.to_thread(shutil.rmtree, folder)


@asynccontextmanager
async def empty_database() -> AsyncIterator[Database]:
    """Give an empty installation's database, as durable as a real one."""
    async with data_folder() as folder, await embedded.start(folder) as cluster, await connect(cluster) as database:
        await migrate(database)
        yield database
