"""Double entry: which entries each event makes, and that they always sum to exactly zero."""

from __future__ import annotations

from decimal import Context, Decimal, localcontext
from random import Random
from typing import Any
from uuid import uuid5

import msgspec
import pytest

from ledger.domain.orders import (
    Action,
    Execution,
    FillBusted,
    FillConflicted,
    OrderFilled,
    kept_token,
)
from ledger.domain.positions import PositionLiquidated
from ledger.event import Event, VenueAmount
from projections.groups import POSTINGS, TRADING
from projections.positions import Position
from projections.postings import ACCOUNTS, QUOTE, BookBalance, Posting, label
from tests.projections.random_events import HUGE, random_events
from tests.projections.support import an_id, folded, record

USER, EXPLICIT = an_id("user"), an_id("position")
BOOK = f"book:{USER}:SOL"
EXACTLY = Context(prec=1000)


def fill(quantity: str, price: str, fee: str | None = None, **fields: Any) -> OrderFilled:
    """Return a fill of the user; one of a negative quantity sells."""
    event = OrderFilled(
        order_id=an_id("order"),
        fill_id="fill",
        user_id=USER,
        token="SOL",
        action=Action.SELL if quantity.startswith("-") else Action.BUY,
        price=VenueAmount(price),
        quantity=VenueAmount(quantity.lstrip("-")),
        fee=None if fee is None else VenueAmount(fee),
    )
    return msgspec.structs.replace(event, **fields)


def as_kind(kind: type[Execution], filled: Execution) -> Execution:
    """Return another event about the same fill."""
    return kind(**{name: getattr(filled, name) for name in filled.__struct_fields__})


def rows_of(events: list[Event]) -> list[Posting]:
    """Return all entries."""
    return list(folded(events, POSTINGS).rows(Posting))


def last_entries(events: list[Event]) -> dict[str, str]:
    """Return what the last event put on each account, in the accounts' order.

    A currency other than token and quote is named with the account.
    """
    last = record(events)[-1].event_id
    found = {}
    for row in rows_of(events):
        if row.event_id == last:
            is_usual = row.currency == ("SOL" if row.account in {"holding", "venue"} else QUOTE)
            name = row.account if is_usual else f"{row.account} {row.currency}"
            assert name not in found
            found[name] = f"{row.amount.normalize():f}"
    return found


def balance(events: list[Event]) -> BookBalance:
    """Return the only book's balances."""
    [row] = folded(events, POSTINGS).rows(BookBalance)
    return row


SHORT = fill("-2", "100")
LIQUIDATED = PositionLiquidated(
    position_id=an_id("no cycle"), book=BOOK, price=VenueAmount(90), fee=VenueAmount(2)
)
DOCUMENTED: list[tuple[Event, tuple[str, ...]]] = [
    (fill("10", "100", "1"), ("10", "-10", "-1001", "1000", "1", "")),
    (fill("-4", "130", "1"), ("-4", "4", "519", "-400", "1", "-120")),
    (fill("-10", "130"), ("-10", "10", "1300", "-1120", "", "-180")),
    (fill("4", "130", "-1"), ("4", "-4", "-519", "520", "-1", "")),
    (SHORT, ("-2", "2", "200", "-200", "", "")),
    (as_kind(FillBusted, SHORT), ("2", "-2", "-200", "200", "", "")),
    (
        fill("10", "100", "0.1", fee_currency="SOL"),
        ("9.9", "-9.9", "-1000", "990", "10", ""),
    ),
]


def test_the_entries_are_those_that_are_documented() -> None:
    """Buy, sell, flip, rebate, short, bust and a fee in the token, each on what was before."""
    for count in range(1, len(DOCUMENTED) + 1):
        events = [event for event, _ in DOCUMENTED[:count]]
        expected = dict(zip(ACCOUNTS, DOCUMENTED[count - 1][1], strict=True))
        assert last_entries(events) == {name: text for name, text in expected.items() if text}
    row = balance([event for event, _ in DOCUMENTED])
    assert (row.holding, row.cost) == (Decimal("9.9"), Decimal(990))
    assert (row.realized_pnl, row.fees, row.cash) == (Decimal(300), Decimal(11), Decimal(-701))


@pytest.mark.parametrize("explicit", [True, False])
def test_a_liquidation_sells_all_that_is_held(explicit: bool) -> None:
    """It is of the book's cycle or explicit id, once; of a late one only the fee is booked."""
    position_id = EXPLICIT if explicit else None
    book = f"position:{EXPLICIT}" if explicit else BOOK
    bought = fill("10", "100", "0.1", fee_currency="SOL", position_id=position_id)
    [row] = folded([bought], TRADING).rows(Position)
    forced = msgspec.structs.replace(LIQUIDATED, position_id=row.position_id, book=book)
    assert last_entries([bought, forced]) == {
        "holding": "-9.9",
        "venue": "9.9",
        "cash": "889",
        "cost": "-990",
        "fee": "2",
        "realized_pnl": "99",
    }
    only_fee = {"cash": "-2", "fee": "2"}
    assert last_entries([bought, forced, forced]) == only_fee
    assert last_entries([LIQUIDATED]) == only_fee
    assert last_entries([bought, msgspec.structs.replace(forced, fee=None)])["cash"] == "891"
    without_fee = msgspec.structs.replace(forced, fee=None)
    assert balance([bought, forced, without_fee]).changed_size == 2
    again = [bought, forced, bought, forced]
    assert (last_entries(again) != only_fee) == explicit


def test_a_short_is_liquidated_by_buying_back() -> None:
    """The cost of a short is what it brought in; buying back for more is a loss."""
    short = fill("-2", "100", position_id=EXPLICIT)
    forced = PositionLiquidated(position_id=EXPLICIT, price=VenueAmount(130))
    assert last_entries([short, forced]) == {
        "holding": "2",
        "venue": "-2",
        "cash": "-260",
        "cost": "200",
        "realized_pnl": "60",
    }


def test_a_fee_in_a_third_currency_is_balanced_there() -> None:
    """It moves nothing in the quote currency, and its bust takes it back."""
    filled = fill("1", "100", "2", fee_currency="BNB")
    expected = {
        "holding": "1",
        "venue": "-1",
        "cash": "-100",
        "cost": "100",
        "fee BNB": "2",
        "cash BNB": "-2",
    }
    assert last_entries([filled]) == expected
    opposite = {name: str(-Decimal(amount)) for name, amount in expected.items()}
    assert last_entries([filled, as_kind(FillBusted, filled)]) == opposite
    assert (balance([filled]).fees, balance([filled]).cash) == (Decimal(0), Decimal(-100))
    rebate = last_entries([fill("1", "100", "-2", fee_currency="BNB")])
    assert (rebate["fee BNB"], rebate["cash BNB"]) == ("-2", "2")


def test_the_token_may_be_called_like_the_quote_currency() -> None:
    """Labels keep apart what would be added up, and stand for names that no column holds."""
    rows = rows_of([fill("1", "100", token="quote")])
    assert {row.currency for row in rows if row.account == "holding"} == {"quote (token)"}
    long = [fill("1", "100", token="x" * 300, position_id=EXPLICIT)]
    forced = PositionLiquidated(position_id=EXPLICIT, price=VenueAmount(1))
    currencies = {row.currency for row in rows_of([*long, forced])}
    assert currencies == {"quote", kept_token("x" * 300)}
    long = [fill("1", "100", "1", fee_currency="x" * 300)]
    assert "(too long)" in {row.currency for row in rows_of([*long])}
    assert label("BNB") == "BNB"


def test_postings_and_positions_tell_long_tokens_apart() -> None:
    """A fill in another long token moves no explicit position."""
    one, other = (fill("1", "100", token=c * 256, position_id=EXPLICIT) for c in "ab")
    assert last_entries([one, other]) == {}
    assert last_entries([one, one]) != {}


def test_a_fee_in_the_token_is_worth_what_was_paid() -> None:
    """The price of a fill may have been rounded to zero; the quote amount tells more."""
    paid: dict[str, Any] = {"quote_amount": VenueAmount(1), "fee_currency": "SOL"}
    row = balance([fill("4000000000000000000", "0", "1000000000000000000", **paid)])
    assert (row.cost, row.fees) == (Decimal("0.75"), Decimal("0.25"))


def test_a_bust_takes_back_at_its_own_cost() -> None:
    """What it takes out has no gain; where it closes or flips, the rest is realised."""
    first, second = fill("10", "100"), fill("5", "130")
    back = as_kind(FillBusted, second)
    assert last_entries([first, second, back])["cost"] == "-650"
    assert "realized_pnl" not in last_entries([first, second, back])
    assert last_entries([second, fill("-4", "130"), back]) == {
        "holding": "-5",
        "venue": "5",
        "cash": "650",
        "cost": "-650",
    }
    flipped = last_entries([fill("5", "100"), fill("-4", "100"), as_kind(FillBusted, second)])
    assert (flipped["cost"], flipped["realized_pnl"]) == ("-620", "-30")


@pytest.mark.parametrize(
    "event",
    [
        fill("1", "100", user_id=None),
        fill("0", "100"),
        msgspec.structs.replace(fill("1", "100"), quantity=VenueAmount("-1")),
        as_kind(FillConflicted, fill("1", "100")),
        PositionLiquidated(position_id=EXPLICIT, price=VenueAmount(1)),
    ],
)
def test_what_is_not_booked(event: Event) -> None:
    """Facts that move no position make no entries, before and after a fill that does."""
    assert rows_of([event]) == []
    assert len(rows_of([fill("1", "100"), event])) == 4
    assert balance([fill("1", "100"), event]).changed_size == 1


def test_a_fill_that_its_fee_eats_up_is_booked_only_where_something_is_held() -> None:
    """From flat it opens nothing; otherwise its fee is charged to what is held."""
    eaten = fill("1", "100", "1", fee_currency="SOL")
    assert rows_of([eaten]) == rows_of([eaten, eaten]) == []
    assert last_entries([fill("2", "100"), eaten]) == {"cash": "-100", "fee": "100"}
    assert last_entries([fill("2", "100"), fill("-2", "100"), eaten]) == {}


def test_a_fill_of_another_on_an_explicit_position_is_not_booked() -> None:
    """Neither that of another user nor that in another token, until the position is flat."""
    mine = fill("4", "100", position_id=EXPLICIT)
    thief = fill("-4", "100", position_id=EXPLICIT, user_id=an_id("other"))
    coin = fill("-4", "100", position_id=EXPLICIT, token="ETH")
    assert last_entries([mine, thief]) == last_entries([mine, coin]) == {}
    flat = fill("-4", "100", position_id=EXPLICIT)
    row = balance([mine, flat, thief])
    assert (row.user_id, row.token, row.holding) == (an_id("other"), "SOL", Decimal(-4))
    assert {each.user_id for each in rows_of([mine, flat, thief])} == {USER, an_id("other")}


def test_the_fee_of_a_liquidation_of_nothing_is_not_charged_to_another() -> None:
    """Where somebody else holds the explicit position, the entries name no user."""
    book = f"position:{EXPLICIT}"
    nothing = msgspec.structs.replace(LIQUIDATED, book=book)
    own = msgspec.structs.replace(LIQUIDATED, position_id=EXPLICIT, book=None)
    mine = fill("4", "100", position_id=EXPLICIT)
    assert last_entries([mine, nothing]) == {"cash": "-2", "fee": "2"}
    assert balance([mine, nothing]).holding == 4
    assert {each.user_id for each in rows_of([mine, nothing])[4:]} == {None}
    assert {each.user_id for each in rows_of([mine, own])} == {USER}


def test_every_entry_says_where_it_comes_from() -> None:
    """Ids follow from event and number, and user, token, book and time are those of the event."""
    rows = rows_of([fill("1", "100", "2")])
    [recorded] = record([fill("1", "100", "2")])
    assert [row.posting_id for row in rows] == [
        uuid5(recorded.event_id, f"posting {number}") for number in range(5)
    ]
    for number, row in enumerate(rows):
        assert (row.entry, row.event_id) == (number, recorded.event_id)
        assert (row.user_id, row.token, row.book) == (USER, "SOL", BOOK)
        assert (row.timestamp, row.changed_size) == (recorded.occurred_at, 1)


def test_entries_of_an_event_sum_to_exactly_zero() -> None:
    """No amount is so large or has so many places that rounding could leave a rest."""
    tiny = "0." + "0" * 28 + "3"
    odd: list[Event] = [
        fill(HUGE, HUGE, tiny),
        fill("-3", tiny, HUGE),
        fill("-7", HUGE, tiny, fee_currency="SOL"),
        fill(f"-{HUGE}", "7.1", HUGE, fee_currency="BNB"),
        fill(f"-{HUGE}", tiny, "1", quote_amount=VenueAmount(HUGE)),
    ]
    events = [*odd, *(as_kind(FillBusted, each) for each in odd if isinstance(each, Execution))]
    for seed in range(20):
        assert_zero(rows_of(random_events(Random(seed), 100, odd_chance=0.2)))
    assert_zero(rows_of(events))
    assert_zero(rows_of(events[::-1]))


def assert_zero(rows: list[Posting]) -> None:
    """Hold that the entries of each event sum to zero in each currency, and none is zero."""
    assert rows
    sums: dict[Any, Decimal] = {}
    with localcontext(EXACTLY):
        for row in rows:
            key = (row.event_id, row.currency)
            sums[key] = sums.get(key, Decimal(0)) + row.amount
            assert row.amount != 0
    assert set(sums.values()) == {Decimal(0)}
