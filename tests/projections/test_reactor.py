"""The reactor: each crossed level has exactly one closing order, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa

from ledger.conditions import Condition
from ledger.domain.marks import PriceMarked
from ledger.domain.orders import (
    Action,
    OrderAccepted,
    OrderCancelPending,
    OrderCancelRequested,
    OrderExpired,
    OrderFilled,
    OrderPlaced,
    OrderRejected,
    OrderReplaceRequested,
    OrderTriggered,
    OrderType,
)
from ledger.domain.positions import PositionLiquidated, ProtectionSet
from ledger.domain.users import UserRegistered
from ledger.errors import EventExists, StoreUnavailable
from ledger.event import Amount, Event, NewEvent, RecordedEvent, VenueAmount
from ledger.journal import Journal, open_journal
from ledger.settings import Settings
from ledger.stores import Appended
from ledger.stores.turns import turn
from projections import protection
from projections.database import Database
from projections.groups import GROUPS, TRADING
from projections.orders import Order
from projections.positions import Position
from projections.projector import Projector
from projections.protection import Tables
from projections.reactor import Reaction, Reactor
from projections.replaying import fold_prefix
from projections.verification import verify
from tests.ledger.support import Clock, append_unasked, environment
from tests.projections.support import an_id
from tests.support import programs

USER = an_id("trader")
BUY, SELL = Action.BUY, Action.SELL


class Desk:
    """A trader's desk: what happens to positions and orders, and what the reactor does about it."""

    def __init__(self, journal: Journal, database: Database) -> None:
        self.journal = journal
        self.database = database
        self.reactions: list[Reaction] = []
        self.reactor = self.new_reactor()
        self.fills = 0

    def new_reactor(self) -> Reactor:
        """Return one more reactor."""
        return Reactor(self.database, self.journal, reacted=self.reactions.append)

    async def append(self, *events: Event) -> list[UUID]:
        """Append events; return their ids."""
        new = [NewEvent(event) for event in events]
        await self.journal.append(new)
        return [each.event_id for each in new]

    async def trade(
        self,
        action: Action,
        quantity: str,
        price: str = "100",
        order_id: UUID | None = None,
        *,
        hedge: UUID | None = None,
        user: UUID = USER,
    ) -> None:
        """Execute a trade in BTC, of the user if nobody else is named."""
        self.fills += 1
        await self.append(
            OrderFilled(
                order_id=order_id or an_id(f"trade {self.fills}"),
                user_id=user,
                position_id=hedge,
                fill_id=f"fill {self.fills}",
                token="BTC",
                action=action,
                price=VenueAmount(price),
                quantity=VenueAmount(quantity),
            )
        )

    async def open(
        self, action: Action = BUY, stop: str | None = "90", target: str | None = "120"
    ) -> UUID:
        """Open a position of 2 at 100 with levels; return its id."""
        await self.append(UserRegistered(user_id=USER, username="trader"))
        await self.trade(action, "2")
        [position] = await self.rows(Position)
        await self.protect(position.position_id, stop, target)
        return position.position_id  # type: ignore[no-any-return]

    async def protect(self, position_id: UUID, stop: str | None, target: str | None) -> None:
        """Set the levels of a position."""
        await self.append(
            ProtectionSet(
                position_id=position_id,
                stop_loss=Amount(stop) if stop else None,
                take_profit=Amount(target) if target else None,
                book=f"book:{USER}:BTC",
            )
        )

    async def rest(
        self,
        name: str,
        kind: OrderType,
        trigger: str,
        action: Action = SELL,
        quantity: str = "2",
    ) -> UUID:
        """Let an order rest at the venue that may only reduce the position."""
        order_id = an_id(name)
        await self.append(
            OrderPlaced(
                order_id=order_id,
                user_id=USER,
                token="BTC",
                action=action,
                order_type=kind,
                quantity=Amount(quantity),
                trigger_price=Amount(trigger),
                reduce_only=True,
            ),
            OrderAccepted(order_id=order_id),
        )
        return order_id

    async def mark(self, price: str, seconds_ago: float | None = None) -> UUID:
        """Mark BTC, now or some time ago; return the event's id."""
        at = None
        if seconds_ago is not None:
            at = self.journal.now() - timedelta(seconds=seconds_ago)
        new = NewEvent(PriceMarked(token="BTC", price=VenueAmount(price)), occurred_at=at)
        await self.journal.append(new)
        return new.event_id

    async def react(self, reactor: Reactor | None = None) -> None:
        """Let a reactor see all there is."""
        await (reactor or self.reactor).run(asyncio.Event(), await self.journal.size())

    async def rows(self, model: type[Position] | type[Order]) -> list[Any]:
        """Return the rows of a live table, which is brought up to date first."""
        await Projector(self.database, self.journal, TRADING).catch_up()
        async with self.database.session() as session:
            return list(await session.scalars(sa.select(model)))

    async def events(self, *kinds: type[Event]) -> list[RecordedEvent]:
        """Return the events of some types."""
        return [each async for each in self.journal.read() if isinstance(each.event, kinds)]

    async def closing(self) -> list[Any]:
        """Return the closing orders that were placed because of a level."""
        found = await self.events(OrderPlaced)
        return [each.event for each in found if each.event.closes_position_id]  # type: ignore[attr-defined]


@pytest.fixture
def desk(journal: Journal, database: Database) -> Desk:
    """A desk on a fresh journal."""
    return Desk(journal, database)


@pytest.mark.parametrize(
    ("action", "stop", "target", "prices", "crossing", "level"),
    [
        (BUY, "90", "120", ["90.00000001", "119.99999999", "90"], 2, "stop_loss"),
        (BUY, "90", "120", ["100", "120", "89"], 1, "take_profit"),
        (SELL, "110", "80", ["109.9", "80.1", "110"], 2, "stop_loss"),
        (SELL, "110", "80", ["80", "111"], 0, "take_profit"),
        (BUY, None, "120", ["1", "121"], 1, "take_profit"),
        (SELL, "110", None, ["1", "111"], 1, "stop_loss"),
    ],
)
async def test_a_crossed_level_places_one_closing_order(
    desk: Desk,
    action: Action,
    stop: str | None,
    target: str | None,
    prices: Sequence[str],
    crossing: int,
    level: str,
) -> None:
    """The first mark at or beyond a level closes the whole position, and says what caused it."""
    position_id = await desk.open(action, stop, target)
    marks = [await desk.mark(price) for price in prices]
    await desk.react()
    [placed] = await desk.events(OrderPlaced)
    order = placed.event
    assert isinstance(order, OrderPlaced)
    assert placed.metadata.causation_id == marks[crossing]
    assert placed.metadata.actor == "reactor"
    assert (order.closes_position_id, order.reduce_only) == (position_id, True)
    assert (order.quantity, order.action) == (Amount("2"), SELL if action == BUY else BUY)
    assert order.extra_data == {"protection": level}
    assert [each.subject for each in desk.reactions] == [order.order_id]


async def test_one_order_however_often_the_level_is_crossed(desk: Desk) -> None:
    """More marks, other reactors and a new start meet the order that is there."""
    await desk.open()
    for _ in range(3):
        await desk.mark("80")
        await desk.react()
        await asyncio.gather(*(desk.react(desk.new_reactor()) for _ in range(3)))
    assert len(await desk.closing()) == 1
    assert len(desk.reactions) == 1


@pytest.mark.parametrize("ending", [OrderRejected, OrderExpired])
async def test_a_closing_order_that_fails_arms_the_level_again(
    desk: Desk, ending: type[OrderRejected] | type[OrderExpired]
) -> None:
    """The next mark beyond the level places another order; marks from before do not."""
    await desk.open()
    await desk.mark("80")
    await desk.react()
    [first] = await desk.closing()
    refusal = OrderRejected(order_id=first.order_id, reason="closed for lunch")
    fact = refusal if ending is OrderRejected else OrderExpired(order_id=first.order_id)
    await desk.append(fact)
    await desk.react(desk.new_reactor())
    assert len(await desk.closing()) == 1
    await desk.mark("85")
    await desk.react()
    first, second = await desk.closing()
    assert first.order_id != second.order_id


async def test_a_rest_that_a_closing_order_left_is_protected_again(desk: Desk) -> None:
    """A position that grew while its closing order was under way keeps its levels for the rest."""
    await desk.open()
    await desk.mark("80")
    await desk.react()
    [first] = await desk.closing()
    await desk.trade(BUY, "1")
    await desk.trade(SELL, "2", "80", first.order_id)
    await desk.mark("79")
    await desk.react()
    assert [order.quantity for order in await desk.closing()] == [Amount("2"), Amount("1")]


async def test_stale_marks_are_ignored(desk: Desk) -> None:
    """Neither a mark of long ago nor one from before another that is known closes anything."""
    await desk.open()
    await desk.mark("80", seconds_ago=61)
    await desk.mark("100", seconds_ago=1)
    await desk.mark("80", seconds_ago=2)
    await desk.react()
    assert await desk.closing() == []
    await desk.mark("80", seconds_ago=0.5)
    await desk.react()
    assert len(await desk.closing()) == 1


async def test_a_level_counts_from_when_it_was_set(desk: Desk) -> None:
    """Marks from before the level, and levels taken away meanwhile, close nothing."""
    position_id = await desk.open(stop=None, target=None)
    await desk.mark("80")
    await desk.protect(position_id, "90", "120")
    await desk.react()
    await desk.mark("80")
    await desk.protect(position_id, None, None)
    await desk.react()
    assert await desk.closing() == []


async def test_a_position_that_a_trader_closes_is_never_flipped(desk: Desk) -> None:
    """While a trader closes, the order is placed before, for all there is, or not at all.

    One that was placed before and has not been executed is asked to be cancelled.
    """
    await desk.append(UserRegistered(user_id=USER, username="trader"))
    placed_before = 0
    for number in range(12):
        await desk.trade(BUY, "2")
        position = next(row for row in await desk.rows(Position) if row.status == "open")
        await desk.protect(position.position_id, "90", "120")
        await desk.mark("80")
        await asyncio.gather(desk.react(), desk.trade(SELL, "2", "80"))
        await desk.react()
        position_id = position.position_id
        mine = [each for each in await desk.closing() if each.closes_position_id == position_id]
        placed_before += len(mine)
        for order in mine:
            await assert_it_fitted(desk, order)
            await desk.append(OrderExpired(order_id=order.order_id))
        await desk.mark("100")
        assert len(mine) <= 1, number
    asked = await desk.events(OrderCancelRequested)
    assert len(asked) == placed_before


async def assert_it_fitted(desk: Desk, order: OrderPlaced) -> None:
    """When the order was placed the position was open and of its size."""
    [recorded] = [each for each in await desk.events(OrderPlaced) if each.event == order]
    state = await fold_prefix(desk.journal, TRADING, recorded.offset)
    assert order.closes_position_id is not None
    row = state.rows(Position).get(order.closes_position_id)
    assert row is not None
    assert (row.status, row.size) == ("open", order.quantity)


async def test_replays_and_verification_fire_nothing(desk: Desk) -> None:
    """Folding marks, live or again, appends no event."""
    await desk.open()
    await desk.mark("80")
    size = await desk.journal.size()
    for group in GROUPS.values():
        await Projector(desk.database, desk.journal, group).catch_up()
        await fold_prefix(desk.journal, group, size)
    result = await verify(desk.database, desk.journal, GROUPS.values())
    assert (result.differences, await desk.journal.size()) == (0, size)


async def test_a_resting_order_is_activated_once(desk: Desk) -> None:
    """A stop that the venue took is triggered by the first mark at its price, and by no other."""
    await desk.open(stop=None, target=None)
    order_id = await desk.rest("stop", OrderType.STOP_LOSS, "90")
    await desk.mark("90.01")
    crossing = await desk.mark("90")
    await asyncio.gather(desk.react(), *(desk.react(desk.new_reactor()) for _ in range(3)))
    await desk.mark("80")
    await desk.react()
    [triggered] = await desk.events(OrderTriggered)
    assert triggered.event == OrderTriggered(order_id=order_id, price=VenueAmount("90"))
    assert triggered.metadata.causation_id == crossing


async def test_an_order_that_the_venue_did_not_take_is_not_activated(desk: Desk) -> None:
    """Nor is one that is being cancelled, and none by a mark from before it was taken."""
    await desk.open(stop=None, target=None)
    await desk.append(
        OrderPlaced(
            order_id=an_id("untaken"),
            user_id=USER,
            token="BTC",
            action=SELL,
            order_type=OrderType.STOP_LOSS,
            quantity=Amount("2"),
            trigger_price=Amount("90"),
        )
    )
    await desk.mark("80")
    taken = await desk.rest("stop", OrderType.STOP_LOSS, "90")
    await desk.react()
    await desk.append(OrderCancelRequested(order_id=taken))
    await desk.mark("80")
    await desk.react()
    assert await desk.events(OrderTriggered) == []


async def test_stop_and_target_cancel_each_other(desk: Desk) -> None:
    """Only one of them works at a time; when it has closed the position, the other has to go."""
    await desk.open(stop=None, target=None)
    stop = await desk.rest("stop", OrderType.STOP_LOSS, "90")
    target = await desk.rest("target", OrderType.TAKE_PROFIT, "120")
    await desk.mark("90")
    await desk.react()
    await desk.mark("120")
    await desk.react()
    assert [each.event.order_id for each in await desk.events(OrderTriggered)] == [stop]  # type: ignore[attr-defined]
    await desk.trade(SELL, "2", "90", stop)
    await desk.react()
    await desk.react(desk.new_reactor())
    [asked] = await desk.events(OrderCancelRequested)
    assert asked.event == OrderCancelRequested(order_id=target)


async def test_a_rejected_stop_leaves_the_target_at_work(desk: Desk) -> None:
    """When the activated one of two is refused, the other may be activated."""
    await desk.open(stop=None, target=None)
    stop = await desk.rest("stop", OrderType.STOP_LOSS, "90")
    target = await desk.rest("target", OrderType.TAKE_PROFIT, "120")
    await desk.mark("90")
    await desk.react()
    await desk.append(OrderRejected(order_id=stop, reason="closed for lunch"))
    await desk.mark("120")
    await desk.react()
    found = [each.event.order_id for each in await desk.events(OrderTriggered)]  # type: ignore[attr-defined]
    assert found == [stop, target]


async def test_levels_and_resting_orders_close_a_position_once(desk: Desk) -> None:
    """A mark that crosses a level and a resting stop leads to one order that closes."""
    await desk.open()
    await desk.rest("stop", OrderType.STOP_LOSS, "90")
    await desk.mark("80")
    await asyncio.gather(desk.react(), desk.react(desk.new_reactor()))
    fired = len(await desk.closing()) + len(await desk.events(OrderTriggered))
    assert fired == 1


async def test_a_liquidation_ends_what_was_to_reduce_the_position(desk: Desk) -> None:
    """The orders of a liquidated position are asked to be cancelled, by a new reactor as well."""
    position_id = await desk.open(stop=None, target=None)
    order_id = await desk.rest("stop", OrderType.STOP_LOSS, "90")
    await desk.append(
        PositionLiquidated(
            position_id=position_id, price=VenueAmount("50"), book=f"book:{USER}:BTC"
        )
    )
    await desk.react(desk.new_reactor())
    [asked] = await desk.events(OrderCancelRequested)
    assert asked.event == OrderCancelRequested(order_id=order_id)


async def test_what_cannot_be_protected_is_said(desk: Desk) -> None:
    """A position whose user nobody registered is reported once, and not forgotten in silence."""
    await desk.trade(BUY, "2")
    [position] = await desk.rows(Position)
    await desk.protect(position.position_id, "90", None)
    for _ in range(2):
        await desk.mark("80")
        await desk.react()
    assert [str(each) for each in desk.reactions] == [
        f"cannot protect position {position.position_id}: its user is not registered"
    ]


async def test_the_program_reacts_and_says_what_it_did(desk: Desk, settings: Settings) -> None:
    """`projections react --once` sees all there is, prints a line for each reaction, and ends."""
    position_id = await desk.open()
    await desk.mark("80")
    done = await asyncio.to_thread(
        programs.run,
        *("projections", "react", "--once"),
        environment=environment(settings.database_url),
    )
    assert done.returncode == 0, done.stderr
    [order] = await desk.closing()
    [line] = done.stdout.decode().splitlines()
    assert line.startswith(f"stop_loss of position {position_id} placed order {order.order_id}: ")


async def test_a_later_cycle_of_a_hedge_is_closed_in_its_own_book(desk: Desk) -> None:
    """The closing order names the book's explicit id, which the cycle's own id no longer is."""
    hedge = an_id("hedge")
    await desk.append(UserRegistered(user_id=USER, username="trader"))
    for action in (BUY, SELL, BUY):
        await desk.trade(action, "2", hedge=hedge)
    position = next(row for row in await desk.rows(Position) if row.status == "open")
    assert position.position_id != hedge
    levels = ProtectionSet(
        position_id=position.position_id, stop_loss=Amount("90"), book=f"position:{hedge}"
    )
    await desk.append(levels)
    await desk.mark("80")
    await desk.react()
    [order] = await desk.closing()
    await desk.trade(SELL, "2", "80", order.order_id, hedge=order.position_id)
    await desk.mark("79")
    await desk.react()
    assert {row.status for row in await desk.rows(Position)} == {"closed"}
    assert len(await desk.closing()) == 1


async def test_a_closing_order_ends_with_the_cycle_it_was_to_close(desk: Desk) -> None:
    """A position that was closed and opened again is not what the old order was placed for."""
    await desk.open()
    await desk.mark("80")
    await desk.react()
    await desk.trade(SELL, "2", "80")
    await desk.trade(BUY, "1", "80")
    await desk.react()
    [order] = await desk.closing()
    [asked] = await desk.events(OrderCancelRequested)
    assert asked.event == OrderCancelRequested(order_id=order.order_id)


async def test_a_closing_order_shrinks_with_its_position(desk: Desk) -> None:
    """When a trader sells a part, the order is asked to be for the rest, once."""
    await desk.open()
    await desk.mark("80")
    await desk.react()
    [order] = await desk.closing()
    await desk.trade(SELL, "0.5", "80")
    for _ in range(2):
        await desk.react()
        await desk.react(desk.new_reactor())
    [asked] = await desk.events(OrderReplaceRequested)
    assert asked.event == OrderReplaceRequested(order_id=order.order_id, quantity=Amount("1.5"))


async def test_a_busy_book_keeps_no_other_waiting(desk: Desk) -> None:
    """While one user's position moves all the time, another's is closed all the same."""
    other = an_id("other")
    await desk.append(UserRegistered(user_id=other, username="other"))
    await desk.trade(BUY, "2", user=other)
    [quiet] = await desk.rows(Position)
    book = f"book:{other}:BTC"
    await desk.append(
        ProtectionSet(position_id=quiet.position_id, stop_loss=Amount("90"), book=book)
    )
    await desk.append(UserRegistered(user_id=USER, username="trader"))
    await desk.trade(BUY, "2")
    busy = next(row for row in await desk.rows(Position) if row.book != book)
    await desk.protect(busy.position_id, "90", None)

    async def keep_busy() -> None:
        while not closed.is_set():
            await desk.trade(BUY, "0.01")

    await desk.mark("80")
    closed = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(keep_busy())
        reacting = tasks.create_task(desk.reactor.run(closed))
        async with asyncio.timeout(30):
            while quiet.position_id not in {o.closes_position_id for o in await desk.closing()}:
                await desk.journal.wait(await desk.journal.size() + 1)
        closed.set()
        await reacting
    await desk.react()
    assert {order.closes_position_id for order in await desk.closing()} == {
        quiet.position_id,
        busy.position_id,
    }


class BusyJournal(Journal):
    """A journal in which the position always moves just before a closing order is appended."""

    database: Database

    async def append(
        self, events: NewEvent | Sequence[NewEvent], *conditions: Condition
    ) -> Appended:
        """Append, but after a fill of the position that is to be closed."""
        new = [events] if isinstance(events, NewEvent) else events
        for each in new:
            if isinstance(each.event, OrderPlaced) and each.event.closes_position_id:
                await Desk(self, self.database).trade(BUY, "0.01", order_id=uuid4())
        return await super().append(events, *conditions)


async def test_a_mark_that_could_not_be_acted_on_is_said(settings: Settings) -> None:
    """A crossing is tried until its mark is stale; that it was given up does not go unseen."""
    clock = Clock()
    async with open_journal(settings, clock=clock) as opened, Database(settings) as database:
        [info] = await opened.store.journals()
        busy = BusyJournal(opened.store, info)
        busy.database = database
        desk = Desk(busy, database)
        await desk.open()
        mark = await desk.mark("80")
        for _ in range(2):
            assert await desk.reactor.advance()
        assert desk.reactions == []
        clock.move(61)
        await desk.react()
        [given_up] = desk.reactions
        assert (given_up.what, given_up.subject) == ("gave up on mark", mark)
        assert await desk.closing() == []


async def test_a_mark_from_the_future_silences_nothing(desk: Desk) -> None:
    """A mark that an older release took from a clock far ahead makes none after it stale."""
    await desk.open()
    tomorrow = desk.journal.now() + timedelta(days=1)
    mark = PriceMarked(token="BTC", price=VenueAmount("100"))
    await append_unasked(desk.journal, NewEvent(mark, occurred_at=tomorrow))
    await desk.mark("80")
    await desk.react()
    assert len(await desk.closing()) == 1


async def test_a_mark_is_not_lost_where_the_database_fails(sqlite_url: str) -> None:
    """After an error the same reactor takes in the same marks again."""
    impatient = Settings(database_url=sqlite_url, append_timeout_seconds=0.3)
    async with open_journal(impatient) as journal, Database(impatient) as database:
        desk = Desk(journal, database)
        await desk.open()
        await desk.mark("80")
        await desk.mark("100")
        with turn(Path(sqlite_url.removeprefix("sqlite:///")), 1), pytest.raises(StoreUnavailable):
            await desk.reactor.advance()
        while await desk.reactor.advance():
            pass
        assert len(await desk.closing()) == 1


async def test_a_part_that_is_closed_already_does_not_keep_the_rest(desk: Desk) -> None:
    """A target for a part that rests after its activation leaves the stop for what it spares."""
    await desk.open(stop="90", target=None)
    part = await desk.rest("part", OrderType.TAKE_PROFIT, "120", quantity="0.5")
    await desk.mark("120")
    await desk.react()
    await desk.mark("80")
    await desk.react()
    assert [each.event.order_id for each in await desk.events(OrderTriggered)] == [part]  # type: ignore[attr-defined]
    assert [order.quantity for order in await desk.closing()] == [Amount("1.5")]


async def test_orders_of_the_wrong_side_keep_no_stop_from_firing(desk: Desk) -> None:
    """What was to reduce a short position does not protect the long one that it was flipped to."""
    await desk.open(SELL, stop=None, target=None)
    stop = await desk.rest("stop", OrderType.STOP_LOSS, "110", BUY)
    await desk.mark("110")
    await desk.react()
    await desk.trade(BUY, "6")
    position = next(row for row in await desk.rows(Position) if row.status == "open")
    await desk.protect(position.position_id, "90", None)
    await desk.mark("80")
    await desk.react()
    assert [order.quantity for order in await desk.closing()] == [Amount("4")]
    [asked] = await desk.events(OrderCancelRequested)
    assert asked.event == OrderCancelRequested(order_id=stop)


async def test_what_the_states_rule_out_is_not_activated(desk: Desk) -> None:
    """Neither an order that is filled in part already nor one whose cancel the venue looks at."""
    await desk.open(stop=None, target=None)
    filled = await desk.rest("filled", OrderType.STOP_LOSS, "90")
    await desk.trade(SELL, "0.5", "95", filled)
    leaving = await desk.rest("leaving", OrderType.STOP_LOSS, "90")
    await desk.append(OrderCancelPending(order_id=leaving))
    await desk.mark("80")
    await desk.react()
    assert await desk.events(OrderTriggered) == []


@pytest.mark.parametrize(("prices", "first"), [(("121", "89"), "target"), (("89", "121"), "stop")])
async def test_marks_count_in_their_order(desk: Desk, prices: tuple[str, ...], first: str) -> None:
    """Of two orders whose prices are reached in one go, the one reached first is activated."""
    await desk.open(stop=None, target=None)
    orders = {
        "stop": await desk.rest("stop", OrderType.STOP_LOSS, "90"),
        "target": await desk.rest("target", OrderType.TAKE_PROFIT, "120"),
    }
    for price in prices:
        await desk.mark(price)
    await desk.react()
    found = [each.event.order_id for each in await desk.events(OrderTriggered)]  # type: ignore[attr-defined]
    assert found == [orders[first]]


async def test_a_size_beyond_all_orders_is_said_and_harms_nobody_else(desk: Desk) -> None:
    """A position that no order could close is reported; others are protected as ever."""
    whale, hedge = an_id("whale"), an_id("its position")
    await desk.append(UserRegistered(user_id=whale, username="whale"))
    for _ in range(11):
        await desk.trade(BUY, "9" * 40, hedge=hedge, user=whale)
    await desk.append(ProtectionSet(position_id=hedge, stop_loss=Amount("90")))
    await desk.append(UserRegistered(user_id=USER, username="trader"))
    await desk.trade(BUY, "2")
    position = next(row for row in await desk.rows(Position) if row.position_id != hedge)
    await desk.protect(position.position_id, "90", None)
    await desk.mark("80")
    await desk.react()
    assert [order.closes_position_id for order in await desk.closing()] == [position.position_id]
    assert f"cannot protect position {hedge}" in "".join(map(str, desk.reactions))


async def look(desk: Desk) -> Tables:
    """Read the tables as a reactor does."""
    await Projector(desk.database, desk.journal, TRADING).catch_up()
    async with desk.database.snapshot() as connection:
        positions = await connection.execute(sa.select(*Position.__table__.c))
        resting = await connection.execute(sa.select(*Order.__table__.c).where(Order.reduce_only))
        return Tables(await desk.journal.size(), positions.all(), resting.all())


@pytest.mark.parametrize(
    ("meanwhile", "placed"),
    [
        ("nothing", 1),
        ("a mark", 1),
        ("a fill", 0),
        ("a liquidation", 0),
        ("levels", 0),
        ("a stop", 0),
    ],
)
async def test_a_closing_order_is_bound_to_what_was_read(
    desk: Desk, meanwhile: str, placed: int
) -> None:
    """What moves the position after the tables were read keeps the order from being placed."""
    position_id = await desk.open()
    stop = await desk.rest("stop", OrderType.STOP_LOSS, "90")
    mark = await desk.mark("80")
    tables = await look(desk)
    [recorded] = [each async for each in desk.journal.read() if each.event_id == mark]
    [position] = tables.positions
    crossed = protection.crossing(tables, position, [(recorded, recorded.event)])  # type: ignore[list-item]
    assert crossed is not None
    order = protection.closing_order(tables, position, crossed)
    assert order is not None
    await happen(desk, meanwhile, position_id, stop)
    conditions = protection.closing_conditions(tables, position, order)
    with contextlib.suppress(EventExists):
        await desk.journal.append(NewEvent(order), *conditions)
    assert len(await desk.closing()) == placed


async def happen(desk: Desk, what: str, position_id: UUID, stop: UUID) -> None:
    """Let something happen to the position, or nothing that matters."""
    match what:
        case "a mark":
            await desk.mark("70")
        case "a fill":
            await desk.trade(SELL, "1")
        case "a liquidation":
            price, book = VenueAmount("50"), f"book:{USER}:BTC"
            await desk.append(PositionLiquidated(position_id=position_id, price=price, book=book))
        case "levels":
            await desk.protect(position_id, "70", None)
        case "a stop":
            await desk.append(OrderTriggered(order_id=stop))
