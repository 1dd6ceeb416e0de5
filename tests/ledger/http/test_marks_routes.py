"""Mark prices over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from ledger.domain.marks import PriceMarked
from ledger.event import VenueAmount
from tests.ledger.http.service import Service, a_service
from tests.ledger.support import read_all

MARK = {"token": "BTC", "price": "64300.000000000000000001", "source": "venue"}


@pytest.fixture
async def service(sqlite_url: str) -> AsyncIterator[Service]:
    """A service on SQLite."""
    async with a_service(sqlite_url) as service:
        yield service


async def test_a_mark_is_recorded_once_under_its_key(service: Service) -> None:
    """It is kept exactly, and with the time that the body says."""
    headers = await service.key("marks:write")
    dated = MARK | {"occurred_at": "2026-01-31T12:00:00Z"}
    statuses = [
        (await service.post("/marks", headers, dated, Idempotency_Key="m")).status_code
        for _ in range(2)
    ]
    assert statuses == [201, 200]
    [mark] = [e for e in await service.events() if isinstance(e, PriceMarked)]
    assert mark == PriceMarked(token="BTC", price=VenueAmount(MARK["price"]), source="venue")
    times = [each.occurred_at.isoformat() for each in await read_all(service.ledger.journal)]
    assert "2026-01-31T12:00:00+00:00" in times


async def test_only_who_may_marks(service: Service) -> None:
    """Without the permission it is a 403, a number for a price or a bad token a 422."""
    refused = await service.asked("venue:write orders:write", "/marks", MARK)
    assert (refused.status_code, refused.json()["permission"]) == (403, "marks:write")
    headers = await service.key("marks:write")
    for field, value in (("price", 1), ("token", "B\x7f"), ("source", ""), ("unknown", "x")):
        answer = await service.post("/marks", headers, MARK | {field: value})
        assert (answer.status_code, answer.json()["errors"][0]["loc"]) == (422, ["body", field])
    assert (await service.post("/marks", headers, MARK, If_Match='"1"')).status_code == 400
    assert not [each for each in await service.events() if isinstance(each, PriceMarked)]
