"""Positions and orders, made by commands, against figures that others computed."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import gzip
import json
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa

from ledger.domain.order_commands import Raw
from ledger.domain.orders import (
    Action,
    OrderAccepted,
    OrderCancelled,
    OrderFilled,
    OrderPlaced,
    OrderRestated,
    OrderType,
)
from ledger.domain.users import UserRegistered
from ledger.errors import InvalidCommand
from ledger.event import Event, NewEvent, RecordedEvent, VenueAmount
from ledger.services import Ledger
from projections.database import Database
from projections.groups import TRADING
from projections.orders import Order
from projections.positions import Position
from projections.projection import State
from projections.projector import Projector
from tests.ledger.support import opened, read_all, settings_for
from tests.projections.support import JOURNAL, JOURNAL_ID, all_rows, an_id

USER = an_id("user")
QUOTE = "ZZQ"
STATUSES = {
    "FILLED": "executed",
    "PARTIALLY_FILLED": "partially_filled",
    "CANCELED": "cancelled",
}


@contextlib.asynccontextmanager
async def ledger_with_users(url: str, *names: str) -> AsyncIterator[Ledger]:
    """Open the commands of a journal in which these users are registered."""
    async with opened(url) as journal:
        users = [UserRegistered(user_id=an_id(name), username=name) for name in names]
        await journal.append([NewEvent(each) for each in users])
        yield Ledger(journal)


class Folding:
    """Folds a journal as far as it is."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.state = TRADING.state(JOURNAL_ID, JOURNAL)
        self.size = 0

    async def catch_up(self) -> State:
        """Fold what is new; return the state, its rows finished."""
        events = await read_all(self.ledger.journal, self.size)
        TRADING.fold(self.state, events)
        self.size += len(events)
        for table in self.state.tables:
            TRADING.finished(self.state, table)
        return self.state


@pytest.mark.parametrize("number", range(1, 17))
async def test_positions_agree_with_another_engine(
    number: int, data_dir: Path, sqlite_url: str
) -> None:
    """After every command, position and order are as nautilus_trader has them.

    C15 delivers a fill twice, which is stored once. C13 keeps the leaves of a cancelled order.
    """
    cases = json.loads((data_dir / "oracle_positions.json").read_text())["cases"]
    case = next(case for case in cases if case["id"] == f"C{number:02}")
    turnover, fills, differences = Decimal(0), 0, []
    async with ledger_with_users(sqlite_url, "user") as ledger:
        folding = Folding(ledger)
        for step in case["steps"]:
            await run_step(ledger, step, f"fill {folding.size}")
            state = await folding.catch_up()
            if step["do"] == "fill":
                turnover += Decimal(step["qty"]) * Decimal(step["price"])
                fills += 1
                tolerance = Decimal("1e-8") * (fills + 1) + Decimal("1e-12") * turnover
                compare_position(state, step, tolerance)
            if step["do"] in {"fill", "cancel"}:
                differences += compare_order(state, step)
    assert differences == ([("0", "6")] if case["id"] == "C13" else [])


async def run_step(ledger: Ledger, step: dict[str, Any], fill_id: str) -> None:
    """Run the command of one step of a case."""
    match step["do"]:
        case "order":
            action = Action(step["side"].lower())
            await place(ledger, an_id(step["order"]), USER, "TOKEN", action, step["qty"])
        case "cancel":
            await ledger.orders.cancelled(order_id=an_id(step["order"]))
        case "fill":
            position = step.get("position_id")
            await ledger.orders.fill(
                order_id=an_id(step["order"]),
                fill_id=step.get("trade_id", fill_id),
                quantity=step["qty"],
                price=step["price"],
                fee=step["fee"],
                fee_currency=step.get("fee_currency"),
                position_id=an_id(position) if position else None,
            )


async def place(
    ledger: Ledger, order_id: UUID, user_id: UUID, token: str, action: Action, quantity: Any
) -> None:
    """Place a market order."""
    await ledger.orders.place(
        order_id=order_id,
        user_id=user_id,
        token=token,
        action=action,
        order_type=OrderType.MARKET,
        quantity=quantity,
    )


def compare_position(state: State, step: dict[str, Any], tolerance: Decimal) -> None:
    """Compare the latest cycle of the fill's book."""
    expected = step["expect"]
    explicit = step.get("position_id")
    cycles = [
        row
        for row in state.rows(Position)
        if explicit is None or row.position_id == an_id(explicit)
    ]
    row = cycles[-1]
    assert row.exact_size == Decimal(expected["signed_qty"])
    entry = Decimal(expected["avg_px_open"])
    assert abs(row.exact_entry_price - entry) <= max(Decimal("1e-8"), Decimal("1e-9") * entry)
    assert row.net_pnl is not None
    assert abs(row.net_pnl - Decimal(expected["cycle_realized_pnl_net"])) <= tolerance
    assert abs(row.exact_fees - Decimal(expected["cycle_fees"].get(QUOTE, 0))) <= tolerance
    if explicit is None:
        total = sum(row.net_pnl or 0 for row in cycles)
        assert abs(total - Decimal(expected["cumulative_realized_pnl_net"])) <= tolerance
    assert row.status == ("closed" if expected["side"] == "FLAT" else "open")


def compare_order(state: State, step: dict[str, Any]) -> list[tuple[str, str]]:
    """Compare the order of the step; return the leaves, ours and theirs, where they differ.

    Theirs have no more places than the fill (C07: 0.7 of 1.00000001 - 0.3), so ours are rounded.
    """
    expected = step["expect"]
    row = state.rows(Order).get(an_id(step["order"]))
    assert row is not None
    assert row.status == STATUSES[expected["order_status"]]
    assert row.filled_quantity == Decimal(expected["order_filled_qty"])
    if "order_avg_px" in expected:
        average, price = row.average_fill_price, Decimal(expected["order_avg_px"])
        assert average is not None
        assert abs(average - price) <= max(Decimal("1e-8"), Decimal("1e-9") * price)
    left = Decimal(expected["order_leaves_qty"])
    assert row.leaves_quantity is not None
    ours = row.leaves_quantity.quantize(left)
    return [] if ours == left else [(str(ours), str(left))]


async def test_positions_agree_with_an_exchange(data_dir: Path, sqlite_url: str) -> None:
    """Sizes and gross realised P&L are Hyperliquid's own after each fill; all is by commands."""
    with (data_dir / "real" / "hyperliquid_fills_dev.csv").open() as file:
        rows = list(csv.DictReader(file))
    accounts = sorted({row["account"] for row in rows})
    quantities, books = defaultdict[UUID, Decimal](Decimal), defaultdict[Any, list[Any]](list)
    for row in rows:
        quantities[exchange_order(row)] += Decimal(row["size"])
        books[row["account"], row["coin"]].append(row)
    async with ledger_with_users(sqlite_url, *accounts) as ledger:
        await asyncio.gather(*(trade(ledger, book, quantities) for book in books.values()))
        events = await read_all(ledger.journal)
    checked = compare_with_exchange(events, {exchange_fill_id(row): row for row in rows})
    assert checked == {"sizes": 1963, "profits": 670, "orders": 76}


async def trade(
    ledger: Ledger, book: Sequence[dict[str, str]], quantities: dict[UUID, Decimal]
) -> None:
    """Place each order of a book before its first fill, over the sum of its fills."""
    placed = set()
    for row in book:
        order_id, action = exchange_order(row), Action(row["side"].lower())
        if order_id not in placed:
            placed.add(order_id)
            user_id = an_id(row["account"])
            await place(ledger, order_id, user_id, row["coin"], action, quantities[order_id])
        in_token = row["kind"] == "spot" and action is Action.BUY
        await ledger.orders.fill(
            order_id=order_id,
            fill_id=exchange_fill_id(row),
            quantity=row["size"],
            price=row["price"],
            fee=row["fee"],
            fee_currency=row["coin"] if in_token else None,
        )


def exchange_order(row: dict[str, str]) -> UUID:
    """Return the id of a row's order."""
    return an_id("/".join(row[name] for name in ("order_id", "account", "coin", "side")))


def exchange_fill_id(row: dict[str, str]) -> str:
    """Return what identifies a row."""
    return "-".join(row[name] for name in ("account", "coin", "segment", "seq"))


def compare_with_exchange(
    events: Sequence[RecordedEvent], rows: dict[str, dict[str, str]]
) -> Counter[str]:
    """Fold event by event and compare what comes of each fill; count what was compared."""
    state, checked = TRADING.state(JOURNAL_ID, JOURNAL), Counter[str]()
    for recorded in events:
        fill = recorded.event
        if not isinstance(fill, OrderFilled):
            TRADING.fold(state, [recorded])
            checked["orders"] += isinstance(fill, OrderPlaced)
            continue
        book = next(iter(fill.tags()))
        before = size_and_profit(state, book)
        TRADING.fold(state, [recorded])
        compare_fill(rows[fill.fill_id], before, size_and_profit(state, book), checked)
    assert {row.status for row in state.rows(Order)} == {"executed"}
    assert not any(row.flags for row in state.rows(Order))
    return checked


def compare_fill(
    row: dict[str, str],
    before: tuple[Decimal, Decimal],
    after: tuple[Decimal, Decimal],
    checked: Counter[str],
) -> None:
    """Compare size and profit around one fill with the exchange's own."""
    start = Decimal(row["start_position"])
    assert abs(before[0] - start) <= Decimal("1e-8") * abs(start)
    checked["sizes"] += 1
    if row["since_flat"] == "1" and Decimal(row["closed_pnl"]) and row["direction"][:5] == "Close":
        gained = after[1] - (before[1] if before[0] else 0)
        closed = min(abs(before[0]), Decimal(row["size"]))
        tolerance = Decimal(row["price_tick"]) * closed + Decimal("2e-6")
        assert abs(gained - Decimal(row["closed_pnl"])) <= tolerance
        checked["profits"] += 1


def size_and_profit(state: State, book: str) -> tuple[Decimal, Decimal]:
    """Return size and gross realised P&L of the latest cycle of a book."""
    row = state.rows(Position).find("book", book)
    return (row.exact_size, row.exact_realized_pnl) if row else (Decimal(0), Decimal(0))


SCALE = 18
"""Decimals of both tokens on the chain."""


async def test_swaps_end_up_exact(data_dir: Path, sqlite_url: str) -> None:
    """Amounts of 18 places are refused in commands, and exact as venue facts, in sum too."""
    file = data_dir / "real" / "uniswap_v2_uni_weth_swaps.csv"
    with file.open() as lines:
        rows = list(csv.DictReader(lines))
    async with ledger_with_users(sqlite_url, "user") as ledger:
        refused = await asyncio.gather(*(swap(ledger, row) for row in rows))
        async with Database(settings_for(sqlite_url)) as database:
            await Projector(database, ledger.journal, TRADING).catch_up()
            async with database.session() as session:
                found = {each.order_id: each for each in await session.scalars(sa.select(Order))}
    assert len(rows) == len(found) == 2000
    assert refused.count(True) == sum(units(row[uni(row)]) % 10**10 > 0 for row in rows) > 1600
    for row in rows:
        compare_swap(found[an_id(row["swap_id"])], row)
    for column, name in (("raw_amount_in", "amount_in"), ("raw_amount_out", "amount_out")):
        assert sum(getattr(each, column) for each in found.values()) == sum(
            units(row[name]) for row in rows
        )


def units(amount: str) -> int:
    """Return an amount in the smallest unit, by text alone."""
    whole, _, fraction = amount.partition(".")
    return int(whole + fraction.ljust(SCALE, "0"))


def uni(row: dict[str, str]) -> str:
    """Name the column with the amount of UNI, the token; the other is the quote, WETH."""
    return "amount_out" if row["token_in"] == "WETH" else "amount_in"


async def swap(ledger: Ledger, row: dict[str, str]) -> bool:
    """Place and fill what a row says; return whether the placing was refused."""
    is_buy = row["token_in"] == "WETH"
    action, quantity = Action.BUY if is_buy else Action.SELL, row[uni(row)]
    order_id, fits = an_id(row["swap_id"]), len(quantity.partition(".")[2].rstrip("0")) <= 8
    placing = place(ledger, order_id, USER, "UNI", action, quantity)
    if fits:
        await placing
    else:
        digits = "has too many digits: at most 12 before and 8 after the point"
        with pytest.raises(InvalidCommand, match=rf"PlaceOrder\.quantity: '[\d.]+' {digits}"):
            await placing
    await ledger.orders.fill(
        order_id=order_id,
        fill_id=row["swap_id"],
        quantity=Raw(units(quantity), SCALE),
        quote_amount=Raw(units(row["amount_in" if is_buy else "amount_out"]), SCALE),
        transaction_signature=row["tx"],
        token="UNI",
        action=action,
        user_id=USER,
    )
    return not fits


def compare_swap(order: Order, row: dict[str, str]) -> None:
    """Compare an order's exact columns, and those that are rounded from them."""
    assert order.raw_amount_in == units(row["amount_in"])
    assert order.raw_amount_out == units(row["amount_out"])
    assert (order.amount_in_decimals, order.amount_out_decimals) == (SCALE, SCALE)
    exact = {order.exact_filled_quantity, order.exact_notional}
    assert exact == {Decimal(row["amount_in"]), Decimal(row["amount_out"])}
    assert order.amount_in is not None
    assert abs(order.amount_in - Decimal(row["amount_in"])) <= Decimal("5e-17")
    assert order.transaction_signature == row["tx"]


def test_orders_end_as_counted_from_an_order_book(data_dir: Path) -> None:
    """The end states of LOBSTER's orders, and its messages without an order, are those counted."""
    expected = json.loads((data_dir / "real" / "expected_counts.json").read_text())["lobster_goog"]
    file = "lobster_goog_2012-06-21_level1_messages.csv.gz"
    with gzip.open(data_dir / "real" / file, "rt") as lines:
        events = [event for row in csv.DictReader(lines) for event in book_events(row)]
    rows = all_rows([UserRegistered(user_id=USER, username="trader"), *events], Order)
    placed = [row for row in rows if row.order_type is not None]
    assert Counter(end_state(row) for row in placed) == expected["final_states"]
    assert (
        sum(row.exact_filled_quantity for row in placed)
        == expected["filled_shares_of_submitted_orders"]
    )
    unknown = Counter[str]()
    for row in rows:
        unknown.update({k: n for k, n in row.flags.items() if k.startswith("unknown_order:")})
    kinds = {4: "OrderFilled", 3: "OrderCancelled", 2: "OrderRestated"}
    assert unknown == {
        f"unknown_order:{kind}": expected["anomalies"][
            f"type{number} for an order never submitted in the file"
        ]
        for number, kind in kinds.items()
    }


def book_events(row: dict[str, str]) -> Iterator[Event]:
    """Return the events of one order book message."""
    order_id, size = an_id(row["order_id"]), row["size"]
    action = Action.BUY if row["direction"] == "1" else Action.SELL
    match row["type"]:
        case "1":
            yield book_order(order_id, action, size)
            yield OrderAccepted(order_id=order_id)
        case "2":
            yield OrderRestated(order_id=order_id, quantity_change=VenueAmount(f"-{size}"))
        case "3":
            yield OrderCancelled(order_id=order_id)
        case "4":
            price = VenueAmount(Decimal(row["price_x10000"]) / 10_000)
            yield OrderFilled(
                order_id=order_id,
                user_id=USER,
                fill_id=row["time_s"],
                token="TOKEN",
                action=action,
                price=price,
                quantity=VenueAmount(size),
            )


def book_order(order_id: UUID, action: Action, quantity: str) -> OrderPlaced:
    """Return a market order, since the file has no other terms that matter here."""
    return OrderPlaced(
        order_id=order_id,
        user_id=USER,
        token="TOKEN",
        action=action,
        order_type=OrderType.MARKET,
        quantity=quantity,  # type: ignore[arg-type] # text becomes an amount
    )


def end_state(row: Order) -> str:
    """Return the state in the words of the count."""
    if row.status == "executed":
        return "filled after a size reduction" if "restated" in row.flags else "filled"
    if row.status == "cancelled":
        return "cancelled after partial fill" if row.exact_filled_quantity else "cancelled"
    return "open, partially filled" if row.exact_filled_quantity else "open"
