"""A scripted server for every test that asks for one."""

from collections.abc import AsyncIterator

import pytest
from raw_server import RawServer


@pytest.fixture
async def raw() -> AsyncIterator[RawServer]:
    async with RawServer() as server:
        yield server
