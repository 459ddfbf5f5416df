"""A product that cannot be asked whether a tool may run, and has the notion of little else."""

from tests.bench.products.fake import Fake

from bench.peers.adapter import main
from bench.peers.verbs import Kind


class Lame(Fake):
    product = "Lame"
    lacks = dict.fromkeys(("added", "steps", "runs", "takeover", "small"), "it has no notion of it")

    async def begin(self, run: str, kind: Kind, tenant: str) -> None:
        if kind == "ask":
            raise RuntimeError("nobody may be asked")
        await super().begin(run, kind, tenant)


if __name__ == "__main__":
    main(Lame)
