"""What the doctor says of judges: nothing where there is none, and which of them cannot be asked here."""

import msgspec
from tests.store.scripted_runs import enter

from sojourn.doctor import _judges
from sojourn.guardrails.rules import Guardrail, encode
from sojourn.models.model import Endpoint
from sojourn.settings import Settings
from sojourn.store import guardrails
from sojourn.store.db import Database


async def test_a_judge_whose_provider_is_gone_is_named(database: Database) -> None:
    here = Settings(endpoints=(Endpoint(name="openai", dialect="openai", base_url="http://127.0.0.1:9/v1"),))
    assert await _judges(database, here) is None
    principal = await enter(database, "acme")

    async def put(name: str, model: str) -> None:
        rule = {"kind": "judge", "on": ["output"], "model": model, "criteria": "It is rude."}
        spec = encode(msgspec.convert({"rules": [rule]}, Guardrail))
        async with database.scoped(principal.handle) as conn:
            await guardrails.put(conn, "acme", name, spec=spec, by="ann")

    await put("g", "openai:small")
    well = await _judges(database, here)
    assert well is not None and (well.ok, well.detail) == (True, "1 model")
    await put("h", "gone:small")
    ill = await _judges(database, here)
    assert ill is not None and (ill.ok, ill.detail) == (False, "2 models; no provider here for gone:small of acme/h")
    assert "add the provider" in ill.hint
    async with database.scoped(principal.handle) as conn:
        await guardrails.end(conn, "acme", "h", by="ann")
    mended = await _judges(database, here)
    assert mended is not None and mended.ok
