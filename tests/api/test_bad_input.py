"""Whatever a caller may send, and the answer that says what to do; nothing of it reaches a worker."""

import io
from itertools import product
from typing import Any

from served_api import GOAL, Served

JSON = {"Content-Type": "application/json"}
DEEP = (
    b'{"input": "go", "model": "sim:one", "tools": [{"name": "t", "schema": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000
)


def tool(**schema: Any) -> dict[str, Any]:
    return {"input": "go", "model": "sim:one", "tools": ["shell", {"name": "mine", "schema": schema}]}


BODIES = [
    (b"{", 400, "request.malformed"),
    (b'{"input": "go"} {}', 400, "request.malformed"),
    (b'{"input": NaN}', 400, "request.malformed"),
    (b'{"input": "\xff"}', 400, "request.malformed"),
    (rb'{"input": "\ud800"}', 400, "request.malformed"),
    (rb'{"input": "\udc00\ud800 x"}', 400, "request.malformed"),
    (DEEP + b"}]}", 400, "request.too_deep"),
    (b"", 422, "request.invalid"),
    (b"[]", 422, "request.invalid"),
    (b'"go"', 422, "request.invalid"),
    (b'{"input": "' + b"x" * (1 << 20) + b'"}', 413, "request.too_large"),
]


async def test_what_is_not_a_json_object_is_refused(api: Served) -> None:
    for raw, status, code in BODIES:
        reply = await api.call("POST", "/v1/runs", data=io.BytesIO(raw), headers=JSON)
        assert (reply.status, reply.code) == (status, code), raw[:60]
    assert (await api.get("/v1/runs")).json["data"] == [], "nothing was written"


FIELDS = [
    ({"model": "sim:one"}, 422, "request.invalid", "/input"),
    ({**GOAL, "input": 7}, 422, "request.invalid", "/input"),
    ({**GOAL, "input": "  "}, 422, "request.invalid", "/input"),
    ({**GOAL, "input": []}, 422, "request.invalid", "/input"),
    ({**GOAL, "input": [{"type": "sound", "blob": "x"}]}, 422, "request.invalid", "/input/0/type"),
    ({**GOAL, "input": [{"type": "image", "blob": "x"}]}, 422, "request.invalid", "/input/0/blob"),
    ({**GOAL, "input": [{"type": "text", "text": " "}]}, 422, "request.invalid", "/input"),
    ({**GOAL, "input": [{"type": "text", "text": "a\0b"}]}, 422, "request.invalid", "/input/0/text"),
    ({**GOAL, "input": [{"type": "text", "text": "a"}] * 65}, 422, "request.invalid", "/input"),
    ({**GOAL, "input": "a\0b"}, 422, "request.invalid", "/input"),
    ({**GOAL, "labels": {"a\0": "b"}}, 422, "request.invalid", "/labels"),
    ({**GOAL, "input": "x" * (256 * 1024 + 1)}, 413, "request.too_large", "/input"),
    ({**GOAL, "input": "ä" * (128 * 1024 + 1)}, 413, "request.too_large", "/input"),
    ({**GOAL, "speed": "fast"}, 422, "request.invalid", "/speed"),
    ({**GOAL, "limits": {"stepz": 1}}, 422, "request.invalid", "/limits/stepz"),
    ({**GOAL, "limits": {"steps": "many"}}, 422, "request.invalid", "/limits/steps"),
    ({**GOAL, "limits": {"steps": 0}}, 422, "request.invalid", "/limits/steps"),
    ({**GOAL, "limits": {"usd": "0.0000001"}}, 422, "request.invalid", "/limits/usd"),
    ({**GOAL, "limits": {"usd": "-1"}}, 422, "request.invalid", "/limits/usd"),
    ({**GOAL, "limits": {"usd": "NaN"}}, 422, "request.invalid", "/limits/usd"),
    ({**GOAL, "model": "sim:unpriced", "limits": {"usd": "1"}}, 422, "budget.no_price", "/limits/usd"),
    ({**GOAL, "priority": 10}, 422, "request.invalid", "/priority"),
    ({**GOAL, "labels": {f"n{n}": "" for n in range(17)}}, 422, "request.invalid", "/labels"),
    ({"input": "go"}, 422, "request.invalid", "/model"),
    ({**GOAL, "models": ["sim:two"]}, 422, "request.invalid", "/model"),
    ({**GOAL, "model": "one"}, 422, "model.unknown", "/model"),
    ({**GOAL, "model": "nobody:one"}, 422, "model.unknown", "/model"),
    ({**GOAL, "model": "sim:"}, 422, "model.unknown", "/model"),
    ({"input": "go", "models": ["sim:one", "nobody:x"]}, 422, "model.unknown", "/models/1"),
    ({**GOAL, "model": "openai:gpt-5"}, 422, "model.no_key", "/model"),
    ({**GOAL, "tools": ["shell", "bash"]}, 422, "tool.unknown", "/tools/1"),
    ({**GOAL, "tools": ["shell", "shell"]}, 422, "request.invalid", "/tools/1"),
    (tool(type="object", properties=3), 422, "tool.schema", "/tools/1/schema/properties"),
    (tool(type="string"), 422, "tool.schema", "/tools/1/schema"),
    (tool(type="object", required="all"), 422, "tool.schema", "/tools/1/schema/required"),
    ({**GOAL, "tools": [{"name": "mine"}]}, 422, "request.invalid", "/tools/0/schema"),
    ({**GOAL, "tools": [{"name": "my tool", "schema": {}}]}, 422, "request.invalid", "/tools/0/name"),
    ({**GOAL, "tools": [{"agent": "nobody"}]}, 422, "agent.unknown", "/tools/0/agent"),
    ({"input": "go", "agent": {"model": "sim:one", "tools": ["bash"]}}, 422, "tool.unknown", "/agent/tools/0"),
    ({"input": "go", "agent": {"model": "openai:gpt-5"}}, 422, "model.no_key", "/agent"),
    ({"input": "go", "agent": "nobody"}, 422, "agent.unknown", "/agent"),
    ({"input": "go", "agent": "nobody", "model": "sim:one"}, 422, "request.invalid", "/model"),
    ({**GOAL, "version": 1}, 422, "request.invalid", "/version"),
    ({"input": "go", "agent": "nobody", "version": 2**31}, 422, "request.invalid", "/version"),
    ({**GOAL, "policy": {"otherwise": "maybe"}}, 422, "request.invalid", "/policy/otherwise"),
    ({**GOAL, "params": {"temperature": "hot"}}, 422, "request.invalid", "/params/temperature"),
]


async def test_a_field_that_cannot_be_accepted_is_pointed_at(api: Served) -> None:
    for body, status, code, pointer in FIELDS:
        reply = await api.post("/v1/runs", body)
        assert (reply.status, reply.code, reply.pointer) == (status, code, pointer), reply.json
    assert (await api.get("/v1/runs")).json["data"] == [], "nothing was written"


async def test_a_refusal_says_what_exists_and_which_variable_to_set(api: Served) -> None:
    assert "read_file, shell" in (await api.post("/v1/runs", {**GOAL, "tools": ["bash"]})).json["detail"]
    assert "openai, sim" in (await api.post("/v1/runs", {**GOAL, "model": "nobody:one"})).json["detail"]
    assert "OPENAI_API_KEY" in (await api.post("/v1/runs", {**GOAL, "model": "openai:gpt-5"})).json["detail"]


async def test_a_chain_needs_one_model_with_a_key(api: Served) -> None:
    body = {"input": "go", "models": ["openai:gpt-5", "sim:one"]}
    assert (await api.post("/v1/runs", body)).status == 202


async def test_a_body_that_is_not_called_json_is_refused(api: Served) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/octet-stream"):
        reply = await api.call("POST", "/v1/runs", data=b"{}", headers={"Content-Type": kind})
        assert (reply.status, reply.code) == (415, "request.media_type")


PATHS = [
    ("/v1/runs/run_00000000000000000000000000/events?after=9223372036854775808", 422, "request.invalid"),
    ("/v1/runs?limit=0", 422, "request.invalid"),
    ("/v1/runs?limit=many", 422, "request.invalid"),
    ("/v1/runs?limit=1&limit=2", 422, "request.invalid"),
    ("/v1/runs?colour=red", 422, "request.invalid"),
    ("/v1/runs?status=lost", 422, "request.invalid"),
    ("/v1/runs?agent=a%00b", 422, "request.invalid"),
    ("/v1/runs/run_nothing", 404, "request.not_found"),
    ("/v1/runs/run_00000000000000000000000000", 404, "request.not_found"),
    ("/v1/runs/run_0000000000000000000000000%00", 404, "request.not_found"),
    ("/v1/runs/..%2f..%2fetc", 404, "request.not_found"),
    ("/v1/agents/%20", 404, "request.not_found"),
    ("/v1/nowhere", 404, "request.not_found"),
    ("/", 404, "request.not_found"),
]


async def test_a_bad_query_or_path_is_refused(api: Served) -> None:
    for path, status, code in PATHS:
        reply = await api.get(path)
        assert (reply.status, reply.code) == (status, code), path


async def test_a_wrong_method_is_told_the_right_ones(api: Served) -> None:
    reply = await api.call("DELETE", "/v1/runs")
    assert (reply.status, reply.code) == (405, "request.method")
    assert "GET, POST" in reply.json["detail"]


async def test_deep_json_is_an_answer_and_never_a_bug(api: Served) -> None:
    for depth, key, leaf in product((50, 200, 500, 900, 1500, 5000), (b"not", b"x"), (b"1", rb'"\u0000"')):
        nested = b'{"%b":' % key * depth + leaf + b"}" * depth
        schema = b'{"type":"object","properties":{"a":' + nested + b"}}"
        raw = b'{"input":"go","model":"sim:one","tools":[{"name":"t","schema":' + schema + b"}]}"
        reply = await api.call("POST", "/v1/runs", data=raw, headers=JSON)
        assert reply.status in (202, 400, 422), (depth, key, leaf, reply.body)


async def test_a_chunked_body_is_bounded_too(api: Served) -> None:
    async def pieces():
        for _ in range(64):
            yield b" " * 65536

    reply = await api.call("POST", "/v1/runs", data=pieces(), headers=JSON)
    assert (reply.status, reply.code) == (413, "request.too_large")


async def test_nothing_of_a_body_is_read_for_a_caller_without_a_key(api: Served) -> None:
    reply = await api.call("POST", "/v1/runs", key="nobody", data=b"{", headers=JSON)
    assert (reply.status, reply.code) == (401, "auth.unauthenticated")
