"""Postings: double entry of every fill, fee and liquidation, balanced in each currency.

It keeps its own books, from events alone, so that an error in the fold of positions cannot hide:
the two must agree at every size.

A debit is positive: what a book gets or bears. `holding` is what it holds of the token, negative if
it is short, and `venue` the other side. In the quote currency `cash` is what came in or went out,
`cost` what the holding cost (negative for a short one, which brought it in), `fee` what was
charged, and `realized_pnl` the gain as a credit: negative is a gain, positive a loss. For example,
each line on what the line above left:

    event                         holding  venue     cash     cost  fee  realized_pnl
    buy 10 at 100, fee 1              +10    -10    -1001    +1000   +1
    sell 4 at 130, fee 1               -4     +4     +519     -400   +1          -120
    flip: sell 10 at 130              -10    +10    +1300    -1120               -180
    buy 4 at 130, rebate 1             +4     -4     -519     +520   -1
    short: sell 2 at 100               -2     +2     +200     -200
    its bust                           +2     -2     -200     +200
    buy 10 at 100, fee 0.1 token     +9.9   -9.9    -1000     +990  +10
    liquidated at 90, fee 2          -9.9   +9.9     +889     -990   +2           +99

A fee of 2 in a third currency is two more entries in that currency: `fee` +2 and `cash` -2.

Not booked is what moves no position: a fill without a user or a quantity, or of another user or
token than an explicit position's; one of which the token's fee leaves nothing to hold. Of a
liquidation that is not of the cycle which its book holds, only the fee is booked. A bust takes its
fill back at the fill's own price (see positions).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from decimal import Context, Decimal, localcontext
from uuid import UUID, uuid5

import msgspec
import sqlalchemy as sa
from sqlalchemy import Index
from sqlalchemy.orm import Mapped, mapped_column

from ledger.domain.orders import (
    Action,
    Execution,
    FillBusted,
    OrderFilled,
    kept_token,
    position_tag,
)
from ledger.domain.positions import PositionLiquidated, cycle_id
from ledger.event import Event, RecordedEvent
from projections.model import ReadModel, exact, one_of
from projections.numbers import ZERO, short
from projections.projection import Alias, Projection, State

HOLDING, VENUE, CASH = "holding", "venue", "cash"
COST, FEE, REALIZED_PNL = "cost", "fee", "realized_pnl"
ACCOUNTS = (HOLDING, VENUE, CASH, COST, FEE, REALIZED_PNL)

QUOTE = "quote"
"""The label of the quote currency, which events do not name."""

EXACT = Context(prec=1000)
"""So many digits that a sum of entries is never rounded: zero means zero."""

Entry = tuple[str, str, Decimal]
"""Account, currency and amount."""


class Posting(ReadModel):
    """One entry: `amount` of `currency` (a token, or `quote`) on an account of a book, signed.

    The entries of one event sum to zero in each currency.
    """

    __tablename__ = "postings"

    posting_id: Mapped[UUID] = mapped_column(primary_key=True)
    event_id: Mapped[UUID]
    entry: Mapped[int]
    timestamp: Mapped[datetime]
    user_id: Mapped[UUID | None]
    token: Mapped[str | None]
    book: Mapped[str]
    account: Mapped[str] = mapped_column(sa.String(20))
    currency: Mapped[str]
    amount: Mapped[Decimal] = exact()

    __table_args__ = (
        one_of("account", ACCOUNTS),
        Index(None, "journal_id", "event_id"),
        Index(None, "journal_id", "user_id", "timestamp"),
        Index(None, "journal_id", "book", "account"),
        Index(None, "journal_id", "timestamp"),
    )


class BookBalance(ReadModel):
    """What the accounts of one book hold: the state from which the next entries follow.

    A positive `realized_pnl` is a gain. User, token and `position_id` are those of the cycle that
    is open, or was last.
    """

    __tablename__ = "book_balances"

    book: Mapped[str] = mapped_column(primary_key=True)
    position_id: Mapped[UUID | None]
    user_id: Mapped[UUID | None]
    token: Mapped[str | None]
    holding: Mapped[Decimal] = exact()
    cash: Mapped[Decimal] = exact()
    cost: Mapped[Decimal] = exact()
    fees: Mapped[Decimal] = exact()
    realized_pnl: Mapped[Decimal] = exact()

    __table_args__ = (Index(None, "journal_id", "position_id"),)


def label(currency: str | None) -> str:
    """Return the name of a token or third currency in postings.

    One that no column holds has a common name; one that is called like the quote currency another.
    """
    name = short(currency)
    if name is None:
        return "(too long)"
    return f"{name} (token)" if name == QUOTE else name


def _books(event: Event) -> Iterable[str]:
    """Name the books that the fold of `event` may look up."""
    return event.tags() if isinstance(event, Execution | PositionLiquidated) else ()


book_balances = Projection(BookBalance, looks_up=["postings"], aliases=[Alias("book", _books)])
postings = Projection(Posting, looks_up=["book_balances"], append_only=True)
"""Its rows are made together with the balances, from which they follow."""


class Trade(msgspec.Struct, frozen=True):
    """What a book gets of the token, and what it pays in the quote currency, fee included.

    All amounts are signed. `fee` is the part of it in the quote currency, `other_fee` is in
    `other_currency`. A trade that takes another back is `undoing`.
    """

    moved: Decimal
    paid: Decimal
    fee: Decimal
    other_fee: Decimal = ZERO
    other_currency: str | None = None
    undoing: bool = False


def _trade(event: Execution) -> Trade:
    """Return a fill in these terms, or the opposite for its bust."""
    undoing = isinstance(event, FillBusted)
    sense = -1 if undoing else 1
    side = sense if event.action == Action.BUY else -sense
    moved, paid = side * event.quantity, side * event.notional()
    fee = ZERO if event.fee is None else sense * event.fee
    if event.fee_currency is None:
        return Trade(moved, paid + fee, fee, undoing=undoing)
    if event.fee_currency == event.token:
        return Trade(moved - fee, paid, fee * _price(event), undoing=undoing)
    return Trade(moved, paid, ZERO, fee, event.fee_currency, undoing)


def _price(event: Execution) -> Decimal:
    """Return the price of a fill as exactly as it is known."""
    return event.price if event.quote_amount is None else event.quote_amount / event.quantity


@book_balances.on(OrderFilled, FillBusted)
def _executed(state: State, recorded: RecordedEvent, event: Execution) -> None:
    """Book a fill, or take it back out."""
    if event.user_id is None or event.quantity <= 0:
        return
    book = position_tag(event.user_id, event.token, event.position_id)
    rows, trade = state.rows(BookBalance), _trade(event)
    row = rows.get(book)
    if row is None or row.holding == 0:
        if trade.moved == 0:
            return
    elif (row.user_id, row.token) != (event.user_id, kept_token(event.token)):
        return
    row = rows.edit(book, recorded) or rows.add(book, recorded)
    after = row.holding + trade.moved
    if after != 0 and row.holding * after <= 0:
        _begin_cycle(state, recorded, event, row)
    _post(state, recorded, row, trade, event.user_id)


def _begin_cycle(state: State, recorded: RecordedEvent, event: Execution, row: BookBalance) -> None:
    is_first = row.position_id is None
    opened = cycle_id(state.journal_name, recorded.event_id, event, is_first=is_first)
    row.position_id = state.as_id(opened)
    row.user_id, row.token = event.user_id, kept_token(event.token)


@book_balances.on(PositionLiquidated)
def _closed_by_force(state: State, recorded: RecordedEvent, event: PositionLiquidated) -> None:
    """Sell or buy back the whole holding, if it is of that cycle, and charge the fee."""
    [book] = event.tags()
    rows, fee = state.rows(BookBalance), ZERO if event.fee is None else +event.fee
    row = rows.get(book)
    is_own = row is not None and _is_of_cycle(row, event)
    holding = row.holding if row is not None and is_own else ZERO
    if holding != 0 or fee != 0:
        row = rows.edit(book, recorded) or rows.add(book, recorded)
        trade = Trade(-holding, -holding * event.price + fee, fee)
        _post(state, recorded, row, trade, row.user_id if is_own else None)


def _is_of_cycle(row: BookBalance, event: PositionLiquidated) -> bool:
    """Whether a liquidation is of the cycle that is open or was last, or of an explicit book."""
    return row.position_id == event.position_id or row.book == f"position:{event.position_id}"


def _post(
    state: State, recorded: RecordedEvent, row: BookBalance, trade: Trade, user_id: UUID | None
) -> None:
    """Make the entries of a user's trade and move the balances of its book by them."""
    entries = list(_entries(row, trade))
    row.holding += trade.moved
    row.cash -= trade.paid
    row.fees += trade.fee
    row.cost += sum(amount for account, _, amount in entries if account == COST)
    row.realized_pnl -= sum(amount for account, _, amount in entries if account == REALIZED_PNL)
    for number, (account, currency, amount) in enumerate(entries):
        state.rows(Posting).add(
            state.as_id(_posting_id(recorded, number)),
            recorded,
            event_id=recorded.event_id,
            entry=number,
            timestamp=recorded.occurred_at,
            user_id=user_id,
            token=row.token,
            book=row.book,
            account=account,
            currency=currency,
            amount=amount,
        )


def _posting_id(recorded: RecordedEvent, number: int) -> UUID:
    """Return the id that follows from the event's, which is text if it came through a lens."""
    return uuid5(UUID(str(recorded.event_id)), f"posting {number}")


def _entries(row: BookBalance, trade: Trade) -> Iterator[Entry]:
    """Yield the entries, none of them zero.

    The last one in the quote currency is what the others leave, which no rounding can disturb: the
    cost of what comes in, the gain or loss on what goes out.
    """
    token, other = label(row.token), label(trade.other_currency)
    quote = [(CASH, -trade.paid), (FEE, trade.fee)]
    leaving = _cost_of_leaving(row, trade)
    if leaving is not None:
        quote.append((COST, leaving))
    with localcontext(EXACT):
        rest = -sum((amount for _, amount in quote), ZERO)
    quote.append((COST if leaving is None else REALIZED_PNL, rest))
    entries = [
        (HOLDING, token, trade.moved),
        (VENUE, token, -trade.moved),
        *((account, QUOTE, amount) for account, amount in quote),
        (FEE, other, trade.other_fee),
        (CASH, other, -trade.other_fee),
    ]
    return (entry for entry in entries if entry[2] != 0)


def _cost_of_leaving(row: BookBalance, trade: Trade) -> Decimal | None:
    """Return how the cost changes where a part or all of the holding leaves at average cost.

    None where the cost changes by what was paid: the holding grows, or a trade is taken back.
    """
    if row.holding * trade.moved >= 0:
        return None
    if abs(trade.moved) < abs(row.holding):
        return None if trade.undoing else row.cost * trade.moved / row.holding
    after = row.holding + trade.moved
    return (trade.paid - trade.fee) * after / trade.moved - row.cost
