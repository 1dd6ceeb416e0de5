"""What venues report over HTTP: recorded whatever the state, fills once by their ids."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest

from ledger.domain.orders import OrderEvent, OrderFilled, OrderReplaced
from ledger.event import VenueAmount
from tests.ledger.http.service import Service, a_service
from tests.ledger.support import read_all

FACTS: dict[str, tuple[dict[str, Any], str]] = {
    "accepted": ({"venue_order_id": "V-1"}, "OrderAccepted"),
    "triggered": ({"price": "59990.00"}, "OrderTriggered"),
    "stopped": ({"price": "59990.00"}, "OrderStopped"),
    "replace-pending": ({}, "OrderReplacePending"),
    "replace-rejected": ({"reason": "too late"}, "OrderReplaceRejected"),
    "replaced": ({"quantity": "0.4", "price": "0.000000000000000001"}, "OrderReplaced"),
    "restated": ({"quantity_change": "-0.1", "reason": "reduced"}, "OrderRestated"),
    "cancel-pending": ({}, "OrderCancelPending"),
    "cancel-rejected": ({"reason": "too late"}, "OrderCancelRejected"),
    "cancelled": ({}, "OrderCancelled"),
    "done-for-day": ({}, "OrderDoneForDay"),
    "rejected": ({"reason": "no liquidity"}, "OrderRejected"),
    "expired": ({}, "OrderExpired"),
}
FILL = {"fill_id": "F-1", "quantity": "0.2", "price": "64249.50", "fee": "-1.28"}
OF_NOBODY = FILL | {"token": "BTC", "action": "sell"}


@pytest.fixture
async def service(sqlite_url: str) -> AsyncIterator[Service]:
    """A service on SQLite."""
    async with a_service(sqlite_url) as service:
        yield service


async def facts(service: Service) -> list[OrderEvent]:
    """Return all events of orders."""
    return [each for each in await service.events() if isinstance(each, OrderEvent)]


async def test_every_fact_is_recorded_whatever_the_state(service: Service) -> None:
    """Each route stores its own type of event, also for an order that nobody placed."""
    headers = await service.key("venue:write")
    order_id = uuid4()
    for name, (body, event) in FACTS.items():
        said = body | {"occurred_at": "2026-01-31T12:00:00+01:00"}
        answer = await service.post(f"/orders/{order_id}/{name}", headers, said)
        assert (answer.status_code, answer.json()["event"]) == (200, event), answer.text
        [*_, recorded] = await read_all(service.ledger.journal)
        assert recorded.occurred_at == datetime(2026, 1, 31, 11, tzinfo=UTC)
        assert answer.json()["offsets"] == [recorded.offset]
    assert len(await facts(service)) == len(FACTS)
    [replaced] = [each for each in await facts(service) if isinstance(each, OrderReplaced)]
    assert replaced.price == VenueAmount("0.000000000000000001")


async def test_facts_need_their_permission_and_take_no_if_match(service: Service) -> None:
    """Without `venue:write` each is a 403; nothing is decided on a stream, so If-Match is a 400."""
    orderer = await service.key("orders:write", "act:any")
    venue = await service.key("venue:write")
    for name in [*FACTS, "fills", "busts"]:
        path = f"/orders/{uuid4()}/{name}"
        body = FACTS[name][0] if name in FACTS else OF_NOBODY
        refused = await service.post(path, orderer, body)
        assert (refused.status_code, refused.json()["permission"]) == (403, "venue:write")
        matching = await service.post(path, venue, body, If_Match='"0"')
        assert matching.status_code == 400
    assert await facts(service) == []


async def test_a_repeated_fact_is_stored_once_under_its_key(service: Service) -> None:
    """Without an Idempotency-Key each report is an event; with one the same request is one."""
    headers = await service.key("venue:write")
    path = f"/orders/{uuid4()}/cancelled"
    for key, is_duplicate in (("a", False), ("a", True), ("b", False)):
        answer = await service.post(path, headers, {"reason": "x"}, Idempotency_Key=key)
        assert (answer.status_code, answer.json()["duplicate"]) == (200, is_duplicate)
    other = await service.post(path, headers, {"reason": "y"}, Idempotency_Key="a")
    assert other.json()["type"].endswith(":idempotency-key-reused")
    assert len(await facts(service)) == 2


async def test_a_fill_is_booked_once_by_its_id(service: Service) -> None:
    """Whichever request says it again; with other content it is a conflict, recorded once."""
    headers = await service.key("venue:write")
    path = f"/orders/{uuid4()}/fills"
    answers = [
        (await service.post(path, headers, OF_NOBODY | more, Idempotency_Key=key)).json()
        for more, key in (
            ({}, "a"),
            ({}, "a"),
            ({}, "b"),
            ({"price": "1"}, "a"),
            ({"price": "1"}, "c"),
        )
    ]
    assert [each["event"] for each in answers] == [
        *("OrderFilled", None, None, "FillConflicted", "FillConflicted"),
    ]
    assert [each["duplicate"] for each in answers] == [False, True, True, False, True]
    assert [each["conflict"] for each in answers] == [False, False, False, True, True]
    assert [each["size"] for each in answers[:3]] == [answers[0]["size"]] * 3
    assert len(await facts(service)) == 2


async def test_a_fill_takes_what_it_leaves_out_from_its_order(service: Service) -> None:
    """For an order that is not known token and action are needed; a bust repeats the fill."""
    user_id = await service.user()
    orderer = await service.key("orders:write", user_id=user_id)
    terms = {"token": "ETH", "action": "sell", "order_type": "market", "quantity": "1"}
    order_id = (await service.post("/orders", orderer, terms)).json()["order_id"]
    venue = await service.key("venue:write")
    unknown = await service.post(f"/orders/{uuid4()}/fills", venue, FILL)
    assert (unknown.status_code, unknown.json()["field"]) == (422, "token")
    assert (await service.post(f"/orders/{order_id}/fills", venue, FILL)).status_code == 200
    bust = await service.post(f"/orders/{order_id}/busts", venue, {"fill_id": "F-1"})
    again = await service.post(f"/orders/{order_id}/busts", venue, {"fill_id": "F-1"})
    assert [bust.json()["event"], again.json()["event"]] == ["FillBusted", None]
    [_, fill, _] = await facts(service)
    assert isinstance(fill, OrderFilled)
    assert (fill.token, fill.user_id, fill.fee) == ("ETH", user_id, VenueAmount("-1.28"))


async def test_figures_of_a_venue_are_text(service: Service) -> None:
    """Numbers, exponents and too many places are refused by name; so is what has not happened."""
    headers = await service.key("venue:write")
    path = f"/orders/{uuid4()}/fills"
    for field, value in (
        ("price", 64249.5),
        ("quantity", 1),
        ("fee", "1e-3"),
        ("quote_amount", "0." + "1" * 31),
        ("fill_id", "F\x00"),
        ("occurred_at", "yesterday"),
        ("token", "\ud800"),
    ):
        answer = await service.post(path, headers, OF_NOBODY | {field: value})
        assert answer.status_code == 422, (field, value)
        assert answer.json()["errors"][0]["loc"][:2] == ["body", field]
    late = await service.post(path, headers, OF_NOBODY | {"occurred_at": "2999-01-01T00:00:00Z"})
    assert (late.status_code, late.json()["field"]) == (422, "occurred_at")
    assert await facts(service) == []


async def test_of_an_execution_the_fill_id_is_the_key(service: Service) -> None:
    """An Idempotency-Key is not looked at, whatever it is like, and the document names none."""
    headers = await service.key("venue:write")
    path = f"/orders/{uuid4()}/fills"
    for fill_id, key in (("1", "a"), ("2", "a"), ("3", "x" * 256)):
        answer = await service.post(
            path, headers, OF_NOBODY | {"fill_id": fill_id}, Idempotency_Key=key
        )
        assert (answer.status_code, answer.json()["duplicate"]) == (200, False)
    assert len(await facts(service)) == 3
    for route, operation in service.app.openapi()["paths"].items():
        named = {each["name"] for each in operation["post"].get("parameters", ())}
        assert ("Idempotency-Key" in named) is (route.split("/")[-1] not in ("fills", "busts"))
