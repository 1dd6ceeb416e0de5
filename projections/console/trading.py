"""A position over time: fills, marks, levels, and what was gained, as of a size of the journal."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal, localcontext
from typing import Any

import msgspec
from markupsafe import Markup

from ledger.domain.marks import PriceMarked, market_stream
from ledger.domain.orders import Action, Execution, FillBusted
from ledger.journal import Journal
from projections.console.cells import as_time
from projections.console.charts import Line, Marker, Panel, panels
from projections.console.sampling import sampled
from projections.history import Change, History
from projections.numbers import CONTEXT
from projections.rendering import amount_text

MARKS_SHOWN_MAX = 400
ZERO = Decimal(0)


class Fill(msgspec.Struct, frozen=True):
    """One fill (or the bust of one), and the position after it."""

    offset: int
    at: datetime
    side: str
    price: Decimal
    quantity: Decimal
    fee: Decimal | None
    after: dict[str, Any]

    @property
    def is_buy(self) -> bool:
        """Whether it moves the position upwards."""
        return self.side in {"buy", "bust of a sale"}

    def __str__(self) -> str:
        price, quantity = amount_text(self.price), amount_text(self.quantity)
        return f"{self.side} {quantity} at {price}, {self.at:%Y-%m-%d %H:%M:%S}"


class Course(msgspec.Struct, frozen=True):
    """What became of a position: its states by time, its fills, and the marks meanwhile."""

    changes: list[Change]
    fills: list[Fill]
    marks: list[tuple[datetime, Decimal]]

    @property
    def span(self) -> tuple[datetime, datetime]:
        """The first and the last moment that is shown."""
        moments = [as_time(each.occurred_at) for each in self.changes]
        moments += [at for at, _ in self.marks]
        return min(moments), max(moments)


class Gained(msgspec.Struct, frozen=True):
    """What a position had gained at a mark, realised or not, less fees; None where it is unknown.

    Before the first mark the price is that of the first fill.
    """

    at: datetime
    price: Decimal | None
    gain: Decimal | None


async def course_of(journal: Journal, row: dict[str, Any], history: History, size: int) -> Course:
    """Return the course of a position up to a size, from its row and its history."""
    changes = history.changes
    by_offset = {change.offset: change for change in changes}
    tagged = await journal.read_tagged(str(row["book"]), stop=size)
    fills = [
        _fill(each.offset, each.occurred_at, each.event, by_offset[each.offset])
        for each in tagged
        if each.offset in by_offset and isinstance(each.event, Execution)
    ]
    stop = size if row["status"] == "open" else changes[-1].offset + 1
    return Course(changes, fills, await _marks(journal, row["token"], changes[0].offset, stop))


def _fill(offset: int, at: datetime, event: Execution, change: Change) -> Fill:
    side = "buy" if event.action == Action.BUY else "sell"
    if isinstance(event, FillBusted):
        side = "bust of a purchase" if side == "buy" else "bust of a sale"
    price, quantity = Decimal(event.price), Decimal(event.quantity)
    fee = None if event.fee is None else Decimal(event.fee)
    return Fill(offset, at, side, price, quantity, fee, change.columns)


async def _marks(
    journal: Journal, token: str | None, start: int, stop: int
) -> list[tuple[datetime, Decimal]]:
    """Return marks of a token between two offsets, evenly chosen where they are many."""
    if token is None:
        return []
    events = await sampled(journal, market_stream(token), start, stop, MARKS_SHOWN_MAX)
    marked = ((each.occurred_at, each.event) for each in events)
    return [(at, Decimal(event.price)) for at, event in marked if isinstance(event, PriceMarked)]


def chart(course: Course, token: str) -> Markup:
    """Return price with fills and levels, size, cost and gain over time."""
    first, last = course.span
    drawing = _Drawing(course)
    steps = drawing.steps
    prices = (drawing.marks(), steps("entry_price", "entry"), *drawing.levels())
    shown = (
        Panel(f"Price of {token}", 220, prices, drawing.fills()),
        Panel("Size", 90, (steps("size", "size", filled=True),), includes_zero=True),
        Panel("Cost", 90, (steps("cost_basis", "cost", filled=True),), includes_zero=True),
        Panel("Net gain at the mark", 110, (drawing.gains(),), includes_zero=True),
    )
    told = f"{len(course.fills)} fills from {first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC"
    return panels("course", f"The position in {token} over time", told, (first, last), shown)


class _Drawing:
    """What a course looks like: places count seconds from its beginning."""

    def __init__(self, course: Course) -> None:
        self._course = course
        self._first, self._last = course.span

    def _seconds(self, at: Any) -> float:
        return (as_time(at) - self._first).total_seconds()

    def steps(self, column: str, css: str, *, filled: bool = False) -> Line:
        """Return a column of the row, which stays as it is until it changes."""
        changes = self._course.changes
        points = [(self._seconds(each.occurred_at), _drawn(each, column)) for each in changes]
        end = (self._seconds(self._last), points[-1][1])
        return Line(css, [*points, end], steps=True, filled=filled)

    def levels(self) -> tuple[Line, Line]:
        """Return stop loss and take profit."""
        return self.steps("stop_loss", "stop"), self.steps("take_profit", "target")

    def marks(self) -> Line:
        """Return the marks meanwhile."""
        return Line("mark", [(self._seconds(at), float(price)) for at, price in self._course.marks])

    def fills(self) -> list[Marker]:
        """Return where something was bought or sold."""
        return [
            Marker(
                css="buy" if each.is_buy else "sell",
                x=self._seconds(each.at),
                y=float(each.price),
                is_up=each.is_buy,
                title=str(each),
            )
            for each in self._course.fills
        ]

    def gains(self) -> Line:
        """Return what was gained at each moment."""
        found = ((self._seconds(each.at), each.gain) for each in gained(self._course))
        return Line("gain", [(x, None if y is None else float(y)) for x, y in found], filled=True)


def _drawn(change: Change, column: str) -> float | None:
    value = change.columns.get(column)
    return None if value is None else float(value)


def gained(course: Course) -> list[Gained]:
    """Return what the position had gained whenever it, or the mark, changed."""
    states = [(as_time(each.occurred_at), each.columns, None) for each in course.changes]
    marks = [(at, None, price) for at, price in course.marks]
    row: dict[str, Any] = {}
    price = course.fills[0].price if course.fills else None
    found = []
    for at, columns, mark in sorted([*states, *marks], key=lambda each: each[0]):
        row = row if columns is None else columns
        price = price if mark is None else mark
        found.append(Gained(at, price, _gain(row, price)))
    return found


def _gain(row: dict[str, Any], price: Decimal | None) -> Decimal | None:
    if not row or row.get("net_pnl") is None:
        return None
    size, net = Decimal(row["size"] or 0), Decimal(row["net_pnl"])
    if size == 0 or price is None:
        return net if size == 0 else None
    with localcontext(CONTEXT):
        cost = Decimal(row["cost_basis"])
        return net + size * price - (cost if size > ZERO else -cost)


def levels(changes: Sequence[Change]) -> list[Change]:
    """Return the changes that set, moved or took away a level."""
    watched = {"stop_loss", "take_profit"}
    return [change for change in changes if watched & set(change.changed)]
