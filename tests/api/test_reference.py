"""The reference says what is served, and nothing else."""

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from served_api import Served

import sojourn
from sojourn import errors
from sojourn.api.app import build, served
from sojourn.api.http import codes
from sojourn.api.reference import openapi
from sojourn.identity.scopes import SCOPES

SOURCE = Path(sojourn.__file__).parent
PUBLIC = {
    "/healthz", "/readyz", "/openapi.json", "/docs", "/v1/hooks/{run_id}", "/.well-known/oauth-protected-resource",
}  # fmt: skip


@pytest.fixture
async def document(api: Served) -> dict[str, Any]:
    async with api.http.get(f"{api.url}/openapi.json") as reply:
        assert reply.headers["Content-Type"] == "application/json"
        return await reply.json()


async def test_no_pattern_lets_a_newline_pass_at_its_end(document: dict[str, Any]) -> None:
    found = re.findall(r'"pattern":"((?!#/components)(?:[^"\\]|\\.)*)"', msgspec.json.encode(document).decode())
    assert len(found) > 20
    assert [pattern for pattern in found if not pattern.endswith(r"(?![\\s\\S])")] == []


def operations(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(m.upper(), path): op for path, methods in document["paths"].items() for m, op in methods.items()}


def references(value: Any) -> list[str]:
    match value:
        case {"$ref": str(found)}:
            return [found]
        case dict():
            return [found for one in value.values() for found in references(one)]
        case list():
            return [found for one in value for found in references(one)]
    return []


async def test_what_is_served_is_described_and_the_reverse(api: Served, document: dict[str, Any]) -> None:
    there = {
        (route.method, re.sub(r"\{(\w+):[^}]*\}", r"{\1}", route.resource.canonical))
        for route in api.app.router.routes()
        if route.resource
    }
    assert there == set(operations(document))
    assert document["openapi"] == "3.1.0"


async def test_every_reference_leads_somewhere_and_every_schema_is_used(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    found = {name.removeprefix("#/components/schemas/") for name in references(document)}
    assert found <= schemas.keys()
    assert schemas.keys() - found <= {"Delta"}


async def test_every_operation_is_complete(document: dict[str, Any]) -> None:
    names = [operation["operationId"] for operation in operations(document).values()]
    assert len(names) == len(set(names))
    for (method, path), operation in operations(document).items():
        where = f"{method} {path}"
        given = {one["name"] for one in operation["parameters"] if one["in"] == "path"}
        assert given == set(re.findall(r"\{(\w+)\}", path)), where
        assert operation["summary"], where
        assert any(status.startswith("2") for status in operation["responses"]), where
        assert all(one.get("description") for one in operation["parameters"] if one["in"] != "path"), where
        for status, answer in operation["responses"].items():
            assert answer["description"], where
            if status.startswith(("4", "5")):
                assert list(answer["content"]) == ["application/problem+json"], where
        if "requestBody" in operation and "application/json" in operation["requestBody"]["content"]:
            assert "example" in operation["requestBody"]["content"]["application/json"], where
        public = operation.get("security") == []
        assert public == (path in PUBLIC), where


async def test_examples_are_accepted_by_their_own_schema() -> None:
    for route in served():
        if route.body is not None:
            openapi.msgspec.convert(route.example, route.body)


def test_every_code_is_known_with_its_status() -> None:
    classes = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, errors.SojournError)]
    statuses = {one.code: one.http_status for one in classes}
    for code, (status, title) in codes.CODES.items():
        assert statuses.get(code, status) == status, code
        assert title, code
    answered = {code for route in served() for code in openapi.codes(route)}
    assert answered <= codes.CODES.keys()


def test_every_code_that_the_api_answers_with_is_listed() -> None:
    raised = set()
    for folder in ("api", "identity", "store/runs", "store/tenant"):
        for file in (SOURCE / folder).rglob("*.py"):
            raised |= set(re.findall(r'code="([a-z_]+\.[a-z_]+)"', file.read_text()))
    ours = {
        "run.exists",
        "session.exists",
        "worker.lost",
        "settings.root_key",
        "model.given_up",
    }  # made here; of events, a start
    assert raised - ours <= codes.CODES.keys()


def test_every_scope_is_asked_for_somewhere() -> None:
    asked = {route.scope for route in served()} - {None}
    assert asked <= SCOPES.keys()
    assert SCOPES.keys() - asked == {"budgets:raise"}


async def test_the_page_needs_nothing_from_elsewhere(api: Served) -> None:
    async with api.http.get(f"{api.url}/docs") as reply:
        assert reply.status == 200
        policy, text = reply.headers["Content-Security-Policy"], await reply.text()
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"<script|src=|@import|url\(|https?://(?!example\.org)", text)
    assert "/v1/runs/{run_id}/events" in text
    assert build(api.parts) is not api.app
