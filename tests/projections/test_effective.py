"""Effective time: what had happened by a time, as known at another."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ledger.domain.orders import Action, OrderEvent, OrderFilled, OrderPlaced, OrderType
from ledger.domain.users import UserRegistered
from ledger.event import Amount, Event, NewEvent, RecordedEvent, VenueAmount
from ledger.journal import Journal, open_journal
from ledger.settings import Settings
from projections import effective
from projections.database import Database
from projections.effective import EffectiveOrder
from projections.folding import Folding
from projections.groups import TRADING
from projections.points import Request, point_of
from projections.replaying import fold_prefix
from projections.replaying_commands.shared import named_tables
from tests.ledger.support import START, Clock
from tests.projections.poison import at, poisoned
from tests.projections.random_events import random_events
from tests.projections.support import an_id
from tests.projections.test_keyed import new_journal

DAY = timedelta(days=1)
TODAY, LAST_WEEK = START, START - 7 * DAY


def in_order(events: Sequence[RecordedEvent], moment: datetime) -> list[int]:
    """Return the offsets of the events that had happened by then, in the order they did."""
    begun: dict[str, datetime] = {}
    found = []
    for event in events:
        time = max(event.occurred_at, begun.setdefault(event.stream, event.occurred_at))
        if time <= moment:
            found.append((time, event.offset))
    return [offset for _, offset in sorted(found)]


async def append_dated(journal: Journal, random: Random, count: int) -> list[RecordedEvent]:
    """Append a history of which a part comes late, some of it in runs, some at the same time."""
    late = timedelta(0)
    for number, event in enumerate(random_events(random, count)):
        if random.random() < 0.2:
            late = random.choice((timedelta(0), timedelta(0), DAY, 3 * DAY, timedelta(minutes=3)))
        occurred_at = START - 10 * DAY + timedelta(minutes=number // 3) - late
        stream = event.stream() or "any"
        await journal.append(NewEvent(event, stream, occurred_at=occurred_at))
    return [each async for each in journal.read()]


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(0, 2**32), st.sampled_from((1, 7, 5000)), st.sampled_from((1, 3, 1000)))
def test_events_come_in_effective_order(
    sqlite_url: str, seed: int, chunk_size: int, at_once: int
) -> None:
    """All that had happened, by when it did and then by offset; read from any place on."""

    async def work(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(effective, "LATE_AT_ONCE", at_once)
        random = Random(seed)
        async with new_journal(sqlite_url) as (journal, _):
            events = await append_dated(journal, random, 60)
            moment = random.choice(events).occurred_at
            size = random.randrange(30, 61)
            expected = in_order(events[:size], moment)
            order = await EffectiveOrder.of(journal, moment, size)
            assert order.count == len(expected)
            start = random.randrange(len(expected) + 1)
            stop = random.randrange(start, len(expected) + 1)
            for first, last in ((0, None), (start, stop)):
                chunks = order.read_chunks(first, last, chunk_size=chunk_size)
                found = [event.offset async for chunk in chunks for event in chunk]
                assert found == expected[first:last]

    with pytest.MonkeyPatch.context() as monkeypatch:
        asyncio.run(work(monkeypatch))


async def rows_at(
    journal: Journal, database: Database, effective_at: datetime, recorded: datetime | None = None
) -> dict[str, list[Any]]:
    """Return all tables by name, as the command gives them out."""
    point = await point_of(journal, Request(effective=effective_at, recorded=recorded))
    _, found = await Folding(journal, database, point).tables(named_tables(None))
    return {name: list(rows) for name, (_, rows) in found.items()}


async def test_all_tables_are_the_fold_of_that_order(journal: Journal, database: Database) -> None:
    """The rows are those of the plain fold of the events, one after the other in that order."""
    events = await append_dated(journal, Random(4), 200)
    moment = events[150].occurred_at
    offsets = in_order(events, moment)
    assert offsets != sorted(offsets)
    state = TRADING.state(journal.journal_id, journal.name)
    TRADING.fold(state, [events[offset] for offset in offsets])
    found = await rows_at(journal, database, moment)
    for each in TRADING.projections:
        assert found[each.name] == list(TRADING.finished(state, each.name))


async def test_where_nothing_is_late_it_is_the_recorded_order(
    journal: Journal, database: Database
) -> None:
    """As of now both axes give the same tables."""
    for event in random_events(Random(6), 120):
        await journal.append(NewEvent(event, event.stream() or "any"))
    found = await rows_at(journal, database, journal.now())
    state = await fold_prefix(journal, TRADING, 120)
    for each in TRADING.projections:
        assert found[each.name] == list(TRADING.finished(state, each.name))


async def test_poison_is_parked_in_that_order_too(journal: Journal) -> None:
    """A handler that raises parks what comes after it in effective order, and nothing before."""
    events = await append_dated(journal, Random(7), 100)
    moment = max(each.occurred_at for each in events)
    order = await EffectiveOrder.of(journal, moment, 100)
    offsets = in_order(events, moment)
    place = next(n for n in offsets if isinstance(events[n].event, OrderEvent))
    group = poisoned(TRADING, at(("orders", place)))
    state = await fold_prefix(order, group, order.count)
    assert place in {each.offset for each in state.parking.lanes.values()}


def placed(number: int) -> OrderPlaced:
    """Return an order."""
    return OrderPlaced(
        order_id=an_id(f"order {number}"),
        user_id=an_id("user"),
        token="SOL",
        action=Action.BUY,
        order_type=OrderType.MARKET,
        quantity=Amount("10"),
    )


def filled(number: int, quantity: str, price: str, fill: str = "a") -> OrderFilled:
    """Return a fill."""
    return OrderFilled(
        order_id=an_id(f"order {number}"),
        user_id=an_id("user"),
        fill_id=fill,
        token="SOL",
        action=Action.BUY,
        price=VenueAmount(price),
        quantity=VenueAmount(quantity),
    )


HISTORY: list[tuple[timedelta, timedelta, Event]] = [
    (-9 * DAY, -9 * DAY, UserRegistered(user_id=an_id("user"), username="u", password_hash="x")),
    (-8 * DAY, -8 * DAY, placed(1)),
    (-7 * DAY, -7 * DAY, filled(1, "4", "100")),
    (-6 * DAY, -6 * DAY, placed(2)),
    (timedelta(0), -7 * DAY + timedelta(hours=1), filled(1, "6", "110", "late")),
    # Nothing is filled before there is an order: this fill counts from the placing on.
    (timedelta(hours=1), -8 * DAY, filled(2, "1", "90")),
    (timedelta(hours=2), timedelta(hours=2), filled(2, "9", "200", "now")),
]
"""When each was recorded, when it happened, and what."""

CASES: list[tuple[str, timedelta, timedelta | None, dict[int, str], str]] = [
    ("last week as known then", -5 * DAY, -5 * DAY, {1: "4", 2: "0"}, "4"),
    ("last week as known just before", -5 * DAY, timedelta(microseconds=-1), {1: "4", 2: "0"}, "4"),
    ("last week as known with the first", -5 * DAY, timedelta(0), {1: "10", 2: "0"}, "10"),
    ("last week as known with the second", -5 * DAY, timedelta(hours=1), {1: "10", 2: "1"}, "11"),
    ("last week as known now", -5 * DAY, None, {1: "10", 2: "1"}, "11"),
    ("the very time of the late fill", -7 * DAY + timedelta(hours=1), None, {1: "10"}, "10"),
    ("just before it", -7 * DAY + timedelta(minutes=59), None, {1: "4"}, "4"),
    ("before the first fill", -7.5 * DAY, None, {1: "0"}, "none"),
    ("a fill that claims to be before its order", -6.5 * DAY, None, {1: "10"}, "10"),
    ("from the placing on it counts", -6 * DAY, None, {1: "10", 2: "1"}, "11"),
    ("today as known now", timedelta(hours=3), None, {1: "10", 2: "10"}, "20"),
    ("today as known last week", timedelta(hours=3), -5 * DAY, {1: "4", 2: "0"}, "4"),
    ("before all", -20 * DAY, None, {}, "none"),
]
"""Name, effective and recorded time, what is filled of each order, and the position's size."""


@pytest.fixture
async def late_reports(settings: Settings) -> Any:
    """A journal with late trade reports, and its read side."""
    clock = Clock()
    clock.now = START + HISTORY[0][0]
    async with open_journal(settings, clock=clock) as journal, Database(settings) as database:
        for recorded, occurred, event in HISTORY:
            clock.now = START + recorded
            await journal.append(NewEvent(event, occurred_at=START + occurred))
        clock.now = START + 2 * DAY
        yield journal, database


@pytest.mark.parametrize(
    ("effective_at", "recorded", "orders", "size"),
    [case[1:] for case in CASES],
    ids=[case[0] for case in CASES],
)
async def test_late_trade_reports(
    late_reports: tuple[Journal, Database],
    effective_at: timedelta,
    recorded: timedelta | None,
    orders: dict[int, str],
    size: str,
) -> None:
    """What is recorded today changes answers for last week only where that may be known."""
    journal, database = late_reports
    known = None if recorded is None else START + recorded
    found = await rows_at(journal, database, START + effective_at, known)
    amounts = {row.order_id: f"{row.filled_quantity.normalize():f}" for row in found["orders"]}
    assert amounts == {an_id(f"order {number}"): text for number, text in orders.items()}
    sizes = [f"{row.size.normalize():f}" for row in found["positions"]]
    assert sizes == ([] if size == "none" else [size])


async def test_the_late_fill_comes_at_its_price(late_reports: tuple[Journal, Database]) -> None:
    """The average is that of the fills in their order; the row tells which event came last."""
    journal, database = late_reports
    [row] = (await rows_at(journal, database, START - 6 * DAY))["positions"]
    assert row.cost_basis == 4 * 100 + 6 * 110 + 90
    assert row.changed_size == 6  # the fill at offset 5, which counts from the placing on
    assert row.opened_at == LAST_WEEK
