"""A product whose worker starts and says no more."""

import asyncio
import sys

from tests.bench.products.fake import Fake

from bench.peers.adapter import main

WORKER = "import os, time; print(os.getpid(), flush=True); time.sleep(3600)"


class Hung(Fake):
    product = "Hung"

    async def add_worker(self, *, again: bool = False) -> None:
        await self.spawn((sys.executable, "-c", WORKER), log="worker", worker=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    main(Hung)
