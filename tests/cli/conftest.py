"""A scripted API and a console that is turned to it, for every test that asks."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from console_script import Console
from scripted_api import ScriptedApi


@pytest.fixture
async def api() -> AsyncIterator[ScriptedApi]:
    async with ScriptedApi() as server:
        yield server


@pytest.fixture
def sojourn(tmp_path: Path, api: ScriptedApi) -> Console:
    return Console(tmp_path, api.url)
