"""Orders over HTTP: what is stored, for whom, once, and what is refused with which problem."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from ledger.domain.api_keys import ApiKeyRevoked, ApiKeyUsed
from ledger.domain.orders import OrderPlaced
from ledger.domain.users import user_stream
from ledger.event import Amount
from tests.ledger.http.applications import served
from tests.ledger.http.service import Service, a_service
from tests.ledger.support import read_all

ORDER = {"token": "BTC", "action": "buy", "order_type": "limit", "quantity": "0.50", "price": "10"}

UNREADABLE = [
    (b"{", "application/json"),
    (b"", "application/json"),
    (b"null", "application/json"),
    (b"[1]", "application/json"),
    (b'{"token": 1, "unknown": 2}', "application/json"),
    (b"[" * 100_000, "application/json"),
    (b"9" * 10_000, "application/json"),
    (b"\xff", "application/json"),
    (b"token=BTC", "application/x-www-form-urlencoded"),
]
IMPOSSIBLE: list[tuple[str, Any]] = [
    ("quantity", 0.5),
    ("quantity", 1),
    ("price", "1e3"),
    ("price", "-1"),
    ("price", "0.123456789"),
    ("price", "1000000000000"),
    ("price", "01"),
    ("price", "10\n"),
    ("price", "٣"),
    ("price", "NaN"),
    ("token", ""),
    ("token", "B" * 201),
    ("token", "B\x00C"),
    ("token", "B\ud800C"),
    ("token", "B\u2028C"),
    ("strategy", "a\x07"),
    ("strategy", "\udfff"),
    ("extra_data", {"a\x00": "b"}),
    ("extra_data", {"a": "\x00"}),
    ("extra_data", {"a": 1}),
    ("reduce_only", "true"),
    ("slippage_bps", "5"),
    ("slippage_bps", 10_001),
    ("expires_at", 1_900_000_000),
    ("expires_at", "2099-01-01T00:00:00"),
    ("action", "hold"),
    ("closes_position_id", str(uuid4())),
    ("order_id", "x"),
]
CONTRADICTIONS: list[tuple[dict[str, Any], str]] = [
    ({"quantity": None}, "quantity"),
    ({"amount": "5"}, "quantity"),
    ({"price": None}, "price"),
    ({"price": "0"}, "price"),
    ({"order_type": "market"}, "price"),
    ({"trigger_price": "5"}, "trigger_price"),
    ({"time_in_force": "gtd"}, "expires_at"),
    ({"time_in_force": "gtd", "expires_at": "2001-01-01T00:00:00Z"}, "expires_at"),
    ({"time_in_force": "gtd", "expires_at": "9999-12-31T00:00:00-23:00"}, "expires_at"),
    ({"order_id": "01890a5d-ac96-8000-8000-b302099a8057"}, "order_id"),
    ({"extra_data": {str(n): "x" * 2000 for n in range(20)}}, "data"),
]


@pytest.fixture
async def service(sqlite_url: str) -> AsyncIterator[Service]:
    """A service on SQLite."""
    async with a_service(sqlite_url) as service:
        yield service


async def trader(service: Service) -> tuple[UUID, dict[str, str]]:
    """Return a user and the headers of a key with which they may order."""
    user_id = await service.user()
    return user_id, await service.key("orders:write", user_id=user_id)


async def placed(service: Service, headers: dict[str, str], **fields: Any) -> str:
    """Place an order; return its id."""
    answer = await service.post("/orders", headers, ORDER | fields)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["order_id"])


async def test_an_order_is_placed_for_the_user_of_the_key(service: Service) -> None:
    """The answer says where the event is; the event says by which key and request."""
    user_id, headers = await trader(service)
    answer = await service.post("/orders", headers, ORDER, X_Request_ID="r-17")
    assert answer.status_code == 201
    size = await service.ledger.journal.size()
    [*_, recorded] = await read_all(service.ledger.journal)
    assert answer.json() == {
        "order_id": str(recorded.event.order_id),  # type: ignore[attr-defined]
        "event": "OrderPlaced",
        "conflict": False,
        "offsets": [size - 1],
        "size": size,
        "duplicate": False,
    }
    assert answer.headers["Ledger-Size"] == str(size)
    assert isinstance(recorded.event, OrderPlaced)
    assert (recorded.event.user_id, recorded.event.quantity) == (user_id, Amount("0.50"))
    assert str(recorded.event.quantity) == "0.50"
    assert recorded.metadata.request_id == "r-17"
    assert (recorded.metadata.actor or "").startswith("key:")


async def test_a_repeated_request_is_stored_once(database_url: str) -> None:
    """Under one Idempotency-Key it is 201, then 200 with the same content; another body is 422."""
    async with a_service(database_url) as service:
        _, headers = await trader(service)
        first = await service.post("/orders", headers, ORDER, Idempotency_Key="a")
        again = await service.post("/orders", headers, ORDER, Idempotency_Key="a")
        assert (first.status_code, again.status_code) == (201, 200)
        assert again.json() == first.json() | {"duplicate": True}
        other = await service.post("/orders", headers, ORDER | {"price": "11"}, Idempotency_Key="a")
        assert other.status_code == 422
        assert other.json()["type"].endswith(":idempotency-key-reused")
        another_users = await service.post(
            "/orders", (await trader(service))[1], ORDER, Idempotency_Key="a"
        )
        assert another_users.status_code == 201
        events = [e for e in await service.events() if isinstance(e, OrderPlaced)]
        assert len(events) == 2


async def test_who_is_not_known_learns_nothing_of_the_body(service: Service) -> None:
    """A body that cannot be read is a 401 without credentials, a 403 without the permission."""
    senders: tuple[dict[str, str], ...] = (
        {},
        {"X-API-Key": "tlk_x"},
        {"Authorization": "Bearer x"},
        await service.key("own:read"),
        await service.key("orders:write"),
    )
    for content, media_type in UNREADABLE:
        sent = {"content-type": media_type}
        answers = [
            await service.client.post("/orders", content=content, headers=sent | headers)
            for headers in senders
        ]
        statuses = [answer.status_code for answer in answers]
        assert statuses == [401, 401, 401, 403, 422], content[:20]


async def test_what_no_order_can_have_is_refused_by_its_name(service: Service) -> None:
    """The problem names the field; nothing is stored."""
    _, headers = await trader(service)
    for field, value in IMPOSSIBLE:
        answer = await service.post("/orders", headers, ORDER | {field: value})
        assert answer.status_code == 422, (field, value)
        problem = answer.json()
        assert problem["type"].endswith(":invalid-request")
        assert {error["loc"][1] for error in problem["errors"]} == {field}, (field, value)
    assert not [each for each in await service.events() if isinstance(each, OrderPlaced)]


async def test_what_does_not_go_together_is_refused(service: Service) -> None:
    """What the domain refuses whatever the state is a 422, and names the field too."""
    _, headers = await trader(service)
    for fields, named in CONTRADICTIONS:
        answer = await service.post("/orders", headers, ORDER | fields)
        assert (answer.status_code, answer.json()["field"]) == (422, named), fields


async def test_only_who_may_act_for_any_orders_for_others(service: Service) -> None:
    """Another's id is a 403 without `act:any`; one's own is as good as none."""
    user_id, headers = await trader(service)
    other = await service.user()
    refused = await service.post("/orders", headers, ORDER | {"user_id": str(other)})
    assert (refused.status_code, refused.json()["permission"]) == (403, "act:any")
    await placed(service, headers, user_id=str(user_id))
    await placed(service, await service.key("orders:write", "act:any"), user_id=str(other))
    events = [each for each in await service.events() if isinstance(each, OrderPlaced)]
    assert [each.user_id for each in events] == [user_id, other]


async def test_nobody_orders_for_who_cannot_act(service: Service) -> None:
    """For a user who is deactivated or unknown it is a 409, and nothing is stored."""
    headers = await service.key("orders:write", "act:any")
    gone = await service.user()
    await service.ledger.users.deactivate(user_id=gone)
    for user_id in (gone, uuid4()):
        refused = await service.post("/orders", headers, ORDER | {"user_id": str(user_id)})
        assert refused.status_code == 409
        assert refused.json()["subject"] == user_stream(user_id)
    assert not [each for each in await service.events() if isinstance(each, OrderPlaced)]


async def test_an_order_is_changed_by_its_user(service: Service) -> None:
    """Replace, cancel and fail are stored; one that does not fit the state is a 409."""
    _, headers = await trader(service)
    order_id = await placed(service, headers)
    for command, body, event in (
        ("replace", {"quantity": "0.4"}, "OrderReplaceRequested"),
        ("cancel", {}, "OrderCancelRequested"),
        ("fail", {"reason": "the venue is away"}, "OrderFailed"),
    ):
        answer = await service.post(f"/orders/{order_id}/{command}", headers, body)
        assert (answer.status_code, answer.json()["event"]) == (200, event)
    late = await service.post(f"/orders/{order_id}/cancel", headers)
    assert late.status_code == 409
    assert late.json()["type"].endswith(":command-refused")
    assert late.json()["state"] == "Rejected"
    nothing = await service.post(f"/orders/{order_id}/replace", headers)
    assert (nothing.status_code, nothing.json()["field"]) == (422, "quantity")


@pytest.mark.parametrize("command", ["cancel", "replace", "fail"])
async def test_orders_of_others_are_not_there(service: Service, command: str) -> None:
    """Another's order and one that does not exist are the same 404, but for who may act on any."""
    _, headers = await trader(service)
    order_id = await placed(service, headers)
    body = {"replace": {"price": "9"}, "fail": {"reason": "x"}}.get(command, {})
    _, strangers = await trader(service)
    others = await service.post(f"/orders/{order_id}/{command}", strangers, body)
    unknown = await service.post(f"/orders/{uuid4()}/{command}", strangers, body)
    assert (others.status_code, unknown.status_code) == (404, 404)
    assert others.json() | {"instance": ""} == unknown.json() | {"instance": ""}
    for permission in ("act:any", "venue:write"):
        order_id = await placed(service, headers)
        may = await service.key("orders:write", permission)
        done = await service.post(f"/orders/{order_id}/{command}", may, body)
        missing = await service.post(f"/orders/{uuid4()}/{command}", may, body)
        assert (done.status_code, missing.status_code) == (200, 404)


async def test_if_match_is_the_version_of_the_orders_stream(service: Service) -> None:
    """A command is only decided at the version that was given, else it is a 412 with both."""
    _, headers = await trader(service)
    order_id = await placed(service, headers)
    path = f"/orders/{order_id}/replace"
    moved = await service.post(path, headers, {"price": "9"}, If_Match='"2"')
    assert moved.status_code == 412
    assert (moved.json()["expected"], moved.json()["actual"]) == (2, 1)
    done = await service.post(path, headers, {"price": "9"}, If_Match='"1"', Idempotency_Key="r")
    assert done.status_code == 200
    again = await service.post(path, headers, {"price": "9"}, If_Match='"1"', Idempotency_Key="r")
    assert again.json() == done.json() | {"duplicate": True}
    new = await service.post("/orders", headers, ORDER, If_Match='"1"')
    assert (new.status_code, new.json()["actual"]) == (412, 0)
    taken = ORDER | {"order_id": order_id}
    exists = await service.post("/orders", headers, taken, If_Match='"0"')
    assert (exists.status_code, exists.json()["actual"]) == (412, 2)
    assert (await service.post("/orders", headers, taken)).status_code == 409


async def test_a_revoked_key_orders_nothing_any_more(service: Service) -> None:
    """What is known of user and key is only a guess: the next order is refused."""
    user_id, headers = await trader(service)
    await placed(service, headers)
    await service.ledger.users.deactivate(user_id=user_id)
    assert (await service.post("/orders", headers, ORDER)).status_code == 401
    await service.ledger.users.reactivate(user_id=user_id)
    await placed(service, headers)


async def test_orders_race_with_the_end_of_their_key(database_url: str) -> None:
    """Over real connections: each order is stored once, and none behind the revocation."""
    async with a_service(database_url) as service, served(service.app) as port:
        _, headers = await trader(service)
        key = headers["X-API-Key"]
        key_id = (await service.ledger.api_keys.use(presented=key, action="t")).key_id
        assert key_id is not None
        url = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=url, headers=headers) as client:
            first = await client.post("/orders", json=ORDER)
            calls = [client.post("/orders", json=ORDER) for _ in range(40)]
            revoking = service.ledger.api_keys.revoke(key_id=key_id)
            answers = await asyncio.gather(*calls[:20], revoking, *calls[20:])
            late = await client.post("/orders", json=ORDER)
        statuses = Counter(each.status_code for each in answers if isinstance(each, httpx.Response))
        assert (first.status_code, late.status_code) == (201, 401)
        assert set(statuses) <= {201, 401}
        events = await read_all(service.ledger.journal)
        [revoked] = [each.offset for each in events if isinstance(each.event, ApiKeyRevoked)]
        used = [each.offset for each in events if isinstance(each.event, ApiKeyUsed)]
        placed = [each for each in events if isinstance(each.event, OrderPlaced)]
        assert max(used) < revoked
        assert len(placed) == len(used) - 1 == statuses[201] + 1


async def test_an_id_that_is_taken_tells_nothing_of_its_order(service: Service) -> None:
    """Neither its state nor its version, whatever is expected; who may act for any learns them."""
    _, owner = await trader(service)
    _, other = await trader(service)
    taken = ORDER | {"order_id": await placed(service, owner)}
    for expected in ({}, {"If_Match": '"0"'}, {"If_Match": '"9"'}, {"Idempotency_Key": "k"}):
        answer = await service.post("/orders", other, taken, **expected)
        assert answer.status_code == 409
        assert answer.json() == {
            "type": "urn:trading-ledger:problem:id-taken",
            "title": "The id is taken",
            "status": 409,
            "detail": "the id is taken; choose another",
            "instance": answer.headers["X-Request-ID"],
        }
    for headers in (owner, await service.key("orders:write", "act:any")):
        answer = await service.post("/orders", headers, taken)
        assert (answer.status_code, answer.json()["state"]) == (409, "PendingNew")
