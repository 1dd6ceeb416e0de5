"""API keys over HTTP: shown once, for oneself, and never with more than one has."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import pytest
from pydantic import SecretStr

from ledger.domain.api_keys import ApiKeyIssued
from ledger.http.models import KeyShown
from tests.ledger.http.service import Service, a_service

BOT = {"name": "bot", "permissions": ["orders:write"], "rate_limit": 600}
HAS = ("api_keys:write", "orders:write")


@pytest.fixture
async def service(sqlite_url: str) -> AsyncIterator[Service]:
    """A service on SQLite."""
    async with a_service(sqlite_url) as service:
        yield service


async def issued(
    service: Service, user_id: UUID, *permissions: str, **fields: Any
) -> dict[str, Any]:
    """Issue a key over HTTP to a user who has these permissions; return the answer."""
    headers = await service.key("api_keys:write", *permissions, user_id=user_id)
    answer = await service.post("/api-keys", headers, BOT | fields)
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def works(service: Service, key: str, permission: str = "orders:write") -> bool:
    """Whether a key may be used."""
    return (
        await service.ledger.api_keys.use(presented=key, action="t", permission=permission)
    ).accepted


async def test_a_key_is_shown_once(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    """The answer has it and must not be stored; a repeated request has none, nor has any log."""
    caplog.set_level(logging.DEBUG)
    user_id = await service.user()
    headers = await service.key(*HAS, user_id=user_id)
    first = await service.post("/api-keys", headers, BOT, Idempotency_Key="k")
    again = await service.post("/api-keys", headers, BOT, Idempotency_Key="k")
    assert (first.status_code, again.status_code) == (201, 200)
    key = first.json()["key"]
    assert again.json() == first.json() | {"key": None, "duplicate": True}
    assert first.headers["Cache-Control"] == "no-store"
    assert await works(service, key)
    assert key not in caplog.text
    assert not any(key in str(each) for each in await service.events())
    [event] = [e for e in await service.events() if isinstance(e, ApiKeyIssued) and e.name == "bot"]
    assert (event.user_id, event.permissions, event.rate_limit) == (user_id, ("orders:write",), 600)


async def test_nobody_issues_more_than_they_have(service: Service) -> None:
    """A permission that one lacks is a 403; of other applications too, but for who writes users."""
    headers = await service.key(*HAS)
    for name in ("act:any", "users:write", "trade"):
        refused = await service.post("/api-keys", headers, BOT | {"permissions": [name]})
        assert (refused.status_code, refused.json()["permission"]) == (403, name)
    clerk = await service.key("api_keys:write", "users:write")
    free = await service.post("/api-keys", clerk, BOT | {"permissions": ["trade"]})
    assert free.status_code == 201
    without = await service.asked("users:write act:any", "/api-keys", BOT)
    assert (without.status_code, without.json()["permission"]) == (403, "api_keys:write")


async def test_keys_of_others_take_the_permission_to_act_for_any(service: Service) -> None:
    """Without it another's id is a 403, and another's key is not there, as if it did not exist."""
    other = await service.user()
    key_id = (await issued(service, other, "orders:write"))["key_id"]
    headers = await service.key(*HAS)
    refused = await service.post("/api-keys", headers, BOT | {"user_id": str(other)})
    assert (refused.status_code, refused.json()["permission"]) == (403, "act:any")
    for command in ("rotate", "revoke"):
        for unknown in (key_id, uuid4()):
            answer = await service.post(f"/api-keys/{unknown}/{command}", headers)
            assert answer.status_code == 404
    may = await service.key(*HAS, "act:any")
    assert (await service.post(f"/api-keys/{key_id}/revoke", may)).status_code == 200
    named = await service.post("/api-keys", may, BOT | {"user_id": str(other)})
    assert named.status_code == 201
    missing = await service.post("/api-keys", may, BOT | {"user_id": str(uuid4())})
    assert (missing.status_code, missing.json()["state"]) == (409, "unknown")


async def test_a_key_gives_way_to_another(service: Service) -> None:
    """The old one lives on for the overlap, or ends at once; it can be rotated once only."""
    user_id = await service.user()
    first = await issued(service, user_id, "orders:write")
    headers = await service.key(*HAS, user_id=user_id)
    path = f"/api-keys/{first['key_id']}/rotate"
    rotated = await service.post(path, headers, {"overlap_seconds": 3600}, Idempotency_Key="r")
    again = await service.post(path, headers, {"overlap_seconds": 3600}, Idempotency_Key="r")
    assert (rotated.status_code, again.status_code) == (201, 200)
    assert again.json()["key"] is None
    second = rotated.json()
    assert await works(service, first["key"])
    assert await works(service, second["key"])
    assert (await service.post(path, headers)).status_code == 409
    third = (await service.post(f"/api-keys/{second['key_id']}/rotate", headers)).json()
    assert not await works(service, second["key"])
    assert await works(service, third["key"])


async def test_who_rotates_a_key_gains_nothing(service: Service) -> None:
    """A key that may do more than who asks cannot be rotated by them, even if it is their own."""
    user_id = await service.user()
    stronger = await issued(
        service, user_id, "orders:write", "users:write", permissions=["users:write"]
    )
    headers = await service.key(*HAS, user_id=user_id)
    refused = await service.post(f"/api-keys/{stronger['key_id']}/rotate", headers)
    assert (refused.status_code, refused.json()["permission"]) == (403, "users:write")
    revoked = await service.post(f"/api-keys/{stronger['key_id']}/revoke", headers)
    assert revoked.status_code == 200


async def test_a_revoked_key_is_refused_at_once(service: Service) -> None:
    """The very next request with it is a 401; a second revocation is a 409."""
    user_id = await service.user()
    key = await issued(service, user_id, "orders:write", permissions=list(HAS))
    own = {"X-API-Key": key["key"]}
    path = f"/api-keys/{key['key_id']}/revoke"
    assert (await service.post(path, own, {"reason": "leaked"})).status_code == 200
    assert (await service.post(path, own)).status_code == 401
    headers = await service.key(*HAS, user_id=user_id)
    assert (await service.post(path, headers)).status_code == 409


async def test_what_no_key_can_have_is_refused_by_its_name(service: Service) -> None:
    """Times that have passed, limits that are none, names that cannot be read."""
    user_id = await service.user()
    headers = await service.key(*HAS, user_id=user_id)
    for field, value in (
        ("name", ""),
        ("name", "a\x00"),
        ("rate_limit", 0),
        ("rate_limit", 1_000_001),
        ("rate_limit", "5"),
        ("rate_limit", 5.5),
        ("expires_at", 2_000_000_000),
        ("key_hash", "x"),
    ):
        answer = await service.post("/api-keys", headers, BOT | {field: value})
        assert answer.status_code == 422, (field, value)
        assert answer.json()["errors"][0]["loc"] == ["body", field]
    past = await service.post("/api-keys", headers, BOT | {"expires_at": "2001-01-01T00:00:00Z"})
    assert (past.status_code, past.json()["field"]) == (422, "expires_at")
    key_id = (await issued(service, user_id, "orders:write"))["key_id"]
    for body in ({"overlap_seconds": -1}, {"overlap_seconds": 10**9}, {"successor_key_id": key_id}):
        answer = await service.post(f"/api-keys/{key_id}/rotate", headers, body)
        assert answer.status_code == 422


def test_a_shown_key_is_not_shown_again() -> None:
    """Whoever logs the answer as an object logs no key; the answer itself has it."""
    shown = KeyShown(offsets=[], size=1, duplicate=False, key_id=uuid4(), key=SecretStr("canary"))
    assert "canary" not in f"{shown!r} {shown}"
    assert shown.model_dump_json().count("canary") == 1


async def test_an_id_that_is_taken_tells_nothing_of_its_key(service: Service) -> None:
    """Neither for a new key nor for one in an old one's place; the owner learns its state."""
    owner, other = await service.user(), await service.user()
    headers = await service.key("api_keys:write", user_id=other)
    taken = await service.ledger.api_keys.issue(user_id=owner, name="k")
    own = await service.ledger.api_keys.issue(user_id=other, name="k")
    rotation = f"/api-keys/{own.key_id}/rotate"
    for path, body in (
        ("/api-keys", {"name": "k", "key_id": str(taken.key_id)}),
        (rotation, {"successor_key_id": str(taken.key_id)}),
    ):
        for expected in ({}, {"If_Match": '"9"'}):
            answer = await service.post(path, headers, body, **expected)
            assert (answer.status_code, answer.json()["type"][-9:]) == (409, ":id-taken")
            assert not answer.json().keys() & {"state", "actual", "subject"}
    answer = await service.post("/api-keys", headers, {"name": "k", "key_id": str(own.key_id)})
    assert (answer.status_code, answer.json()["state"]) == (409, "active")
