"""Positions over HTTP: protection of one's own, and liquidations as facts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import UUID

import pytest

from ledger.domain.orders import Action
from ledger.domain.positions import PositionLiquidated, ProtectionSet
from ledger.event import Amount
from tests.ledger.http.service import Service, a_service
from tests.ledger.support import an_id

LEVELS = {"token": "BTC", "stop_loss": "90.5", "take_profit": "120"}


@pytest.fixture
async def service(sqlite_url: str) -> AsyncIterator[Service]:
    """A service on SQLite."""
    async with a_service(sqlite_url) as service:
        yield service


async def holder(service: Service) -> UUID:
    """Return a user who is long one BTC."""
    user_id = await service.user()
    await service.ledger.orders.fill(
        order_id=an_id(user_id),
        fill_id="1",
        token="BTC",
        action=Action.BUY,
        user_id=user_id,
        quantity=1,
        price=100,
    )
    return user_id


async def test_levels_are_set_for_ones_own_position(service: Service) -> None:
    """Each setting takes the place of the one before; a repeated request sets nothing again."""
    user_id = await holder(service)
    headers = await service.key("positions:write", user_id=user_id)
    path = "/positions/protection"
    first = await service.post(path, headers, LEVELS, Idempotency_Key="p")
    again = await service.post(path, headers, LEVELS, Idempotency_Key="p")
    assert first.status_code == 200
    assert again.json() == first.json() | {"duplicate": True}
    alone = await service.post(path, headers, {"token": "BTC", "take_profit": "130"})
    assert alone.json()["position_id"] == first.json()["position_id"]
    found = [each for each in await service.events() if isinstance(each, ProtectionSet)]
    levels = [(each.stop_loss, each.take_profit) for each in found]
    assert levels == [(Amount("90.5"), Amount(120)), (None, Amount(130))]


async def test_levels_that_cannot_be_are_refused(service: Service) -> None:
    """Of a position that is not open a 409, on the wrong side a 422, of another user a 403."""
    user_id = await holder(service)
    headers = await service.key("positions:write", user_id=user_id)
    for body, status in (
        (LEVELS | {"token": "ETH"}, 409),
        (LEVELS | {"stop_loss": "130"}, 422),
        (LEVELS | {"stop_loss": "0"}, 422),
        (LEVELS | {"stop_loss": 90}, 422),
        (LEVELS | {"user_id": str(an_id("other"))}, 403),
    ):
        answer = await service.post("/positions/protection", headers, body)
        assert answer.status_code == status, body
    any_ones = await service.key("positions:write", "act:any")
    answer = await service.post(
        "/positions/protection", any_ones, LEVELS | {"user_id": str(user_id)}
    )
    assert answer.status_code == 200


async def test_a_liquidation_is_a_fact(service: Service) -> None:
    """It takes `venue:write`, and is recorded whether the position is open or not."""
    user_id = await holder(service)
    said = {"user_id": str(user_id), "token": "BTC", "price": "60000.00", "fee": "3"}
    path = "/positions/liquidations"
    refused = await service.asked("positions:write act:any", path, said)
    assert (refused.status_code, refused.json()["permission"]) == (403, "venue:write")
    venue = await service.key("venue:write")
    bodies = (said, said | {"token": "ETH"}, said | {"occurred_at": "2026-01-31T12:00:00Z"})
    answers = [await service.post(path, venue, body) for body in bodies]
    assert [answer.status_code for answer in answers] == [200, 200, 200]
    found = [each for each in await service.events() if isinstance(each, PositionLiquidated)]
    assert [str(each.position_id) for each in found] == [
        answer.json()["position_id"] for answer in answers
    ]
