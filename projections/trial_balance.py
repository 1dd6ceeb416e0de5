"""The trial balance: what is on every account, and whether postings and positions agree.

Postings and positions are two folds of the same events. They share what an event says of itself:
what was paid in a fill (`notional`), the name of its book (`position_tag`), the form in which a
token is compared (`kept_token`) and the ids of cycles (`cycle_id`). Sizes, fees, costs and gains
each computes by itself: where they differ, one of them is wrong.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal, localcontext
from typing import Any

import msgspec
import sqlalchemy as sa

from ledger.errors import LedgerError
from ledger.journal import Journal
from projections import checkpoints
from projections.database import Database
from projections.groups import POSTINGS, TRADING
from projections.lanes import NO_RULINGS, Rulings
from projections.numbers import ZERO
from projections.positions import Position, signed_cost
from projections.postings import (
    CASH,
    COST,
    EXACT,
    FEE,
    HOLDING,
    QUOTE,
    REALIZED_PNL,
    VENUE,
    BookBalance,
    Posting,
    label,
)
from projections.rendering import amount_text
from projections.replaying import fold_prefix

TOLERANCE = Decimal("1e-20")
"""How far sums may differ that were rounded to 50 digits on different ways.

It is relative to the turnover of the book, since small sums come of large amounts.
"""

FEES, FEES_IN = "fees", "fees in "

Figures = dict[tuple[str, str], Decimal]
"""Amounts by book and by what they are."""


class NotComparable(LedgerError):
    """Positions and postings are at different sizes, so that nothing follows from a difference."""

    exit_code = 3

    def __init__(self, positions: int, postings: int) -> None:
        super().__init__(
            f"the positions are at size {positions} and the postings at {postings}, so they cannot "
            "be compared; run `projections run --once`, or leave out --live"
        )


class Balance(msgspec.Struct, frozen=True):
    """The sum of all entries of an account in one currency."""

    account: str
    currency: str
    amount: Decimal


class Fault(msgspec.Struct, frozen=True):
    """What is wrong: `subject` is a book, or an event by its id."""

    subject: str
    reason: str

    def __str__(self) -> str:
        return f"{self.subject}: {self.reason}"


class TrialBalance(msgspec.Struct, frozen=True):
    """All balances as of a size, their totals by currency, and the faults found."""

    size: int
    postings: int
    books: int
    balances: list[Balance]
    totals: dict[str, Decimal]
    faults: list[Fault]


def trial_balance(
    size: int,
    postings: Iterable[Posting],
    balances: Iterable[BookBalance],
    positions: Iterable[Position],
) -> TrialBalance:
    """Add up the entries and compare postings, book balances and positions, all of one size."""
    entries, kept, cycles = list(postings), list(balances), list(positions)
    with localcontext(EXACT):
        sums = _sums(entries)
        totals: dict[str, Decimal] = defaultdict(Decimal)
        for (_, currency), amount in sums.items():
            totals[currency] += amount
        faults = [*_unbalanced(entries), *_differences(entries, kept, cycles)]
    found = [Balance(account, currency, sums[account, currency]) for account, currency in sums]
    found.sort(key=lambda each: (each.currency, each.account))
    return TrialBalance(size, len(entries), len(kept), found, dict(sorted(totals.items())), faults)


def _sums(entries: Iterable[Posting]) -> Figures:
    sums: Figures = defaultdict(Decimal)
    for entry in entries:
        sums[entry.account, entry.currency] += entry.amount
    return sums


def _unbalanced(entries: Iterable[Posting]) -> Iterator[Fault]:
    """Yield the events whose entries do not sum to exactly zero in each currency."""
    sums: Figures = defaultdict(Decimal)
    for entry in entries:
        sums[str(entry.event_id), entry.currency] += entry.amount
    for (event_id, currency), amount in sums.items():
        if amount != 0:
            reason = f"its entries in {currency} sum to {amount_text(amount)}, not to zero"
            yield Fault(f"event {event_id}", reason)


def _differences(
    entries: list[Posting], balances: list[BookBalance], positions: list[Position]
) -> Iterator[Fault]:
    """Yield what the postings, the balances and the positions of a book do not agree on."""
    turnover = _turnover(entries)
    posted, other_fees = _of_postings(entries)
    kept = _of_balances(balances)
    yield from _compared("postings", posted, "book balances", kept, turnover)
    without_cash = {key: amount for key, amount in kept.items() if key[1] != CASH}
    booked = without_cash | other_fees
    yield from _compared("book balances", booked, "positions", _of_positions(positions), turnover)


def _compared(
    name: str, left: Figures, other_name: str, right: Figures, turnover: Figures
) -> Iterator[Fault]:
    """Yield the figures that differ by more than rounding can explain."""
    for book, what in sorted(left.keys() | right.keys()):
        one, other = left.get((book, what), ZERO), right.get((book, what), ZERO)
        scale = max(turnover.get((book, _kind(what)), ZERO), abs(one), abs(other))
        if abs(one - other) > scale * TOLERANCE:
            found = f"{amount_text(one)} in the {name}, {amount_text(other)} in the {other_name}"
            yield Fault(book, f"{what}: {found}")


def _kind(what: str) -> str:
    """Return what an amount is counted in: the token, the quote currency, or a third one."""
    return what if what == HOLDING or what.startswith(FEES_IN) else QUOTE


def _turnover(entries: Iterable[Posting]) -> Figures:
    """Return how much went over the accounts of each book, by what it is counted in."""
    sums: Figures = defaultdict(Decimal)
    for entry in entries:
        sums[entry.book, _kind(_what(entry))] += abs(entry.amount)
    return sums


def _what(entry: Posting) -> str:
    """Return which figure of its book an entry is a part of."""
    if entry.account in {HOLDING, VENUE} or entry.currency == QUOTE:
        return FEES if entry.account == FEE else entry.account
    return FEES_IN + entry.currency


def _of_postings(entries: Iterable[Posting]) -> tuple[Figures, Figures]:
    """Return the figures that book balances have too, and the fees in third currencies."""
    own: Figures = defaultdict(Decimal)
    other_fees: Figures = defaultdict(Decimal)
    for entry in entries:
        what = _what(entry)
        if what.startswith(FEES_IN):
            other_fees[entry.book, what] += entry.amount if entry.account == FEE else ZERO
        elif what != VENUE:
            own[entry.book, what] += -entry.amount if what == REALIZED_PNL else entry.amount
    return own, other_fees


def _of_balances(balances: Iterable[BookBalance]) -> Figures:
    names = (HOLDING, CASH, COST, FEES, REALIZED_PNL)
    return {(row.book, name): getattr(row, name) for row in balances for name in names}


def _of_positions(positions: Iterable[Position]) -> Figures:
    sums: Figures = defaultdict(Decimal)
    for row in positions:
        sums[row.book, HOLDING] += row.exact_size
        sums[row.book, COST] += signed_cost(row)
        sums[row.book, FEES] += row.exact_fees
        sums[row.book, REALIZED_PNL] += row.exact_realized_pnl
        for currency, fee in row.other_fees.items():
            sums[row.book, FEES_IN + label(currency)] += Decimal(fee)
    return sums


async def folded_balance(
    journal: Journal,
    size: int,
    advanced: Callable[[int], None] = lambda _: None,
    rulings: tuple[Rulings, Rulings] = (NO_RULINGS, NO_RULINGS),
) -> TrialBalance:
    """Return the trial balance as of `size`, from folds of the journal alone.

    `advanced` is told how many events were folded: each event twice, once by each group. `rulings`
    are those about positions and about postings.
    """
    trading = await fold_prefix(journal, TRADING, size, advanced, rulings=rulings[0])
    booked = await fold_prefix(journal, POSTINGS, size, advanced, rulings=rulings[1])
    rows = (booked.rows(Posting), booked.rows(BookBalance), trading.rows(Position))
    return trial_balance(size, *rows)


async def live_balance(database: Database, journal: Journal) -> TrialBalance:
    """Return the trial balance of the tables in the database, as of their checkpoint.

    Raises NotComparable where positions and postings are at different sizes.
    """
    async with database.snapshot() as connection:
        sizes = [
            await checkpoints.read(connection, journal.journal_id, group)
            for group in (TRADING, POSTINGS)
        ]
        if sizes[0] != sizes[1]:
            raise NotComparable(*sizes)
        rows: list[Any] = []
        for model in (Posting, BookBalance, Position):
            columns = model.__table__.columns
            query = sa.select(*columns).where(columns.journal_id == journal.journal_id)
            rows.append((await connection.execute(query)).all())
    return trial_balance(sizes[0], *rows)
