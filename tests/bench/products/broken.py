"""A product whose worker ends as soon as it starts."""

import sys

from tests.bench.products.fake import Fake

from bench.peers.adapter import main


class Broken(Fake):
    product = "Broken"

    async def add_worker(self, *, again: bool = False) -> None:
        worker = await self.spawn((sys.executable, "-c", "raise SystemExit('no licence')"), log="worker", worker=True)
        await self.until_ready(worker, lambda: self.answers("http://127.0.0.1:1/"))


if __name__ == "__main__":
    main(Broken)
