"""The service for orders: what is stored, what is refused, and what happens in parallel."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import pytest

from ledger.deciding import Origin
from ledger.domain.order_commands import Raw
from ledger.domain.orders import (
    Action,
    FillBusted,
    FillConflicted,
    OrderAccepted,
    OrderCancelled,
    OrderCancelPending,
    OrderCancelRejected,
    OrderCancelRequested,
    OrderDoneForDay,
    OrderEvent,
    OrderExpired,
    OrderFailed,
    OrderFilled,
    OrderPlaced,
    OrderRejected,
    OrderReplaced,
    OrderReplacePending,
    OrderReplaceRejected,
    OrderReplaceRequested,
    OrderRestated,
    OrderStopped,
    OrderTriggered,
    OrderType,
    TimeInForce,
    position_tag,
)
from ledger.domain.users import UserDeactivated, UserErased, UserReactivated, UserRegistered
from ledger.errors import CommandRefused, InvalidCommand
from ledger.event import Metadata, NewEvent, VenueAmount
from ledger.journal import Journal
from ledger.services import Ledger
from ledger.services.orders import Orders, Recorded
from tests.ledger.support import Clock, an_id, opened, read_all
from tests.support.orders import parts

USER, ORDER = an_id("user"), an_id("order")


@pytest.fixture
async def journal(database_url: str) -> AsyncIterator[Journal]:
    """An open journal with a registered user, and a clock that stands still."""
    async with opened(database_url, clock=Clock()) as journal:
        await journal.append(NewEvent(UserRegistered(user_id=USER, username="user")))
        yield journal


@pytest.fixture
def orders(journal: Journal) -> Orders:
    """The service."""
    return Ledger(journal).orders


async def place(orders: Orders, order_id: UUID = ORDER, **values: Any) -> Recorded:
    """Place an order to buy 10 SOL at 25."""
    terms: dict[str, Any] = {"order_type": OrderType.LIMIT, "quantity": 10, "price": "25"}
    return await orders.place(
        order_id=order_id, user_id=USER, token="SOL", action=Action.BUY, **terms | values
    )


async def stored(journal: Journal) -> list[OrderEvent]:
    """Return all events of orders."""
    events = [recorded.event for recorded in await read_all(journal)]
    return [event for event in events if isinstance(event, OrderEvent)]


async def test_an_order_lives(journal: Journal, orders: Orders) -> None:
    """Each call stores one event and says which and where; the state follows."""
    found = [
        await place(orders, time_in_force=TimeInForce.GTD, expires_at=later(journal)),
        await orders.accepted(order_id=ORDER, venue_order_id="v1"),
        await orders.fill(order_id=ORDER, fill_id="1", quantity=4, price="24.5"),
        await orders.request_replace(order_id=ORDER, quantity=8),
        await orders.replace_pending(order_id=ORDER),
        await orders.replaced(order_id=ORDER, quantity=8),
        await orders.request_cancel(order_id=ORDER),
        await orders.cancel_pending(order_id=ORDER),
        await orders.cancelled(order_id=ORDER, reason="by user"),
    ]
    assert [each.event for each in found] == await stored(journal)
    assert [each.size for each in found] == list(range(2, 11))
    assert all(each.is_new and each.order_id == ORDER for each in found)
    state = await orders.state(ORDER)
    assert parts(state.name, state.filled, state.quantity) == ["Canceled", 4, 8]


def later(journal: Journal) -> Any:
    """Return a time after now."""
    return journal.now() + timedelta(seconds=1)


async def test_every_fact_is_recorded_whatever_the_state(journal: Journal, orders: Orders) -> None:
    """Each method stores its own type of event, also for an order that nobody placed."""
    told: dict[str, Any] = {"token": "SOL", "action": Action.SELL}
    calls = {
        OrderAccepted: orders.accepted(order_id=ORDER),
        OrderTriggered: orders.triggered(order_id=ORDER, price="24"),
        OrderStopped: orders.stopped(order_id=ORDER, price=Raw(245, 1)),
        OrderFilled: orders.fill(order_id=ORDER, fill_id="1", quantity=1, price=1, **told),
        FillBusted: orders.bust(order_id=ORDER, fill_id="2", quantity=1, price=1, **told),
        OrderReplacePending: orders.replace_pending(order_id=ORDER),
        OrderReplaceRejected: orders.replace_rejected(order_id=ORDER, reason="late"),
        OrderReplaced: orders.replaced(order_id=ORDER, quantity="1.5", price=Raw(2, 0)),
        OrderRestated: orders.restated(order_id=ORDER, quantity_change=-1, reason="x"),
        OrderCancelPending: orders.cancel_pending(order_id=ORDER),
        OrderCancelRejected: orders.cancel_rejected(order_id=ORDER, reason="late"),
        OrderCancelled: orders.cancelled(order_id=ORDER),
        OrderDoneForDay: orders.done_for_day(order_id=ORDER),
        OrderRejected: orders.rejected(order_id=ORDER, reason="no"),
        OrderExpired: orders.expired(order_id=ORDER),
    }
    for kind, call in calls.items():
        assert type((await call).event) is kind
    events = await stored(journal)
    assert [type(event) for event in events] == list(calls)
    assert events[2] == OrderStopped(order_id=ORDER, price=VenueAmount("24.5"))
    assert events[7] == OrderReplaced(
        order_id=ORDER, quantity=VenueAmount("1.5"), price=VenueAmount(2)
    )
    assert [event.reason for event in events if hasattr(event, "reason")] == [
        *("late", "x", "late", None, "no"),
    ]


async def test_refused_commands_leave_no_event(journal: Journal, orders: Orders) -> None:
    """The error names command and state."""
    await place(orders)
    await orders.fill(order_id=ORDER, fill_id="1", quantity=10, price="25")
    for call, command, state in (
        (place(orders), "PlaceOrder", "Filled"),
        (orders.request_cancel(order_id=ORDER), "RequestCancel", "Filled"),
        (orders.request_replace(order_id=ORDER, quantity=9), "RequestReplace", "Filled"),
        (orders.fail(order_id=ORDER, reason="x"), "FailOrder", "Filled"),
        (orders.request_cancel(order_id=USER), "RequestCancel", "Unknown"),
    ):
        with pytest.raises(CommandRefused) as caught:
            await call
        assert (caught.value.command, caught.value.state) == (command, state)
    assert await journal.size() == 3
    assert isinstance(
        (await orders.request_replace(order_id=ORDER, quantity=11)).event, OrderReplaceRequested
    )


async def test_our_gateway_can_fail(journal: Journal, orders: Orders) -> None:
    """An order that could not be sent is failed with the reason, and is finished then."""
    await place(orders)
    failed = await orders.fail(order_id=ORDER, reason="no route")
    assert failed.event == OrderFailed(order_id=ORDER, reason="no route")
    with pytest.raises(CommandRefused, match="FailOrder is refused in state Rejected"):
        await orders.fail(order_id=ORDER, reason="again")
    assert await journal.size() == failed.size


async def test_only_an_active_user_may_place(journal: Journal, orders: Orders) -> None:
    """Users who are unknown, deactivated or erased are refused; a reactivated one may again."""
    for event, state in (
        (None, None),
        (UserDeactivated(user_id=USER), "Deactivated"),
        (UserReactivated(user_id=USER), None),
        (UserErased(user_id=USER, reason="request"), "Deactivated"),
    ):
        if event is not None:
            await journal.append(NewEvent(event))
        size = await journal.size()
        if state is None:
            await place(orders, uuid4())
            continue
        with pytest.raises(CommandRefused, match=f"PlaceOrder is refused in state {state}"):
            await place(orders, uuid4())
        assert await journal.size() == size
    with pytest.raises(CommandRefused, match=f"user-{ORDER}: PlaceOrder is refused in .* Unknown"):
        await orders.place(
            user_id=ORDER, token="SOL", action=Action.BUY, order_type=OrderType.MARKET, quantity=1
        )


async def test_only_an_active_user_may_ask_for_more(journal: Journal, orders: Orders) -> None:
    """A replace is refused as a placing would be; a cancel is always allowed."""
    await place(orders)
    await journal.append(NewEvent(UserDeactivated(user_id=USER)))
    size = await journal.size()
    with pytest.raises(CommandRefused, match="RequestReplace is refused in state Deactivated"):
        await orders.request_replace(order_id=ORDER, quantity=1_000_000)
    assert await journal.size() == size
    assert (await orders.request_cancel(order_id=ORDER)).is_new
    await journal.append(NewEvent(UserReactivated(user_id=USER)))
    assert (await orders.request_replace(order_id=ORDER, quantity=11)).is_new


async def test_nobody_places_on_anothers_explicit_position(
    journal: Journal, orders: Orders
) -> None:
    """While it is open only its user may place in its token; once it is flat, anybody."""
    other, hedge = an_id("other"), an_id("hedge")
    await journal.append(NewEvent(UserRegistered(user_id=other, username="other")))
    market: dict[str, Any] = {"order_type": OrderType.MARKET, "quantity": 1, "position_id": hedge}
    sell = partial(orders.place, action=Action.SELL, **market)
    opening = (await place(orders, position_id=hedge)).order_id
    assert (await sell(user_id=other, token="SOL")).is_new
    await orders.fill(order_id=opening, fill_id="1", quantity=10, price=25)
    for user_id, token in ((other, "SOL"), (USER, "ETH")):
        with pytest.raises(
            CommandRefused, match=f"position:{hedge}: PlaceOrder .* held by another"
        ):
            await sell(user_id=user_id, token=token)
    closing = (await sell(user_id=USER, token="SOL")).order_id
    await orders.fill(order_id=closing, fill_id="1", quantity=10, price=25)
    assert (await sell(user_id=other, token="SOL")).is_new


async def test_nothing_is_placed_after_a_deactivation(
    journal: Journal, orders: Orders, database_url: str
) -> None:
    """Orders and the end of their user race: none is stored behind it."""
    async with opened(database_url) as other:
        ended = NewEvent(UserDeactivated(user_id=USER))
        calls = [place(orders, an_id(number)) for number in range(30)]
        outcomes = await asyncio.gather(*calls, other.append(ended), return_exceptions=True)
    wrong = [each for each in outcomes if isinstance(each, Exception)]
    assert all(isinstance(each, CommandRefused) for each in wrong)
    events = [recorded.event for recorded in await read_all(journal)]
    assert isinstance(events[-1], UserDeactivated)
    assert len(events) == 2 + 30 - len(wrong)


async def test_what_is_known_of_a_user_is_only_a_guess(
    journal: Journal, orders: Orders, database_url: str
) -> None:
    """Placing goes by the last look at the user; what others stored since is found, and looked at.

    One who was deactivated and active again may place; one who is deactivated may not.
    """
    await place(orders, uuid4())
    async with opened(database_url) as other:
        await other.append(NewEvent(UserDeactivated(user_id=USER)))
        await other.append(NewEvent(UserReactivated(user_id=USER)))
        assert (await place(orders, uuid4())).is_new
        await other.append(NewEvent(UserDeactivated(user_id=USER)))
    with pytest.raises(CommandRefused, match="PlaceOrder is refused in state Deactivated"):
        await place(orders, uuid4())


async def test_an_order_id_is_taken_once_by_all_processes(
    journal: Journal, orders: Orders, database_url: str
) -> None:
    """Placing does not look whether the order is there, and finds out all the same."""
    async with opened(database_url) as other:
        await place(Ledger(other).orders)
        with pytest.raises(CommandRefused, match="PlaceOrder is refused in state PendingNew"):
            await place(orders)
        ids = [an_id(number) for number in range(10)]
        calls = [place(each, order) for order in ids for each in (orders, Ledger(other).orders)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert Counter(type(each) for each in outcomes) == {Recorded: 10, CommandRefused: 10}
    assert len(await stored(journal)) == 11


async def test_amounts_that_do_not_fit_are_refused_by_name(
    journal: Journal, orders: Orders
) -> None:
    """Our own amounts have 8 places, a venue's 30; the error names command and field."""
    for call, field in (
        (place(orders, quantity="0.123456789"), "PlaceOrder.quantity"),
        (place(orders, price="1" + "0" * 12), "PlaceOrder.price"),
        (orders.request_replace(order_id=ORDER, price="x"), "RequestReplace.price"),
        (orders.replaced(order_id=ORDER, price="1e5"), "OrderReplaced.price"),
        (orders.restated(order_id=ORDER, quantity="x"), "OrderRestated.quantity"),
        (orders.restated(order_id=ORDER, quantity_change="x"), "OrderRestated.quantity_change"),
        (orders.triggered(order_id=ORDER, price=Raw(1, 31)), "Raw.amount"),
        (orders.fill(order_id=ORDER, fill_id="1", quantity="x", price=1), "RecordFill.quantity"),
    ):
        with pytest.raises(InvalidCommand) as caught:
            await call
        assert f"{caught.value.command}.{caught.value.field}" == field
    assert await journal.size() == 1


async def test_a_repeated_placing_is_stored_once(journal: Journal, orders: Orders) -> None:
    """With a command id the order's id follows from it, and repeating the call is safe."""
    origin = Origin(command_id=uuid4(), metadata=Metadata(actor="test"))
    terms: dict[str, Any] = {"token": "SOL", "order_type": OrderType.MARKET, "quantity": "0.5"}
    first, again = [
        await orders.place(user_id=USER, action=Action.SELL, origin=origin, **terms)
        for _ in range(2)
    ]
    assert (first.order_id, first.size) == (again.order_id, again.size)
    assert (first.is_new, again.is_new) == (True, False)
    other = await orders.place(user_id=USER, action=Action.SELL, **terms)
    assert other.order_id != first.order_id
    await journal.append(NewEvent(UserDeactivated(user_id=USER)))
    late = await orders.place(user_id=USER, action=Action.SELL, origin=origin, **terms)
    assert (late.size, late.is_new) == (first.size, False)
    assert Counter(map(type, await stored(journal))) == {OrderPlaced: 2}
    for is_new in (True, False):
        accepted = await orders.accepted(order_id=first.order_id, origin=origin)
        assert (accepted.is_new, type(accepted.event)) == (is_new, OrderAccepted)


async def test_a_fill_reported_again_is_stored_once(journal: Journal, orders: Orders) -> None:
    """The repetition stores nothing and says at which size the fill is known."""
    await place(orders)
    report: dict[str, Any] = {"order_id": ORDER, "fill_id": "1", "quantity": 4, "price": "25"}
    moment = later(journal)
    origin = Origin(occurred_at=moment, metadata=Metadata(request_id="r"))
    first = await orders.fill(**report, origin=origin)
    again = await orders.fill(**report)
    assert (again.event, again.appended, again.is_new, again.size) == (
        None,
        None,
        False,
        first.size,
    )
    busted = await orders.bust(order_id=ORDER, fill_id="1")
    assert (await orders.bust(order_id=ORDER, fill_id="1")).event is None
    assert (await orders.fill(**report)).event is None
    assert [type(e) for e in await stored(journal)] == [OrderPlaced, OrderFilled, FillBusted]
    assert busted.size == await journal.size()
    recorded = (await read_all(journal))[2]
    assert (recorded.occurred_at, recorded.metadata.request_id) == (moment, "r")


async def test_a_conflicting_fill_is_recorded_once(journal: Journal, orders: Orders) -> None:
    """Each other content of a known fill id is one event, however often it is reported."""
    await place(orders)
    report: dict[str, Any] = {"order_id": ORDER, "fill_id": "1", "quantity": 4}
    prices = ("25", "26", "26", "27", "25")
    found = [await orders.fill(**report, price=price) for price in prices]
    assert [each.is_conflict for each in found] == [False, True, True, True, False]
    assert [each.is_new for each in found] == [True, True, False, True, False]
    kinds = [OrderPlaced, OrderFilled, FillConflicted, FillConflicted]
    assert [type(e) for e in await stored(journal)] == kinds
    assert (await orders.state(ORDER)).filled == 4


async def test_a_fill_that_was_busted_before(
    journal: Journal, orders: Orders, database_url: str
) -> None:
    """Whatever is reported, and by how many, one fill cancels the bust out; differences stay."""
    await place(orders)
    fee: dict[str, Any] = {"fee": "0.5", "fee_currency": "BNB", "quote_amount": "99"}
    await orders.bust(order_id=ORDER, fill_id="1", quantity=4, price="25", **fee)
    report = partial(orders.fill, order_id=ORDER, fill_id="1", quantity=4, price="25")
    async with opened(database_url) as other:
        again = partial(Ledger(other).orders.fill, order_id=ORDER, fill_id="1", quantity=5, price=1)
        calls = [call() for _ in range(5) for call in (report, again)]
        found = await asyncio.gather(*calls)
    assert all(each.is_conflict for each in found if each.is_new)
    assert (await report(**fee)).event is None
    kinds = Counter(map(type, await stored(journal)))
    assert kinds == {OrderPlaced: 1, FillBusted: 1, OrderFilled: 1, FillConflicted: 2}
    mirror = next(each for each in await stored(journal) if isinstance(each, OrderFilled))
    assert parts(mirror.quantity, mirror.quote_amount, mirror.fee_currency) == [4, 99, "BNB"]
    state = await orders.state(ORDER)
    assert parts(state.filled, state.notional) == [0, 0]


async def test_processes_that_report_the_same_fill(
    journal: Journal, orders: Orders, database_url: str
) -> None:
    """Of 40 parallel reports of 5 fills by two services, each fill is stored once."""
    await place(orders)
    async with opened(database_url) as other:
        services = [orders, Ledger(other).orders]
        await asyncio.gather(
            *(
                services[n % 2].fill(order_id=ORDER, fill_id=str(n % 5), quantity=1, price="25")
                for n in range(40)
            )
        )
    events = await stored(journal)
    assert Counter(map(type, events)) == {OrderPlaced: 1, OrderFilled: 5}
    assert (await orders.state(ORDER)).filled == 5


async def test_processes_that_contradict_each_other(
    journal: Journal, orders: Orders, database_url: str
) -> None:
    """Whoever comes first is booked; what the other says is a conflict, on record once."""
    await place(orders)
    async with opened(database_url) as other:
        services = [orders, Ledger(other).orders]
        await asyncio.gather(
            *(
                services[n % 2].fill(order_id=ORDER, fill_id="1", quantity=1 + n % 2, price="25")
                for n in range(20)
            )
        )
    filled, conflicted = (await stored(journal))[1:]
    assert (type(filled), type(conflicted)) == (OrderFilled, FillConflicted)
    assert {filled.quantity, conflicted.quantity} == {1, 2}  # type: ignore[attr-defined] # both are executions


async def test_orders_of_other_journals_have_fills_of_their_own(
    journal: Journal, orders: Orders
) -> None:
    """The event ids of fills differ by journal, so ids never meet when journals are merged."""
    await journal.store.create_journal("second")
    [info] = [each for each in await journal.store.journals() if each.name == "second"]
    second = Ledger(Journal(journal.store, info)).orders
    told: dict[str, Any] = {"token": "SOL", "action": Action.BUY, "price": "25"}
    for service in (orders, second):
        await service.fill(order_id=ORDER, fill_id="1", quantity=1, **told)
    recorded = [(await read_all(each))[-1] for each in (journal, Journal(journal.store, info))]
    assert recorded[0].event == recorded[1].event
    assert recorded[0].event_id != recorded[1].event_id


async def test_a_cancel_request_is_an_event(journal: Journal, orders: Orders) -> None:
    """The request alone leaves the state as it is; asking again is allowed until it is done."""
    await place(orders)
    for _ in range(2):
        asked = await orders.request_cancel(order_id=ORDER)
        assert asked.event == OrderCancelRequested(order_id=ORDER)
    assert (await orders.state(ORDER)).name == "PendingNew"
    assert await journal.size() == 4


@pytest.mark.parametrize("token", ["S" * 1000, "S\nOL"])
async def test_a_fill_of_any_token_is_recorded(
    journal: Journal, orders: Orders, token: str
) -> None:
    """A venue's fact is stored, and finds its book, also where its token could be no tag."""
    filled = await orders.fill(
        order_id=ORDER,
        fill_id="1",
        quantity=1,
        price=1,
        token=token,
        action=Action.BUY,
        user_id=USER,
    )
    assert filled.is_new
    [recorded] = await journal.read_tagged(position_tag(USER, token, None))
    assert recorded.event == filled.event


async def test_a_repeated_order_may_have_expired(database_url: str) -> None:
    """It was placed in time: the repetition finds it, and stores nothing."""
    clock, origin = Clock(), Origin(command_id=uuid4())
    async with opened(database_url, clock=clock) as journal:
        await journal.append(NewEvent(UserRegistered(user_id=USER, username="user")))
        terms: dict[str, Any] = {
            "time_in_force": TimeInForce.GTD,
            "expires_at": clock.now + timedelta(seconds=1),
        }
        first = await place(Ledger(journal).orders, origin=origin, **terms)
        clock.move(2)
        again = await place(Ledger(journal).orders, origin=origin, **terms)
        assert (first.is_new, again.is_new, again.event) == (True, False, first.event)
        with pytest.raises(InvalidCommand, match="has passed"):
            await place(Ledger(journal).orders, an_id("other"), **terms)
        assert await journal.size() == 2
