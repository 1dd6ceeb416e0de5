"""What rows hold: the columns of the models, and never a secret where it does not belong."""

from __future__ import annotations

import json
from decimal import Decimal
from random import Random

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import selectinload

from ledger.domain.marks import PriceMarked
from ledger.domain.orders import Action, FillBusted, OrderFilled, OrderPlaced, OrderType
from ledger.domain.users import PasswordChanged, UserRegistered
from ledger.event import Event, VenueAmount
from ledger.journal import Journal
from projections.database import Database
from projections.groups import GROUPS, TABLES
from projections.model import values_of
from projections.orders import Order
from projections.positions import Position
from projections.projector import Projector
from projections.security_audit_logs import SecurityAuditLog
from projections.users import User
from tests.projections.random_events import random_events
from tests.projections.support import all_rows, an_id, append, folded, one_row

USER = an_id("user")
REGISTERED = UserRegistered(user_id=USER, username="user", password_hash="secret")


def fill(number: int, action: Action, quantity: str, price: str, order: str = "order") -> Event:
    """Return a fill of the user."""
    return OrderFilled(
        order_id=an_id(order),
        user_id=USER,
        fill_id=str(number),
        token="SOL",
        action=action,
        quantity=VenueAmount(quantity),
        price=VenueAmount(price),
    )


@pytest.mark.parametrize("name", sorted(TABLES))
def test_rows_have_exactly_the_columns_of_their_table(name: str) -> None:
    """A row that comes out of a fold has every column of its model and nothing else."""
    state = folded(random_events(Random(1), 200), TABLES[name])
    rows = list(state.tables[name])
    assert rows
    columns = list(state.tables[name].projection.table.columns.keys())
    assert all(list(values_of(row)) == columns for row in rows)


def test_there_are_the_indexes_that_readers_need() -> None:
    """The five tables have 23 indexes or more, all led by the journal's id."""
    tables = [each.table for each in GROUPS["trading"].projections]
    indexes = [index for table in tables for index in table.indexes]
    assert len(indexes) >= 23
    assert {next(iter(index.columns)).name for index in indexes} == {"journal_id"}


def test_audit_rows_hold_no_secret() -> None:
    """No hash of a password or key gets into the audit log, whatever the event."""
    events = [*random_events(Random(2), 500), REGISTERED]
    events.append(PasswordChanged(user_id=USER, password_hash="secret"))
    rows = all_rows(events, SecurityAuditLog)
    assert {"UserRegistered", "PasswordChanged", "ApiKeyIssued"} <= {row.event_type for row in rows}
    assert not [row for row in rows if "secret" in json.dumps(row.details)]


def test_an_amount_that_does_not_fit_leaves_its_column_empty() -> None:
    """The exact amount is kept, the reader's column is NULL and flagged, until it fits again."""
    huge = "9" * 13
    events = [REGISTERED, fill(1, Action.BUY, huge, "1")]
    row = one_row(events, Position)
    assert (row.size, row.exact_size) == (None, Decimal(huge))
    assert row.flags == {"amount_too_large:size": 1}
    row = one_row([*events, fill(2, Action.SELL, "9" * 12 + "0", "1")], Position)
    assert (row.size, row.flags) == (Decimal(9), {})


def test_a_late_fill_after_an_overfill_is_counted() -> None:
    """Each fact that does not fit is counted under its own name, and booked all the same."""
    placed = OrderPlaced(
        order_id=an_id("order"),
        user_id=USER,
        token="SOL",
        action=Action.BUY,
        order_type=OrderType.MARKET,
        quantity=VenueAmount("2"),  # type: ignore[arg-type] # becomes an Amount
    )
    fills = [fill(number, Action.BUY, "2", "10") for number in (1, 2, 3)]
    row = one_row([REGISTERED, placed, *fills], Order)
    assert (row.status, row.filled_quantity, row.flags) == ("executed", Decimal(6), {"overfill": 2})
    unknown = one_row([REGISTERED, *fills], Order)
    assert unknown.flags == {"unknown_order:OrderFilled": 3}
    assert (unknown.order_type, unknown.user_id) == (None, USER)


def test_a_busted_fill_leaves_the_same_total_equity() -> None:
    """After the bust, realised P&L and open position are worth what they were without the fill."""
    fills = [fill(1, Action.BUY, "10", "100"), fill(2, Action.SELL, "4", "130")]
    extra = fill(3, Action.BUY, "5", "90")
    busted = FillBusted(**{name: getattr(extra, name) for name in extra.__struct_fields__})
    assert equity([REGISTERED, *fills, extra, busted]) == equity([REGISTERED, *fills])


def equity(events: list[Event], mark: Decimal = Decimal(111)) -> Decimal:
    """Return what all cycles have gained and would gain at the mark price."""
    rows = all_rows(events, Position)
    open_gains = [r.exact_size * mark - r.cost_basis.copy_sign(r.exact_size) for r in rows]
    return sum((r.exact_realized_pnl for r in rows), Decimal(0)) + sum(open_gains, Decimal(0))


async def test_readers_follow_relationships_and_marks(journal: Journal, database: Database) -> None:
    """A session reads a user with positions and orders; a position shows the last mark."""
    marked = PriceMarked(token="SOL", price=VenueAmount("12.5"))
    await append(journal, [REGISTERED, fill(1, Action.BUY, "2", "10"), marked])
    for group in GROUPS.values():
        await Projector(database, journal, group).catch_up()
    positions = selectinload(User.positions).selectinload(Position.orders)
    async with database.session() as session:
        user = (await session.scalars(sa.select(User).options(positions))).one()
        [position] = user.positions
        assert position.current_price == Decimal("12.5")
        assert [order.order_id for order in position.orders] == [an_id("order")]
        assert not user.is_locked
