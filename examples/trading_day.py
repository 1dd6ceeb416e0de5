"""A made-up trading day, minute by minute, the same for the same seed.

Users register, log in (and mistype), use their keys, place orders, are filled in parts, and cancel;
every token is marked each minute. What comes out are events with their streams' expected versions,
as services would append them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from random import Random
from typing import NamedTuple
from uuid import UUID

from ledger.conditions import Condition, ExpectedVersion
from ledger.domain.api_keys import ApiKeyIssued, ApiKeyRefused, ApiKeyUsed
from ledger.domain.marks import PriceMarked
from ledger.domain.orders import (
    Action,
    Liquidity,
    OrderAccepted,
    OrderCancelled,
    OrderCancelRequested,
    OrderFilled,
    OrderPlaced,
    OrderType,
)
from ledger.domain.users import AccountLocked, LoginFailed, LoginSucceeded, UserRegistered
from ledger.event import Amount, Event, Metadata, NewEvent, VenueAmount

DAY = datetime(2026, 3, 2, tzinfo=UTC)
MINUTES = 24 * 60
USERS = 300
ORDERS_A_MINUTE = 8
FEE_RATE = Decimal("0.0005")
LOCKOUT = timedelta(minutes=15)
CENT = Decimal("0.01")
PRICES = {
    "BTC": Decimal("64250.00"),
    "ETH": Decimal("3480.00"),
    "SOL": Decimal("142.50"),
    "XRP": Decimal("0.62"),
    "ADA": Decimal("0.45"),
    "LINK": Decimal("17.80"),
}


class Step(NamedTuple):
    """One append of the day, and when it happens."""

    at: datetime
    event: NewEvent
    conditions: tuple[Condition, ...] = ()


class Trader(NamedTuple):
    """A user with a key."""

    user_id: UUID
    name: str
    key_id: UUID
    ip_address: str


class Order(NamedTuple):
    """An order that still works."""

    placed: OrderPlaced
    price: Decimal
    left: Decimal
    version: int


class TradingDay:
    """The day's state, from which the next minute follows."""

    def __init__(self, seed: int, every: int = 1) -> None:
        """Take the seed, which gives the same day each time, and how many minutes a step takes."""
        self._every = every
        self._random = Random(seed)
        self._now = DAY
        self._prices = dict(PRICES)
        self._traders = [self._trader(number) for number in range(USERS)]
        self._working: list[Order] = []

    def minutes(self) -> Iterator[list[Step]]:
        """Yield the steps of each minute; within a minute none depends on another's outcome."""
        yield [step for trader in self._traders for step in self._registered(trader)]
        for minute in range(self._every, MINUTES, self._every):
            self._now = DAY + timedelta(minutes=minute)
            yield [*self._marks(), *self._logins(), *self._advance_orders(), *self._new_orders()]

    def _trader(self, number: int) -> Trader:
        name = f"trader-{number:03}"
        address = f"10.{number // 250}.{number % 250}.7" if number % 3 else f"2001:db8::{number:x}"
        return Trader(self._id(), name, self._id(), address)

    def _registered(self, trader: Trader) -> Iterator[Step]:
        user = UserRegistered(
            user_id=trader.user_id,
            username=trader.name,
            email=f"{trader.name}@example.com",
            permissions=("read", "trade"),
            roles=("trader",),
        )
        secret = hashlib.sha256(trader.key_id.bytes).hexdigest()
        key = ApiKeyIssued(
            key_id=trader.key_id,
            user_id=trader.user_id,
            name="trading",
            key_hash=secret,
            permissions=("trade",),
            rate_limit=120,
        )
        yield self._step(user, trader, version=0)
        yield self._step(key, trader, version=0)

    def _marks(self) -> Iterator[Step]:
        for token, price in self._prices.items():
            change = Decimal(self._random.gauss(0, 0.0008)).quantize(Decimal("0.000001"))
            self._prices[token] = max(CENT, (price * (1 + change)).quantize(Decimal("0.0001")))
            yield self._step(PriceMarked(token=token, price=VenueAmount(self._prices[token])))

    def _logins(self) -> Iterator[Step]:
        trader = self._random.choice(self._traders)
        chance = self._random.random()
        if chance < 0.8:
            yield self._step(LoginSucceeded(user_id=trader.user_id), trader)
        elif chance < 0.95:
            yield self._step(self._failed(trader), trader)
        elif chance < 0.98:
            yield self._step(LoginFailed(username=f"admin{self._random.randrange(9)}"), trader)
        else:
            yield from self._lockout(trader)

    def _lockout(self, trader: Trader) -> Iterator[Step]:
        for _ in range(5):
            yield self._step(self._failed(trader), trader)
        until = self._now + LOCKOUT
        reason = "5 failed logins"
        locked = AccountLocked(user_id=trader.user_id, locked_until=until, reason=reason)
        yield self._step(locked, trader)

    def _failed(self, trader: Trader) -> LoginFailed:
        return LoginFailed(user_id=trader.user_id, username=trader.name, reason="wrong password")

    def _new_orders(self) -> Iterator[Step]:
        for _ in range(ORDERS_A_MINUTE):
            trader = self._random.choice(self._traders)
            if self._random.random() < 0.02:
                refused = ApiKeyRefused(
                    key_id=trader.key_id, reason="not permitted", action="withdraw"
                )
                yield self._step(refused, trader)
                continue
            yield self._step(ApiKeyUsed(key_id=trader.key_id, action="place order"), trader)
            yield from self._placed(trader)

    def _placed(self, trader: Trader) -> Iterator[Step]:
        token = self._random.choice(list(self._prices))
        price = self._prices[token]
        lots = Decimal(self._random.randrange(1, 200)) / 10
        limit = self._random.random() < 0.6
        placed = OrderPlaced(
            order_id=self._id(),
            user_id=trader.user_id,
            token=token,
            action=self._random.choice([Action.BUY, Action.SELL]),
            order_type=OrderType.LIMIT if limit else OrderType.MARKET,
            quantity=Amount((1000 * lots / price).quantize(Decimal("0.0001"))),
            price=Amount(price) if limit else None,
            slippage_bps=None if limit else 50,
        )
        quantity = Decimal(placed.quantity or 0)
        self._working.append(Order(placed, price, quantity, version=2))
        yield self._step(placed, trader, version=0)
        accepted = OrderAccepted(order_id=placed.order_id, venue_order_id=str(placed.order_id)[:8])
        yield self._step(accepted, version=1)

    def _advance_orders(self) -> Iterator[Step]:
        """Fill some of the working orders in part or whole, cancel a few, leave the others."""
        working, self._working = self._working, []
        for order in working:
            chance = self._random.random()
            if chance < 0.85:
                yield self._fill(order, chance)
            elif chance < 0.92:
                yield from self._cancel(order)
            else:
                self._working.append(order)

    def _fill(self, order: Order, chance: float) -> Step:
        part = (order.left * Decimal("0.4")).quantize(Decimal("0.0001"))
        quantity = part if chance < 0.45 and part else order.left
        if quantity < order.left:
            left = order.left - quantity
            self._working.append(order._replace(left=left, version=order.version + 1))
        fee = (order.price * quantity * FEE_RATE).quantize(Decimal("0.00000001"))
        filled = OrderFilled(
            order_id=order.placed.order_id,
            fill_id=f"F{self._random.getrandbits(48):012x}",
            user_id=order.placed.user_id,
            token=order.placed.token,
            action=order.placed.action,
            price=VenueAmount(order.price),
            quantity=VenueAmount(quantity),
            fee=VenueAmount(fee),
            liquidity=Liquidity.TAKER,
        )
        return self._step(filled, version=order.version)

    def _cancel(self, order: Order) -> Iterator[Step]:
        order_id = order.placed.order_id
        yield self._step(OrderCancelRequested(order_id=order_id), version=order.version)
        cancelled = OrderCancelled(order_id=order_id, reason="by user")
        yield self._step(cancelled, version=order.version + 1)

    def _step(self, event: Event, by: Trader | None = None, version: int | None = None) -> Step:
        metadata = Metadata(actor=by.name, ip_address=by.ip_address) if by else None
        new = NewEvent(event, event_id=self._id(), occurred_at=self._now, metadata=metadata)
        stream = event.stream() or ""
        conditions = () if version is None else (ExpectedVersion(stream, version),)
        return Step(self._now, new, conditions)

    def _id(self) -> UUID:
        return UUID(int=self._random.getrandbits(128), version=4)
