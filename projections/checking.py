"""Checking an installation: every part of the domain once, against the configured database.

It works in a journal of its own, `check`, with a new user each time. Events stay, as all events do.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from decimal import Decimal
from typing import Any, TypeVar
from uuid import UUID

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import selectinload
from uuid_utils.compat import uuid7

from ledger.deciding import Origin
from ledger.domain.orders import Action, OrderType
from ledger.errors import CommandRefused, JournalExists, LedgerError
from ledger.event import Amount, Metadata, VenueAmount
from ledger.journal import open_journal
from ledger.services import Ledger
from ledger.services.api_keys import KeyIssued
from ledger.settings import Settings
from ledger.stores.opening import open_store
from projections.api_keys import ApiKey
from projections.database import Database
from projections.groups import GROUPS, TABLES
from projections.model import ReadModel
from projections.orders import Order
from projections.positions import Position
from projections.projector import Projector
from projections.security_audit_logs import SecurityAuditLog
from projections.users import User

JOURNAL = "check"
TOKEN = "CHECK"  # noqa: S105 - what is traded
PASSWORD = "correct horse battery staple"  # noqa: S105 - of a user made for the check
ADDRESS = "2001:db8::7"

Row = TypeVar("Row", bound=ReadModel)


class Checked(msgspec.Struct, frozen=True):
    """How one step went: what was seen, or what was wrong."""

    name: str
    ok: bool
    seen: str


class CheckFailed(LedgerError):
    """A step saw something else than it should have."""

    exit_code = 1


class Checker:
    """What the steps share: a user, their key and their orders."""

    def __init__(self, ledger: Ledger, database: Database) -> None:
        self.ledger = ledger
        self.database = database
        self.user_id = uuid7()
        self.name = f"check-{self.user_id}"
        self.key = ""
        self.key_id = self.user_id
        self.origin = Origin(
            metadata=Metadata(ip_address=ADDRESS, request_id=self.name, actor="projections check")
        )

    @contextlib.asynccontextmanager
    async def tables(self) -> AsyncIterator[AsyncSession]:
        """Give a session on tables that hold everything stored so far."""
        for group in GROUPS.values():
            await Projector(self.database, self.ledger.journal, group).catch_up()
        async with self.database.session() as session:
            yield session

    async def row(self, model: type[Row], key: UUID) -> Row:
        """Return a row of the check's journal."""
        async with self.tables() as session:
            found = await session.get(model, (self.ledger.journal.journal_id, key))
            return _present(found, f"{model.__name__} {key}")

    async def user(self) -> User:
        """Return the row of the check's user."""
        return await self.row(User, self.user_id)

    async def position(self) -> Position:
        """Return the row of the user's open position."""
        async with self.tables() as session:
            query = sa.select(Position).where(
                Position.user_id == self.user_id, Position.status == "open"
            )
            return _present(await session.scalar(query), "the open position")

    async def login(self, password: str) -> bool:
        """Try to log in."""
        login = await self.ledger.users.login(
            username=self.name, password=password, origin=self.origin
        )
        return login.succeeded

    async def trade(self, action: Action, quantity: str, price: str, fee: str) -> UUID:
        """Place a limit order and have it filled whole; return its id."""
        placed = await self.ledger.orders.place(
            user_id=self.user_id,
            token=TOKEN,
            action=action,
            order_type=OrderType.LIMIT,
            quantity=quantity,
            price=price,
            origin=self.origin,
        )
        await self.ledger.orders.accepted(order_id=placed.order_id)
        await self.ledger.orders.fill(
            order_id=placed.order_id, fill_id="1", quantity=quantity, price=price, fee=fee
        )
        return placed.order_id


def expect(what: str, found: object, wanted: object) -> None:
    """Raise CheckFailed where something is not as it should be."""
    if found != wanted:
        raise CheckFailed(f"{what} is {found!r}, not {wanted!r}")


def _shown(issued: KeyIssued) -> str:
    if issued.key is None:
        raise CheckFailed("a new key was not shown")
    return issued.key.reveal()


def _present(found: Row | None, what: str) -> Row:
    if found is None:
        raise CheckFailed(f"{what} is not in its table")
    return found


async def _check_tables(check: Checker) -> str:
    async with check.tables() as session:
        for name in TABLES:
            await session.execute(sa.select(sa.func.count()).select_from(sa.table(name)))
    return f"{len(TABLES)} tables answer"


async def _check_user(check: Checker) -> str:
    await check.ledger.users.register(
        username=check.name,
        password=PASSWORD,
        email=f"{check.name}@example.org",
        permissions=["trade"],
        user_id=check.user_id,
        origin=check.origin,
    )
    expect("a login with the right password", await check.login(PASSWORD), True)
    user = await check.user()
    expect("the username", user.username, check.name)
    expect("is_active", user.is_active, True)
    expect("whether last_login is set", user.last_login is not None, True)
    return f"{check.name} registered and logged in"


async def _check_permissions(check: Checker) -> str:
    user = await check.user()
    expect("has_permission('trade')", user.has_permission("trade"), True)
    expect("has_permission('withdraw')", user.has_permission("withdraw"), False)
    expect("has_admin_role", user.has_admin_role, False)
    await check.ledger.users.change_roles(user_id=check.user_id, roles=["admin"])
    expect("has_admin_role", (await check.user()).has_admin_role, True)
    return "granted, not granted, administrator"


async def _check_lockout(check: Checker) -> str:
    failures_max = check.database.settings.login_failures_max
    for _ in range(failures_max):
        expect("a login with a wrong password", await check.login("wrong"), False)
    user = await check.user()
    expect("failed_login_attempts", user.failed_login_attempts, failures_max)
    expect("is_locked", user.is_locked, True)
    expect("a login while locked", await check.login(PASSWORD), False)
    await check.ledger.users.unlock(user_id=check.user_id, origin=check.origin)
    expect("a login after the unlock", await check.login(PASSWORD), True)
    expect("failed_login_attempts", (await check.user()).failed_login_attempts, 0)
    return f"locked after {failures_max} failures, unlocked by hand"


async def _check_api_key(check: Checker) -> str:
    keys = check.ledger.api_keys
    issued = await keys.issue(
        user_id=check.user_id, name="check", permissions=["read"], origin=check.origin
    )
    check.key, check.key_id = _shown(issued), issued.key_id
    for presented, permission, accepted in (
        (check.key, "read", True),
        (check.key, "trade", False),
        (check.key[:-1], "read", False),
    ):
        use = await keys.use(
            presented=presented, action="check", permission=permission, origin=check.origin
        )
        expect(f"a use for {permission!r}", use.accepted, accepted)
    row = await check.row(ApiKey, check.key_id)
    expect("is_valid", row.is_valid, True)
    expect("requests_count", row.requests_count, 1)
    expect("whether the key is stored", check.key in str(row.key_hash), False)
    return "accepted, not permitted, malformed"


async def _check_rate_limit(check: Checker) -> str:
    keys = check.ledger.api_keys
    issued = await keys.issue(user_id=check.user_id, name="limited", rate_limit=3)
    uses = [await keys.use(presented=_shown(issued), action="check") for _ in range(4)]
    expect("accepted uses", [use.accepted for use in uses], [True, True, True, False])
    expect("the reason of the last", uses[-1].reason, "rate_limited")
    return "3 of 4 uses in a minute"


async def _check_position(check: Checker) -> str:
    await check.trade(Action.BUY, "2", "100", "0.2")
    await check.trade(Action.BUY, "1", "106", "0.1")
    position = await check.position()
    expect("size", position.size, Decimal(3))
    expect("entry_price", position.entry_price, Decimal(102))
    expect("entry_value", position.entry_value, Decimal(306))
    return "3 at 102 in average"


async def _check_pnl(check: Checker) -> str:
    await check.trade(Action.SELL, "1", "112", "0.1")
    await check.ledger.markets.mark(token=TOKEN, price=VenueAmount("105"))
    position = await check.position()
    expect("realized_pnl", position.realized_pnl, Decimal(10))
    expect("net_pnl", position.net_pnl, Decimal("9.6"))
    expect("pnl", position.pnl, Decimal(6))
    expect("position_value", position.position_value, Decimal(210))
    expect("pnl_pct", round(position.pnl_pct or 0, 4), Decimal("2.9412"))
    return "10 realised, 9.6 net, 6 at the mark"


async def _check_levels(check: Checker) -> str:
    await check.ledger.positions.protect(
        user_id=check.user_id,
        token=TOKEN,
        stop_loss=Amount(95),
        take_profit=Amount(120),
        origin=check.origin,
    )
    seen = []
    for price in ("105", "95", "120"):
        await check.ledger.markets.mark(token=TOKEN, price=VenueAmount(price))
        position = await check.position()
        seen.append((position.should_stop_loss, position.should_take_profit))
    expect("stop and target", seen, [(False, False), (True, False), (False, True)])
    return "95 stops, 120 takes the profit, 105 does neither"


async def _check_order(check: Checker) -> str:
    order_id = await check.trade(Action.BUY, "0.5", "110", "0")
    order = await check.row(Order, order_id)
    expect("status", (order.status, order.ord_status), ("executed", "Filled"))
    expect("average_fill_price", order.average_fill_price, Decimal(110))
    expect("total_value", order.total_value, Decimal(55))
    expect("is_finished", order.is_finished, True)
    return "0.5 at 110, filled"


async def _check_transitions(check: Checker) -> str:
    orders = check.ledger.orders
    placed = await orders.place(
        user_id=check.user_id,
        token=TOKEN,
        action=Action.BUY,
        order_type=OrderType.LIMIT,
        quantity="2",
        price="90",
        origin=check.origin,
    )
    order_id = placed.order_id
    seen = [(await check.row(Order, order_id)).status]
    await orders.accepted(order_id=order_id)
    await orders.fill(order_id=order_id, fill_id="1", quantity="0.5", price="90")
    seen.append((await check.row(Order, order_id)).status)
    await orders.request_cancel(order_id=order_id, origin=check.origin)
    await orders.cancelled(order_id=order_id)
    seen.append((await check.row(Order, order_id)).status)
    expect("statuses", seen, ["pending", "partially_filled", "cancelled"])
    size = await check.ledger.journal.size()
    with contextlib.suppress(CommandRefused):
        await orders.request_cancel(order_id=order_id)
        raise CheckFailed("a cancelled order could be cancelled again")
    expect("events after a refused command", await check.ledger.journal.size() - size, 0)
    return " -> ".join(seen)


async def _check_audit_log(check: Checker) -> str:
    async with check.tables() as session:
        query = sa.select(SecurityAuditLog).where(SecurityAuditLog.request_id == check.name)
        rows = list(await session.scalars(query))
    failed = [row for row in rows if row.event_type == "LoginFailed"]
    expect("failed logins", len(failed), check.database.settings.login_failures_max + 1)
    expect("their success", {row.success for row in failed}, {False})
    expect("addresses", {row.ip_address for row in rows}, {ADDRESS})
    told = " ".join(str(row.details) for row in rows)
    expect("whether a secret is told", PASSWORD in told or check.key in told, False)
    return f"{len(rows)} entries, none with a secret"


async def _check_relationships(check: Checker) -> str:
    loaded = (User.api_keys, User.positions, User.orders, User.audit_logs)
    async with check.tables() as session:
        query = sa.select(User).where(User.user_id == check.user_id)
        user = _present(
            await session.scalar(query.options(*(selectinload(each) for each in loaded))), "user"
        )
        position = _present(
            await session.scalar(
                sa.select(Position)
                .where(Position.user_id == check.user_id)
                .options(selectinload(Position.orders))
            ),
            "position",
        )
    counts: dict[str, Any] = {
        "keys": len(user.api_keys),
        "positions": len(user.positions),
        "orders": len(user.orders),
        "orders of the position": len(position.orders),
    }
    wanted = {"keys": 2, "positions": 1, "orders": 5, "orders of the position": 5}
    expect("rows", counts, wanted)
    expect("whether there are audit logs", bool(user.audit_logs), True)
    return ", ".join(f"{count} {name}" for name, count in counts.items())


async def _check_joins(check: Checker) -> str:
    query = (
        sa.select(User.username, sa.func.count(Order.order_id), sa.func.max(Position.entry_price))
        .join(Order, sa.and_(Order.journal_id == User.journal_id, Order.user_id == User.user_id))
        .join(
            Position,
            sa.and_(
                Position.journal_id == Order.journal_id, Position.position_id == Order.position_id
            ),
        )
        .where(User.user_id == check.user_id, Order.status == "executed")
        .group_by(User.username)
    )
    async with check.tables() as session:
        found = (await session.execute(query)).all()
    expect(
        "users with executed orders", [(name, count) for name, count, _ in found], [(check.name, 4)]
    )
    return "users, orders and positions"


STEPS: tuple[tuple[str, Callable[[Checker], Awaitable[str]]], ...] = (
    ("tables", _check_tables),
    ("user", _check_user),
    ("permissions", _check_permissions),
    ("failed logins and lockout", _check_lockout),
    ("API key", _check_api_key),
    ("rate limit", _check_rate_limit),
    ("position", _check_position),
    ("P&L", _check_pnl),
    ("stop loss and take profit", _check_levels),
    ("order", _check_order),
    ("transitions", _check_transitions),
    ("audit log", _check_audit_log),
    ("relationships", _check_relationships),
    ("queries with joins", _check_joins),
)


async def check(settings: Settings) -> AsyncIterator[Checked]:
    """Yield how each step went; a step that fails does not keep the next from being tried.

    Raises StoreUnavailable where the database is away.
    """
    await _make_journal(settings)
    async with open_journal(settings, JOURNAL) as journal, Database(settings) as database:
        ledger = Ledger(journal, settings)
        checker = Checker(ledger, database)
        try:
            for name, step in STEPS:
                try:
                    yield Checked(name, ok=True, seen=await step(checker))
                except LedgerError as error:
                    yield Checked(name, ok=False, seen=str(error))
        finally:
            await ledger.close()


async def _make_journal(settings: Settings) -> None:
    store = open_store(settings)
    try:
        with contextlib.suppress(JournalExists):
            await store.create_journal(JOURNAL)
    finally:
        await store.close()
