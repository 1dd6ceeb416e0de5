"""Protection, liquidations and marks as services call them, on both stores."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import UUID, uuid4, uuid5

import pytest

from ledger.conditions import NoEvent
from ledger.deciding import Deciding, Origin
from ledger.domain.orders import Action, OrderFilled, position_tag
from ledger.domain.positions import MOVING, PositionLiquidated, ProtectionSet
from ledger.errors import CommandRefused, Contended, EventIdConflict, InvalidCommand
from ledger.event import Amount, Metadata, NewEvent, VenueAmount
from ledger.journal import Journal
from ledger.services.markets import Markets
from ledger.services.positions import Positions
from ledger.stores import Appended
from projections.groups import TRADING
from projections.positions import Position
from projections.replaying import fold_prefix
from tests.ledger.support import START, an_id, opened, read_all

USER, EXPLICIT = an_id("user"), an_id("position")
BOOK = position_tag(USER, "SOL", None)


@pytest.fixture
async def journal(database_url: str) -> AsyncIterator[Journal]:
    """An open journal."""
    async with opened(database_url) as journal:
        yield journal


async def fill(journal: Journal, quantity: int, position_id: UUID | None = None) -> None:
    """Append a fill of the user; one of a negative quantity sells."""
    event = OrderFilled(
        order_id=an_id("order"),
        fill_id="fill",
        user_id=USER,
        token="SOL",
        action=Action.BUY if quantity > 0 else Action.SELL,
        price=VenueAmount(10),
        quantity=VenueAmount(abs(quantity)),
        position_id=position_id,
    )
    await journal.append(NewEvent(event))


async def position_rows(journal: Journal) -> list[Position]:
    """Return the positions as the read model has them."""
    state = await fold_prefix(journal, TRADING, await journal.size())
    return list(state.rows(Position))


async def test_protection_reaches_the_open_cycle(journal: Journal) -> None:
    """The id that the service derives is the read model's, also after flips and when hedging."""
    positions = Positions(Deciding(journal))
    for quantity, stop in ((4, "9"), (-7, "11"), (5, "8")):
        await fill(journal, quantity)
        await fill(journal, quantity, EXPLICIT)
        for position_id in (None, EXPLICIT):
            stored = await positions.protect(
                user_id=USER, token="SOL", position_id=position_id, stop_loss=Amount(stop)
            )
            assert stored.appended.size == await journal.size()
            rows = [row for row in await position_rows(journal) if row.status == "open"]
            protected = {row.position_id: row.stop_loss for row in rows}
            assert protected[stored.position_id] == Amount(stop)


async def test_what_cannot_be_protected_leaves_no_event(journal: Journal) -> None:
    """No position, levels on the wrong sides, or a stranger's explicit position: nothing stored."""
    positions = Positions(Deciding(journal))
    with pytest.raises(CommandRefused):
        await positions.protect(user_id=USER, token="SOL", stop_loss=Amount(9))
    await fill(journal, 4, EXPLICIT)
    with pytest.raises(InvalidCommand):
        await positions.protect(
            user_id=USER,
            token="SOL",
            position_id=EXPLICIT,
            stop_loss=Amount(11),
            take_profit=Amount(9),
        )
    with pytest.raises(CommandRefused):
        await positions.protect(
            user_id=an_id("other"), token="SOL", position_id=EXPLICIT, stop_loss=Amount(9)
        )
    assert await journal.size() == 1


async def test_a_repeated_command_is_stored_once(journal: Journal) -> None:
    """Under one command id, protection and liquidation are stored once, whatever came since."""
    positions = Positions(Deciding(journal))
    await fill(journal, 4)
    origin = Origin(command_id=uuid4(), metadata=Metadata(actor="risk"))
    liquidating = Origin(command_id=uuid4())
    level = "9.00"
    first = await positions.protect(user_id=USER, token="SOL", stop_loss=level, origin=origin)
    forced = await positions.liquidated(
        user_id=USER, token="SOL", price="5", fee=1, origin=liquidating
    )
    for _ in range(2):
        again = await positions.protect(user_id=USER, token="SOL", stop_loss=level, origin=origin)
        assert (again.appended.offsets, again.event) == (first.appended.offsets, first.event)
        once = await positions.liquidated(
            user_id=USER, token="SOL", price="5", fee=1, origin=liquidating
        )
        assert (once.appended.offsets, once.event) == (forced.appended.offsets, forced.event)
        assert again.appended.duplicate
        assert once.appended.duplicate
        await fill(journal, 4)
    assert await journal.size() == 5
    stored = (await read_all(journal))[1]
    assert (stored.event, stored.metadata.actor) == (first.event, "risk")
    with pytest.raises(CommandRefused):
        await positions.protect(user_id=an_id("other"), token="SOL", origin=origin)


async def test_an_id_that_means_something_else_is_refused(journal: Journal) -> None:
    """A command id whose event id is taken by another event is an error, not a success."""
    await fill(journal, 4)
    command_id = uuid4()
    other = ProtectionSet(position_id=EXPLICIT)
    taken = uuid5(command_id, "SetProtection 0")
    await journal.append(NewEvent(other, event_id=taken))
    with pytest.raises(EventIdConflict):
        await Positions(Deciding(journal)).protect(
            user_id=USER, token="SOL", origin=Origin(command_id=command_id)
        )


async def test_a_liquidation_is_recorded_whether_it_fits_or_not(journal: Journal) -> None:
    """It closes what is open; a late one and one of nothing are on record in the tables too."""
    positions = Positions(Deciding(journal))
    nothing = await positions.liquidated(user_id=USER, token="SOL", price=VenueAmount(5))
    await fill(journal, 4)
    closed = await positions.liquidated(user_id=USER, token="SOL", price=VenueAmount(5))
    late = await positions.liquidated(user_id=USER, token="SOL", price=VenueAmount(6))
    assert closed.position_id == late.position_id != nothing.position_id
    none, row = await position_rows(journal)
    assert (none.position_id, none.flags) == (nothing.position_id, {"liquidated_nothing": 1})
    assert (row.position_id, row.status) == (closed.position_id, "liquidated")
    assert row.flags["after_liquidated:PositionLiquidated"] == 1
    stored = await journal.read_tagged(BOOK)
    assert [type(each.event) for each in stored] == [
        PositionLiquidated,
        OrderFilled,
        PositionLiquidated,
        PositionLiquidated,
    ]


async def test_levels_are_never_set_on_a_position_that_has_moved(
    journal: Journal, database_url: str
) -> None:
    """While fills and a liquidation race with it, each protection is of the cycle then open."""
    await fill(journal, 1)
    async with opened(database_url) as other:
        services = [Positions(Deciding(each)) for each in (journal, other)]

        async def protect(number: int) -> None:
            for _ in range(4):
                try:
                    await services[number].protect(user_id=USER, token="SOL", stop_loss=Amount(9))
                except CommandRefused:
                    await asyncio.sleep(0)

        async def trade() -> None:
            for quantity in (-1, 2, -2, 3, 1):
                await fill(other, quantity)
            await services[1].liquidated(user_id=USER, token="SOL", price=VenueAmount(9))

        await asyncio.gather(protect(0), protect(1), trade())
    rows = await position_rows(journal)
    assert [row.status for row in rows] == ["closed", "closed", "liquidated"]
    assert not [name for row in rows for name in row.flags if name.startswith("after_")]


async def test_a_position_that_never_rests_is_given_up(journal: Journal) -> None:
    """A book that moves between each decision and its append ends with Contended, unchanged."""
    await fill(journal, 1)

    class Restless(Deciding):
        """Moves the book right after each look at it."""

        async def load_tagged(self, decider: object, tag: str) -> object:  # type: ignore[override]
            loaded = await super().load_tagged(decider, tag)  # type: ignore[arg-type, var-annotated]
            await fill(journal, 1)
            return loaded

    positions = Positions(Restless(journal, tries_max=3))
    with pytest.raises(Contended, match="SetProtection was decided 3 times"):
        await positions.protect(user_id=USER, token="SOL", stop_loss=Amount(9))
    events = [each.event for each in await journal.read_tagged(BOOK)]
    assert [type(event) for event in events] == [OrderFilled] * 4


async def test_conditions_on_a_book_see_its_liquidation(journal: Journal) -> None:
    """Whoever looked before the liquidation learns that the position is not what it was."""
    await fill(journal, 4)
    await Positions(Deciding(journal)).liquidated(user_id=USER, token="SOL", price=VenueAmount(5))
    unmoved = NoEvent(types=MOVING, tag=BOOK, after=0)
    with pytest.raises(Exception, match="PositionLiquidated at offset 1"):
        await journal.append(NewEvent(ProtectionSet(position_id=EXPLICIT)), unmoved)


async def test_marks_are_stored_with_their_time(journal: Journal) -> None:
    """A mark keeps price, source and time, which its own argument gives before the origin."""
    markets, price = Markets(Deciding(journal)), VenueAmount("12.5")
    later = START + timedelta(hours=1)
    origin = Origin(occurred_at=START, metadata=Metadata(actor="feed"))
    for occurred_at in (None, later):
        marked = await markets.mark(
            token="SOL", price=price, source="kraken", occurred_at=occurred_at, origin=origin
        )
        stored = (await read_all(journal))[-1]
        assert stored.offset == marked.appended.size - 1
        assert stored.event == marked.event
        assert (stored.stream, stored.metadata.actor) == ("market-SOL", "feed")
        assert stored.occurred_at == (occurred_at or START)
    with pytest.raises(InvalidCommand, match=r"MarkPrice\.price"):
        await markets.mark(token="SOL", price="1e3")
    assert await journal.size() == 2


async def test_repeated_protection_may_be_of_a_position_that_has_turned(journal: Journal) -> None:
    """Its levels would be on the wrong sides now; they were set all the same."""
    positions, origin = Positions(Deciding(journal)), Origin(command_id=uuid4())
    await fill(journal, 1)

    async def protect(repeated: Origin) -> Appended:
        stored = await positions.protect(
            user_id=USER, token="SOL", stop_loss="5", take_profit="20", origin=repeated
        )
        return stored.appended

    first = await protect(origin)
    await fill(journal, -3)
    assert await protect(origin) == Appended(first.offsets, duplicate=True)
    with pytest.raises(InvalidCommand, match="stop_loss"):
        await protect(Origin(command_id=uuid4()))
