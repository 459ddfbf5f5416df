"""A scripted API and a console that is turned to it, or a real server, for every test that asks."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from console_script import Console
from scripted_api import ScriptedApi
from tests.installation import Installation


@pytest.fixture
async def api() -> AsyncIterator[ScriptedApi]:
    async with ScriptedApi() as server:
        yield server


@pytest.fixture
async def installation(data_dir: Path) -> AsyncIterator[Installation]:
    """An API process with the embedded database."""
    installation = Installation(data_dir, "http://127.0.0.1:9", {})
    try:
        await installation.start_api("--no-worker")
        yield installation
    finally:
        await installation.stop()


@pytest.fixture
def sojourn(tmp_path: Path, api: ScriptedApi) -> Console:
    return Console(tmp_path, api.url)
