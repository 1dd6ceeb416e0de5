"""Random histories: sensible ones, and facts that fit nothing."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from random import Random
from uuid import UUID

from ledger.domain.api_keys import (
    ApiKeyIssued,
    ApiKeyRefused,
    ApiKeyRevoked,
    ApiKeyRotated,
    ApiKeyUsed,
)
from ledger.domain.marks import PriceMarked
from ledger.domain.orders import (
    Action,
    Execution,
    FillBusted,
    FillConflicted,
    OrderAccepted,
    OrderCancelled,
    OrderCancelPending,
    OrderCancelRejected,
    OrderCancelRequested,
    OrderDoneForDay,
    OrderExpired,
    OrderFailed,
    OrderFilled,
    OrderPlaced,
    OrderRejected,
    OrderReplaced,
    OrderReplacePending,
    OrderReplaceRejected,
    OrderReplaceRequested,
    OrderRestated,
    OrderStopped,
    OrderTriggered,
    OrderType,
    TimeInForce,
)
from ledger.domain.positions import PositionLiquidated, ProtectionSet, closing_order_id
from ledger.domain.requests import RequestHandled
from ledger.domain.sessions import SessionEnded, SessionRefreshed, SessionStarted
from ledger.domain.users import (
    AccountLocked,
    AccountUnlocked,
    EmailChanged,
    LoginAttempted,
    LoginFailed,
    LoginSucceeded,
    PasswordChanged,
    PermissionsChanged,
    RolesChanged,
    SessionsEnded,
    UserDeactivated,
    UserErased,
    UserReactivated,
    UserRegistered,
)
from ledger.event import Amount, Event, VenueAmount
from tests.projections.support import START, an_id

TOKENS = ("SOL", "ETH")
HUGE = "9" * 39 + "." + "1" * 29


class Dice:
    """Picks ids, amounts and fields at random out of few, so that events meet."""

    def __init__(self, random: Random, odd_chance: float) -> None:
        self.random, self.others = random, Random(0)
        self.odd_chance = odd_chance
        self.closing = an_id("order 0")
        self.position_id = an_id("position 0")
        self.size = 0
        self.armed: dict[UUID, int] = {}

    def next(self) -> Event:
        """Make any event, and note by which of them levels may be armed."""
        event = self.event()
        self.size += 1
        if isinstance(event, ProtectionSet):
            self.armed[event.position_id] = self.size
        if getattr(event, "order_id", None) == self.closing and not isinstance(event, OrderPlaced):
            self.armed[self.position_id] = self.size
        return event

    def event(self) -> Event:
        """Make any event."""
        makers: list[Callable[[], Event]] = [
            *[self.placed, self.filled] * 6,
            self.busted,
            *[self.position_fact, self.closing_order] * 2,
            *[self.order_fact] * 3,
            self.user_event,
            self.user_event,
            self.key_event,
            self.marked,
        ]
        return self.random.choice(makers)()

    def one_of(self, name: str, count: int) -> str:
        """Name one of a few things."""
        return f"{name} {self.random.randrange(count)}"

    def user(self) -> str:
        """Name a user; some are never registered."""
        return self.one_of("user", 4)

    def order(self) -> UUID:
        """Pick an order, the latest that closes a position more often; some are never placed."""
        return self.closing if self.random.random() < 0.2 else an_id(self.one_of("order", 10))

    def venue_amount(self) -> VenueAmount:
        """Make a venue's amount, mostly small, with few or many places, seldom absurd."""
        whole, places = self.random.randrange(1, 9), self.random.choice((0, 0, 1, 3, 18))
        text = f"{whole}.{self.random.randrange(10**places):0{places}}" if places else f"{whole}"
        odd = ("0", "-1", HUGE, "0." + "0" * 29 + "1", "1" + "0" * 12)
        return VenueAmount(
            self.random.choice(odd) if self.random.random() < self.odd_chance else text
        )

    def amount(self) -> Amount:
        """Make an amount of a command."""
        return Amount(f"{self.random.randrange(1, 30)}.{self.random.randrange(100):02}")

    def maybe(self, value: object, chance: float = 0.5) -> object:
        """Return the value or None."""
        return value if self.random.random() < chance else None

    def placed(self) -> Event:
        """Make an order, sometimes under an id that exists."""
        by_amount = self.random.random() < 0.2
        return OrderPlaced(
            order_id=an_id(self.one_of("order", 8)),
            user_id=an_id(self.user()),
            token=self.random.choice(TOKENS),
            action=self.random.choice(list(Action)),
            order_type=self.random.choice(list(OrderType)),
            quantity=None if by_amount else self.amount(),
            amount=self.amount() if by_amount else None,
            price=self.maybe(self.amount()),  # type: ignore[arg-type]
            time_in_force=self.random.choice(list(TimeInForce)),
            slippage_bps=self.maybe(self.random.choice((50, 10**30))),  # type: ignore[arg-type]
            position_id=self.maybe(an_id(self.one_of("position", 2)), 0.2),  # type: ignore[arg-type]
            strategy=self.maybe("grid"),  # type: ignore[arg-type]
            extra_data=self.maybe({"note": "x"}),  # type: ignore[arg-type]
        )

    def execution(self, kind: type[Execution]) -> Event:
        """Make a fill, the bust of one, or a conflict."""
        token = self.random.choice(TOKENS)
        return kind(
            order_id=self.order(),
            user_id=self.maybe(an_id(self.user()), 0.9),  # type: ignore[arg-type]
            fill_id=self.one_of("fill", 1000),
            token=token,
            action=self.random.choice(list(Action)),
            price=self.venue_amount(),
            quantity=self.venue_amount(),
            fee=self.maybe(self.venue_amount()),  # type: ignore[arg-type]
            fee_currency=self.random.choice((None, None, None, token, "BNB")),
            position_id=self.maybe(an_id(self.one_of("position", 2)), 0.2),  # type: ignore[arg-type]
            transaction_signature=self.maybe(self.one_of("tx", 99)),  # type: ignore[arg-type]
            quote_amount=self.maybe(self.venue_amount(), 0.1),  # type: ignore[arg-type]
        )

    def filled(self) -> Event:
        """Make a fill."""
        return self.execution(OrderFilled)

    def busted(self) -> Event:
        """Make the bust of a fill that may never have been."""
        return self.execution(FillBusted)

    def order_fact(self) -> Event:
        """Make another fact or request about an order that may not exist."""
        order_id = self.order()
        quantity, price = self.venue_amount(), self.venue_amount()
        return self.random.choice(
            [
                OrderAccepted(order_id=order_id),
                OrderTriggered(order_id=order_id),
                OrderDoneForDay(order_id=order_id),
                OrderReplaceRequested(order_id=order_id, quantity=self.amount()),
                OrderReplaced(order_id=order_id, quantity=quantity, price=price),
                OrderRestated(order_id=order_id, quantity=quantity),
                OrderRestated(order_id=order_id, quantity_change=VenueAmount("-1.5")),
                OrderCancelRequested(order_id=order_id),
                OrderCancelled(order_id=order_id, reason="user"),
                OrderRejected(order_id=order_id, reason="no funds"),
                OrderFailed(order_id=order_id, reason="broken"),
                OrderExpired(order_id=order_id),
                OrderStopped(order_id=order_id),
                OrderReplacePending(order_id=order_id),
                OrderReplaceRejected(order_id=order_id),
                OrderCancelPending(order_id=order_id),
                OrderCancelRejected(order_id=order_id),
                self.execution(FillConflicted),
            ]
        )

    def position_fact(self) -> Event:
        """Make an event about an explicit position that may not exist."""
        position_id = an_id(self.one_of("position", 2))
        return self.random.choice(
            [
                ProtectionSet(position_id=position_id, stop_loss=self.amount()),
                ProtectionSet(position_id=position_id, take_profit=self.amount()),
                ProtectionSet(position_id=position_id),
                self.liquidated(position_id),
            ]
        )

    def liquidated(self, position_id: UUID) -> Event:
        """Make a liquidation, sometimes under a book that is not the position's."""
        book = f"book:{an_id(self.user())}:{self.random.choice(TOKENS)}"
        return PositionLiquidated(
            position_id=position_id,
            book=self.maybe(book, 0.2),  # type: ignore[arg-type]
            price=self.venue_amount(),
            fee=self.maybe(self.venue_amount()),  # type: ignore[arg-type]
        )

    def closing_order(self) -> Event:
        """Make an order that is to close an explicit position, mostly under the id it must have."""
        self.position_id = an_id(self.one_of("position", 2))
        armed = self.armed.get(self.position_id, 0) + (self.random.random() < 0.1)
        self.closing = closing_order_id(self.position_id, armed)
        return OrderPlaced(
            order_id=self.closing,
            user_id=an_id(self.user()),
            token=self.random.choice(TOKENS),
            action=self.random.choice(list(Action)),
            order_type=OrderType.MARKET,
            quantity=self.amount(),
            reduce_only=True,
            closes_position_id=self.position_id,
        )

    def user_event(self) -> Event:
        """Make an event about a user who may not exist."""
        name = self.user()
        user_id = an_id(name)
        # Names differ between users: the journal refuses a name that another stream has claimed.
        email = f"{name}@{self.one_of('host', 3)}"
        return self.random.choice(
            [
                UserRegistered(user_id=user_id, username=name, email=email, password_hash="secret"),
                UserRegistered(user_id=user_id, username=name, permissions=("trade",)),
                PasswordChanged(user_id=user_id, password_hash="secret", upgraded=True),
                EmailChanged(user_id=user_id, email=email, previous_email="other@host"),
                PermissionsChanged(user_id=user_id, permissions=("trade", "withdraw")),
                RolesChanged(user_id=user_id, roles=("admin",)),
                LoginAttempted(user_id=user_id, attempt_id=user_id, expires_at=START),
                self.request_event(user_id),
                LoginSucceeded(user_id=user_id),
                LoginFailed(username=name, user_id=user_id),
                LoginFailed(username=name, user_id=user_id, attempt_id=user_id, reason="locked"),
                LoginFailed(username=name, user_id=user_id, attempt_id=user_id),
                LoginFailed(username="stranger"),
                AccountLocked(user_id=user_id, locked_until=START + timedelta(days=1)),
                AccountLocked(user_id=user_id, locked_until=START + timedelta(seconds=60)),
                AccountLocked(username="stranger", locked_until=START),
                AccountUnlocked(user_id=user_id),
                UserDeactivated(user_id=user_id),
                UserReactivated(user_id=user_id),
                UserErased(user_id=user_id, reason="request"),
            ]
        )

    def request_event(self, user_id: UUID) -> Event:
        """Make an event that a request leads to; the other dice fall as they would without it."""
        return self.others.choice(
            [
                LoginAttempted(username="st…", name_digest="digest"),
                SessionStarted(
                    session_id=user_id,
                    user_id=user_id,
                    expires_at=START + timedelta(hours=12),
                    refresh_digest="digest",
                    family_digest="digest",
                ),
                SessionRefreshed(session_id=user_id, user_id=user_id, refresh_digest="other"),
                SessionEnded(session_id=user_id, user_id=user_id, reason="logged_out"),
                SessionsEnded(user_id=user_id),
                RequestHandled(user_id=user_id, action="GET", status=404),
            ]
        )

    def key_event(self) -> Event:
        """Make an event about an API key that may not exist."""
        key_id, other = an_id(self.one_of("key", 3)), an_id(self.one_of("key", 3))
        return self.random.choice(
            [
                ApiKeyIssued(
                    key_id=key_id,
                    user_id=an_id(self.user()),
                    name="n" * self.random.choice((5, 300)),
                    key_hash="secret",
                    rate_limit=self.random.choice((60, -(10**30))),
                ),
                ApiKeyRotated(key_id=key_id, successor_key_id=other, expires_at=START),
                ApiKeyRevoked(key_id=key_id),
                ApiKeyUsed(key_id=key_id, action="GET", resource=self.one_of("path", 3)),
                ApiKeyRefused(reason="unknown", key_id=key_id, count=10**30),
                ApiKeyRefused(reason="malformed", presented="abc", source="gateway"),
            ]
        )

    def marked(self) -> Event:
        """Make a mark price."""
        return PriceMarked(token=self.random.choice(TOKENS), price=self.venue_amount())


def random_events(random: Random, count: int, odd_chance: float = 0.03) -> list[Event]:
    """Return a random history of `count` events; `odd_chance` is that of an absurd amount."""
    dice = Dice(random, odd_chance)
    return [dice.next() for _ in range(count)]
