"""What OpenAPI says of commands: it is complete, its examples work, and no answer is not in it."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ledger.domain.orders import Action, OrderType
from ledger.http.permissions import PERMISSIONS
from tests.ledger.http import schemas
from tests.ledger.http.service import PASSWORD, ROUTERS, Service, a_service
from tests.ledger.support import an_id

Operation = tuple[str, dict[str, Any]]


def _document() -> dict[str, Any]:
    app = FastAPI()
    for router in ROUTERS:
        app.include_router(router)
    return app.openapi()


DOCUMENT = _document()
SCHEMAS = DOCUMENT["components"]["schemas"]
OPERATIONS: list[Operation] = [(path, each["post"]) for path, each in DOCUMENT["paths"].items()]
PATHS = [path for path, _ in OPERATIONS]


def body_schema(operation: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of what an operation takes."""
    name = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    found: dict[str, Any] = SCHEMAS[name.rpartition("/")[2]]
    return found


@pytest.fixture
async def names(service: Service) -> dict[str, UUID]:
    """What the paths of requests may name."""
    return await place_of(service, await service.user())


@pytest.fixture
async def headers(service: Service) -> dict[str, str]:
    """Those of somebody with all permissions."""
    return await service.key(*PERMISSIONS)


@pytest.fixture
async def service(sqlite_url: str) -> AsyncIterator[Service]:
    """A service on SQLite."""
    async with a_service(sqlite_url) as service:
        yield service


async def place_of(service: Service, user_id: UUID) -> dict[str, UUID]:
    """Make what a path may name: a user's order, and a key."""
    issued = await service.ledger.api_keys.issue(user_id=user_id, name="k")
    placed = await service.ledger.orders.place(
        user_id=user_id, token="BTC", action=Action.BUY, order_type=OrderType.LIMIT,
        quantity=9, price=1,
    )  # fmt: skip
    return {"user_id": user_id, "key_id": issued.key_id, "order_id": placed.order_id}


def test_every_operation_is_described() -> None:
    """Each has an id and summary of its own, says what it does, and who may not."""
    assert len(PATHS) == 37
    assert len({each["operationId"] for _, each in OPERATIONS}) == len(PATHS)
    for path, operation in OPERATIONS:
        assert operation["description"].startswith(operation["summary"]), path
        assert {"401", "403", "422", "429", "500", "503"} <= set(operation["responses"]), path
        assert operation["security"], path
        done = operation["responses"].get("201") or operation["responses"]["200"]
        assert "Ledger-Size" in done["headers"], path
        schema = body_schema(operation)
        assert schema["additionalProperties"] is False
        assert "examples" in schema or not schema.get("required"), path


def test_the_document_has_every_route_and_no_other() -> None:
    """docs/http-api.md names the paths, those with the same beginning by their ends alone."""
    text = (Path(__file__).parents[3] / "docs/http-api.md").read_text(encoding="utf-8")
    named = set()
    for cell in re.findall(r"^\| (`POST [^|]*) \|", text, re.MULTILINE):
        first, *others = re.findall(r"`(?:POST )?(/[^`]*)`", cell)
        named |= {first, *(first.rpartition("/")[0] + other for other in others)}
    assert named == set(PATHS)


def test_amounts_are_never_numbers() -> None:
    """No body has a field that takes a JSON number with a fraction."""
    assert '"number"' not in json.dumps(SCHEMAS)


async def test_every_example_is_accepted(service: Service) -> None:
    """Those of fills and marks as they stand, those of users on a user who fits."""
    own = await service.user()
    headers = await service.key(*PERMISSIONS, user_id=own)
    for path, operation in OPERATIONS:
        for example in body_schema(operation).get("examples", [{}]):
            user_id = await service.user(password=PASSWORD)
            names = await place_of(service, user_id)
            await _prepare(service, path, own if "protection" in path else user_id)
            fields = {"user_id": str(user_id)} if "user_id" in example else {}
            answer = await service.post(path.format(**names), headers, example | fields)
            assert answer.status_code in (200, 201), (path, answer.text)


async def _prepare(service: Service, path: str, user_id: UUID) -> None:
    """Bring a user into the state that a command is for."""
    users, now = service.ledger.users, service.ledger.journal.now()
    match path.rpartition("/")[2]:
        case "reactivate":
            await users.deactivate(user_id=user_id)
        case "unlock":
            await users.lock(user_id=user_id, locked_until=now.replace(year=now.year + 1))
        case "release":
            await users.hold(user_id=user_id, reason="case")
        case "protection":
            await service.ledger.orders.fill(
                order_id=an_id(path), fill_id="1", token="BTC", action=Action.BUY,
                user_id=user_id, quantity=1, price=64000,
            )  # fmt: skip


def bodies(operation: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Return bodies of the documented form, and some that are anything."""
    documented = schemas.valid(body_schema(operation), SCHEMAS)
    return st.one_of(documented, documented, documented, schemas.ANY_JSON)


def requests() -> Iterator[st.SearchStrategy[tuple[str, dict[str, Any], Any]]]:
    """Yield requests for each operation."""
    for path, operation in OPERATIONS:
        yield st.tuples(st.just(path), st.just(operation), bodies(operation))


@settings(
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(sent=st.lists(st.one_of(list(requests())), min_size=1, max_size=4))
async def test_no_body_is_met_with_what_is_not_documented(
    service: Service, headers: dict[str, str], names: dict[str, UUID], sent: Any
) -> None:
    """Whatever is sent, the answer has a documented status, never an internal error."""
    for path, operation, body in sent:
        answer = await service.post(path.format(**names), headers, body)
        assert str(answer.status_code) in operation["responses"], (path, answer.text)
        assert answer.status_code < 500, (path, answer.text)
