"""Books: what fills do to them, which cycles they open, and what may be decided about them."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import ROUND_HALF_EVEN, Decimal, DivisionByZero, localcontext
from typing import Any
from uuid import UUID, uuid5

import msgspec
import pytest

from ledger.domain.marks import MarkPrice, PriceMarked
from ledger.domain.marks import decide as decide_mark
from ledger.domain.orders import (
    Action,
    Execution,
    FillBusted,
    FillConflicted,
    OrderAccepted,
    OrderFilled,
)
from ledger.domain.positions import (
    IDS,
    MOVING,
    Book,
    BookDecider,
    Effect,
    Liquidate,
    PositionLiquidated,
    ProtectionSet,
    SetProtection,
    closing_order_id,
    cycle_id,
    decide,
    effect_of,
    evolve,
    position_stream,
)
from ledger.errors import CommandRefused, InvalidCommand
from ledger.event import CONTEXT, Amount, Event, Metadata, RecordedEvent, VenueAmount
from tests.ledger.support import START, an_id

USER, OTHER, POSITION = an_id("user"), an_id("other"), an_id("position")
TOKEN = "SOL"
DIGITS = "123456789012345678901234567890.000000000000000000000000000001"
"""More digits than the context keeps."""


def fill(
    quantity: str | Decimal,
    price: str = "10",
    *,
    kind: type[Execution] = OrderFilled,
    user_id: UUID | None = USER,
    token: str = TOKEN,
    position_id: UUID | None = None,
    fee: str | None = None,
    fee_currency: str | None = None,
    quote_amount: str | None = None,
) -> Execution:
    """Return a fill; one of a negative quantity sells."""
    size = Decimal(quantity)
    return kind(
        order_id=an_id("order"),
        fill_id="fill",
        token=token,
        action=Action.SELL if size.is_signed() else Action.BUY,
        price=VenueAmount(price),
        quantity=VenueAmount(size.copy_abs()),
        user_id=user_id,
        position_id=position_id,
        fee=None if fee is None else VenueAmount(fee),
        fee_currency=fee_currency,
        quote_amount=None if quote_amount is None else VenueAmount(quote_amount),
    )


def effect(*amounts: str) -> Effect:
    """Return an effect: size, value, fee, and fee in a third currency."""
    return Effect(*map(Decimal, amounts))


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (fill("4", "10"), effect("4", "40")),
        (fill("-4", "10"), effect("-4", "-40")),
        (fill("4", "10", fee="0.5"), effect("4", "40", "0.5")),
        (fill("-4", "10", fee="0.5"), effect("-4", "-40", "0.5")),
        (fill("4", "10", fee="-0.5"), effect("4", "40", "-0.5")),
        (fill("4", "10", fee="1", fee_currency="SOL"), effect("3", "30", "10")),
        (fill("-4", "10", fee="1", fee_currency="SOL"), effect("-5", "-50", "10")),
        (fill("4", "10", fee="-1", fee_currency="SOL"), effect("5", "50", "-10")),
        (fill("4", "10", fee_currency="SOL"), effect("4", "40")),
        (fill("4", "10", fee="2", fee_currency="BNB"), effect("4", "40", "0", "2")),
        (fill("-4", "10", fee="-2", fee_currency="BNB"), effect("-4", "-40", "0", "-2")),
        (fill("4", "10", quote_amount="41"), effect("4", "41")),
        (fill("-4", "10", quote_amount="41"), effect("-4", "-41")),
        (
            fill("4", "10", quote_amount="41", fee="1", fee_currency="SOL"),
            effect("3", "30.75", "10.25"),
        ),
        (
            fill("4", "0", quote_amount="1", fee="1", fee_currency="SOL"),
            effect("3", "0.75", "0.25"),
        ),
    ],
)
def test_the_effect_of_a_fill_and_of_its_bust(event: Execution, expected: Effect) -> None:
    """Size and value have the side's sign, the token's fee is sold; a bust is the opposite."""
    assert effect_of(event) == expected
    fields = {name: getattr(event, name) for name in event.__struct_fields__}
    opposite = Effect(-expected.size, -expected.value, -expected.fee, -expected.other_fee)
    assert effect_of(FillBusted(**fields)) == opposite


def test_effects_are_rounded_to_the_context() -> None:
    """Amounts with more digits than 50 are rounded, as the folds round them."""
    event = fill(DIGITS, "1", fee=DIGITS)
    with localcontext(CONTEXT):
        rounded = +Decimal(DIGITS)
        assert effect_of(event) == Effect(rounded, rounded, rounded)
    assert rounded != Decimal(DIGITS)
    assert (CONTEXT.prec, CONTEXT.rounding) == (50, ROUND_HALF_EVEN)
    with pytest.raises(DivisionByZero), localcontext(CONTEXT):
        Decimal(1) / 0


def test_an_effect_is_split_in_proportion() -> None:
    """Value and fees go with the size, nothing is lost, and a part of nothing is nothing."""
    whole = effect("-10", "-1000", "5", "2")
    assert whole.split(Decimal(-4)) == (
        effect("-6", "-600", "3", "1.2"),
        effect("-4", "-400", "2", "0.8"),
    )
    assert whole.split(Decimal(0)) == (whole, effect("0", "0", "0", "0"))
    third = effect("3", "1", "1", "1").split(Decimal(1))
    assert third[0].value + third[1].value == third[0].fee + third[1].fee == 1
    assert whole.undone().undone() == whole


def test_ids_of_cycles() -> None:
    """An explicit id names its first cycle; later ones and netting ones follow from the event."""
    event_id = an_id("event")
    explicit = fill("1", position_id=POSITION)
    assert cycle_id("main", event_id, explicit, is_first=True) == POSITION
    later = cycle_id("main", event_id, explicit, is_first=False)
    netting = cycle_id("main", event_id, fill("1"), is_first=True)
    assert netting == cycle_id("main", event_id, fill("2"), is_first=False)
    named = uuid5(IDS, f"main:{USER}:SOL::{event_id}")
    assert str(netting) == str(named)[:14] + "8" + str(named)[15:]
    assert cycle_id("main", str(event_id), fill("1"), is_first=True) == str(netting)  # by a lens
    named = uuid5(IDS, f"main:{USER}:SOL:{POSITION}:{event_id}")
    assert str(later) == str(named)[:14] + "8" + str(named)[15:]
    assert cycle_id("other", event_id, fill("1"), is_first=True) != netting
    taken = cycle_id("main", event_id, fill("1", position_id=netting), is_first=True)
    assert (netting.version, later.version, taken.version) == (8, 8, 8)
    assert len({netting, later, taken}) == 3


def test_the_ids_of_closing_orders_are_nobodys_to_choose() -> None:
    """They follow from cycle and levels, differ with both, and are of the derived kind."""
    ids = [closing_order_id(*each) for each in ((POSITION, 3), (POSITION, 4), (OTHER, 3))]
    assert ids[0] == closing_order_id(POSITION, 3)
    assert len(set(ids)) == 3
    assert {each.version for each in ids} == {8}


def test_events_of_positions_are_found_by_their_book() -> None:
    """The tag is the book, or that of an explicit position where no book is given."""
    protected = ProtectionSet(position_id=POSITION, book="book:u:SOL")
    liquidated = PositionLiquidated(position_id=POSITION, price=VenueAmount(1))
    assert (protected.stop_loss, protected.take_profit) == (None, None)
    assert (liquidated.book, liquidated.fee) == (None, None)
    assert tuple(protected.tags()) == ("book:u:SOL",)
    assert tuple(liquidated.tags()) == tuple(fill("1", position_id=POSITION).tags())
    assert protected.stream() == position_stream(POSITION) == f"position-{POSITION}"
    assert (OrderFilled, FillBusted, PositionLiquidated) == MOVING


def record(event: Event, offset: int) -> RecordedEvent:
    """Return an event as a journal would have recorded it."""
    at = START
    return RecordedEvent(
        offset, "any", 1, an_id(f"event {offset}"), 1, at, at, Metadata(), b"", event
    )


def after(events: Sequence[Event], journal: str = "main") -> Book:
    """Return the book after these events."""
    decider = BookDecider(journal)
    assert (decider.initial, decider.decide, decider.evolve) == (Book(), decide, evolve)
    book = decider.initial
    for offset, event in enumerate(events):
        book = decider.take(book, record(event, offset))
    return book


def opened_by(offset: int, event: Execution, *, is_first: bool) -> UUID:
    """Return the id of the cycle that the event at an offset opens."""
    return cycle_id("main", an_id(f"event {offset}"), event, is_first=is_first)


def test_a_book_is_opened_moved_closed_and_opened_again() -> None:
    """The size is the signed sum, and each opening from flat is a cycle with an id of its own."""
    events = [fill("4"), fill("2"), fill("-1"), fill("-5"), fill("-3")]
    sizes = [after(events[:count]).size for count in range(6)]
    assert sizes == [0, 4, 6, 5, 0, -3]
    assert [after(events[:count]).cycles for count in range(6)] == [0, 1, 1, 1, 1, 2]
    first, second = fill("4"), fill("-3")
    for count in (1, 2, 3, 4):
        assert after(events[:count]).position_id == opened_by(0, first, is_first=True)
    assert after(events).position_id == opened_by(4, second, is_first=True)
    assert after([]) == Book()
    empty = Book(
        size=Decimal(0), cycles=0, position_id=None, explicit_id=None, user_id=None, token=None
    )
    assert Book() == empty
    assert after([fill("0.5"), fill("0.25")]) == msgspec.structs.replace(
        after([fill("0.5")]), size=Decimal("0.75")
    )
    assert after(events[:1]).is_of(USER, "SOL")
    assert not after(events[:1]).is_of(OTHER, "SOL")
    assert not after(events[:1]).is_of(USER, "ETH")


@pytest.mark.parametrize("sign", ["", "-"])
def test_a_flip_opens_another_cycle(sign: str) -> None:
    """A fill beyond zero closes a cycle and opens one on the other side."""
    other = "-" if not sign else ""
    flip = fill(f"{other}7")
    book = after([fill(f"{sign}4"), flip])
    assert (book.size, book.cycles) == (Decimal(f"{other}3"), 2)
    assert book.position_id == opened_by(1, flip, is_first=False)


def test_an_explicit_position_has_its_own_id_once() -> None:
    """The first cycle is the explicit position, a later one has a derived id."""
    events = [fill(size, position_id=POSITION) for size in ("1", "-1", "2")]
    assert after(events[:1]).position_id == after(events[:2]).position_id == POSITION
    book = after(events)
    assert book.position_id == opened_by(2, events[2], is_first=False) != POSITION
    assert (book.explicit_id, book.user_id, book.token) == (POSITION, USER, "SOL")


def test_what_moves_no_book() -> None:
    """Nothing is held of a fill that its fee eats up, an empty one, a conflict, another event."""
    eaten = fill("1", fee="1", fee_currency="SOL")
    for event in (eaten, fill("0"), fill("-0"), fill("4", kind=FillConflicted)):
        assert after([event]) == Book()
        assert after([fill("4"), event]) == after([fill("4")])
    negative = msgspec.structs.replace(fill("1"), quantity=VenueAmount("-1"))
    assert after([fill("4"), negative, OrderAccepted(order_id=an_id("order"))]).size == 4
    assert after([fill("4"), fill("4", kind=FillBusted)]).size == 0
    assert after([fill("5"), fill("4", kind=FillBusted)]).size == 1
    assert after([fill("4", kind=FillBusted)]).size == -4


def test_a_fill_of_another_on_an_explicit_position_moves_nothing() -> None:
    """User and token stay the same while the position is open; when flat, they may change."""
    mine = fill("4", position_id=POSITION)
    thief = fill("-4", position_id=POSITION, user_id=OTHER)
    coin = fill("-4", position_id=POSITION, token="ETH")
    assert after([mine, thief, coin]) == after([mine])
    long = fill("4", position_id=POSITION, token="a" * 256)
    assert after([long, fill("3", position_id=POSITION, token="b" * 256)]) == after([long])
    assert after([long]).is_of(USER, "a" * 256)
    taken = after([mine, fill("-4", position_id=POSITION), thief])
    assert (taken.size, taken.user_id, taken.cycles) == (Decimal(-4), OTHER, 2)


def test_sizes_are_those_of_the_fold() -> None:
    """A sum of more than 50 digits is rounded in the one context, whatever the caller's is."""
    with localcontext() as context:
        context.prec = 5
        book = after([fill(DIGITS), fill("0.1")])
    with localcontext(CONTEXT):
        assert book.size == Decimal(DIGITS) + Decimal("0.1") != Decimal(DIGITS)
    assert after([fill("0.1234567890123"), fill("0.1")]).size == Decimal("0.2234567890123")


@pytest.mark.parametrize("journal", ["main", "other"])
def test_a_liquidation_closes_its_own_cycle(journal: str) -> None:
    """It counts by the id of the open cycle or the explicit id; that of another cycle does not."""
    events: list[Event] = [fill("4")]
    position_id = after(events, journal).position_id
    assert position_id is not None
    price = VenueAmount(5)
    closed = after([*events, PositionLiquidated(position_id=position_id, price=price)], journal)
    assert (closed.size, closed.position_id, closed.cycles) == (Decimal(0), position_id, 1)
    other = after([*events, PositionLiquidated(position_id=POSITION, price=price)], journal)
    assert other.size == 4
    again: list[Event] = [fill(size, position_id=POSITION) for size in ("1", "-1", "2")]
    later = after([*again, PositionLiquidated(position_id=POSITION, price=price)], journal)
    assert (later.size, later.cycles) == (Decimal(0), 2)
    assert evolve(later, ProtectionSet(position_id=POSITION)) is later


LONG, SHORT = [fill("0.4")], [fill("-0.4")]


def protect(**fields: object) -> SetProtection:
    """Return a command for the user's SOL."""
    names: dict[str, object] = {"user_id": USER, "token": "SOL"}
    return SetProtection(**(names | fields))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("events", "levels"),
    [
        (LONG, {"stop_loss": "9", "take_profit": "11"}),
        (SHORT, {"stop_loss": "11", "take_profit": "9"}),
        (LONG, {"stop_loss": "20"}),
        (SHORT, {"take_profit": "20"}),
        (LONG, {"stop_loss": "0.00000001"}),
        (LONG, {}),
    ],
)
def test_an_open_position_is_protected(events: list[Event], levels: dict[str, str]) -> None:
    """The event names the open cycle, its book, and exactly the levels of the command."""
    [event] = decide(protect(**levels), after(events))
    amounts: dict[str, Any] = {name: Amount(level) for name, level in levels.items()}
    assert event == ProtectionSet(
        position_id=after(events).position_id or an_id("none"),
        book=f"book:{USER}:SOL",
        **amounts,
    )


@pytest.mark.parametrize(
    ("events", "levels", "field", "reason"),
    [
        (LONG, {"stop_loss": "0"}, "stop_loss", "must be above zero, not 0"),
        (LONG, {"stop_loss": "-1"}, "stop_loss", "must be above zero, not -1"),
        (LONG, {"take_profit": "0"}, "take_profit", "must be above zero, not 0"),
        ([], {"take_profit": "-2"}, "take_profit", "must be above zero, not -2"),
        (
            LONG,
            {"stop_loss": "11", "take_profit": "9"},
            "stop_loss",
            "11 is not below take_profit 9, as a long position needs it",
        ),
        (LONG, {"stop_loss": "9", "take_profit": "9.0"}, "stop_loss", "9 is not below"),
        (
            SHORT,
            {"stop_loss": "9", "take_profit": "11"},
            "stop_loss",
            "9 is not above take_profit 11, as a short position needs it",
        ),
        (SHORT, {"stop_loss": "9", "take_profit": "9"}, "stop_loss", "9 is not above"),
    ],
)
def test_levels_that_nobody_could_set(
    events: list[Event], levels: dict[str, str], field: str, reason: str
) -> None:
    """A level is above zero, and what is reached first is not on the other one's side."""
    with pytest.raises(InvalidCommand) as caught:
        decide(protect(**levels), after(events))
    assert (caught.value.command, caught.value.field) == ("SetProtection", field)
    assert caught.value.reason.startswith(reason)
    assert caught.value.reason.endswith((" position needs it", levels[field]))


@pytest.mark.parametrize(
    ("events", "state"),
    [
        ([], "flat"),
        ([fill("4", position_id=POSITION), fill("-4", position_id=POSITION)], "flat"),
        ([fill("4", position_id=POSITION, user_id=OTHER)], "held by another"),
        ([fill("4", position_id=POSITION, token="ETH")], "held by another"),
    ],
)
def test_only_an_open_position_of_ones_own_is_protected(events: list[Event], state: str) -> None:
    """What is flat or somebody else's has nothing to protect, and the error names the state."""
    command = protect(position_id=POSITION, stop_loss="1")
    with pytest.raises(CommandRefused) as caught:
        decide(command, after(events))
    error = caught.value
    assert (error.command, error.subject) == ("SetProtection", f"position:{POSITION}")
    assert (error.state, error.reason) == (state, "there is no open position to protect")


def liquidate(**fields: object) -> Liquidate:
    """Return a command for the user's SOL."""
    names: dict[str, object] = {"user_id": USER, "token": "SOL", "price": "5"}
    return Liquidate(**(names | fields))  # type: ignore[arg-type]


def test_a_liquidation_names_the_cycle_that_is_open_or_was_last() -> None:
    """The fact is recorded with price and fee, also when it comes too late."""
    for events in (LONG, [*LONG, fill("-0.4")]):
        [event] = decide(liquidate(fee="0.1"), after(events))
        assert event == PositionLiquidated(
            position_id=after(LONG).position_id or an_id("none"),
            book=f"book:{USER}:SOL",
            price=VenueAmount(5),
            fee=VenueAmount("0.1"),
        )


def test_a_liquidation_of_nothing_closes_nothing() -> None:
    """Where the user has no such position, the fact gets an id that no position can have."""
    foreign = [fill("4", position_id=POSITION, user_id=OTHER)]
    ids = set()
    for events, command in (
        ([], liquidate()),
        ([], liquidate(position_id=POSITION)),
        (foreign, liquidate(position_id=POSITION)),
    ):
        book = after(events)
        [event] = decide(command, book)
        assert isinstance(event, PositionLiquidated)
        named = uuid5(IDS, f"{command.book}:none")
        assert str(event.position_id) == str(named)[:14] + "8" + str(named)[15:]
        assert (event.book, event.fee) == (command.book, None)
        assert evolve(book, event).size == book.size
        ids.add(event.position_id)
    assert len(ids) == 2


def test_amounts_of_commands_are_bounded() -> None:
    """A level has at most 8 places; a venue's price has more."""
    with pytest.raises(InvalidCommand, match=r"SetProtection\.stop_loss"):
        protect(stop_loss="0.000000001")
    assert liquidate(price="0.000000001").price == Decimal("1e-9")


def test_a_mark_is_a_fact() -> None:
    """The event says what the command says."""
    command = MarkPrice(token="SOL", price=VenueAmount("12.5"), source="kraken")
    event = PriceMarked(token="SOL", price=VenueAmount("12.5"), source="kraken")
    assert decide_mark(command) == event
    assert event.stream() == "market-SOL"
    assert decide_mark(MarkPrice(token="SOL", price=VenueAmount(1))).source is None
