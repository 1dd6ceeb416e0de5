"""Orders: stream `order-<id>`. States and words follow FIX (OrdStatus, ExecType)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from decimal import Decimal
from enum import StrEnum
from uuid import UUID

from ledger.domain.users import maybe_user, user_stream
from ledger.event import Amount, Event, Instant, VenueAmount

TAGGED_CHARS_MAX = 200
"""Longer tokens stand in tags as digests."""
TOKEN_CHARS_KEPT = 255
"""Longer tokens are compared and kept as digests."""

_OWNED = re.compile(r"book:([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}):.*")


class Action(StrEnum):
    """The side of an order or a fill."""

    BUY = "buy"
    SELL = "sell"


class OrderType(StrEnum):
    """What makes an order execute."""

    MARKET = "market"
    LIMIT = "limit"
    STOP_LOSS = "stop_loss"
    TAKE_PROFIT = "take_profit"


class TimeInForce(StrEnum):
    """How long an order works."""

    GTC = "gtc"
    DAY = "day"
    GTD = "gtd"
    IOC = "ioc"
    FOK = "fok"


class Liquidity(StrEnum):
    """Which side of the book a fill was on."""

    MAKER = "maker"
    TAKER = "taker"


def order_stream(order_id: UUID) -> str:
    """Return the stream of an order."""
    return f"order-{order_id}"


def position_tag(user_id: UUID, token: str, position_id: UUID | None) -> str:
    """Return the tag that all fills of one position book carry.

    Netting books are (user, token); a hedging book is an explicit position id. A token that no tag
    could hold stands in it as a digest: a venue's fact is recorded, whatever it names.
    """
    if position_id is not None:
        return f"position:{position_id}"
    if len(token) > TAGGED_CHARS_MAX or not token.isprintable():
        token = hashlib.sha256(token.encode()).hexdigest()
    return f"book:{user_id}:{token}"


def owner_of_book(tag: str) -> str | None:
    """Return the stream of the user whose netting book has this tag, None for a hedging book."""
    named = _OWNED.fullmatch(tag)
    return None if named is None else user_stream(UUID(named[1]))


def kept_token(token: str) -> str:
    """Return a token as books compare it and columns hold it: one that is too long as a digest."""
    if len(token) <= TOKEN_CHARS_KEPT:
        return token
    return f"sha256:{hashlib.sha256(token.encode()).hexdigest()}"


class OrderEvent(Event):
    """What all events of one order's stream have."""

    order_id: UUID

    def stream(self) -> str:
        """Name the order's stream."""
        return order_stream(self.order_id)

    def owner_stream(self) -> str | None:
        """Name the order's stream, which begins with whose it is."""
        return order_stream(self.order_id)


class OrderPlaced(OrderEvent):
    """A user's order; either `quantity` (in the token) or `amount` (in the quote currency).

    `position_id` names the position when hedging; without it fills net by (user, token).
    `slippage_bps` is the tolerance in basis points, `reference_price` what slippage is measured
    from where there is no limit price. `closes_position_id` names the cycle of a position that a
    protective order is to close.
    """

    user_id: UUID
    token: str
    action: Action
    order_type: OrderType
    quantity: Amount | None = None
    amount: Amount | None = None
    price: Amount | None = None
    trigger_price: Amount | None = None
    time_in_force: TimeInForce = TimeInForce.GTC
    expires_at: Instant | None = None
    slippage_bps: int | None = None
    position_id: UUID | None = None
    reduce_only: bool = False
    reference_price: Amount | None = None
    closes_position_id: UUID | None = None
    strategy: str | None = None
    extra_data: dict[str, str] | None = None

    def subject(self) -> str:
        """Name the user who placed the order."""
        return user_stream(self.user_id)


class OrderAccepted(OrderEvent):
    """The venue took the order."""

    venue_order_id: str | None = None


class OrderTriggered(OrderEvent):
    """The trigger price of a stop or target was reached; the order works now."""

    price: VenueAmount | None = None


class OrderStopped(OrderEvent):
    """The venue guarantees to execute the order, at `price` or better (FIX ExecType 7)."""

    price: VenueAmount | None = None


class Execution(OrderEvent):
    """What a fill and the bust of a fill have; complete in itself, so a position needs no order.

    `user_id` is None where the venue reports a fill whose owner is not known. `fee` is in the
    quote currency unless `fee_currency` names another one (also the token); a rebate is negative.
    `quote_amount` is what was paid or received before fees, where that is known more exactly than
    as price times quantity.
    """

    fill_id: str
    token: str
    action: Action
    price: VenueAmount
    quantity: VenueAmount
    user_id: UUID | None = None
    position_id: UUID | None = None
    fee: VenueAmount | None = None
    fee_currency: str | None = None
    liquidity: Liquidity | None = None
    transaction_signature: str | None = None
    quote_amount: VenueAmount | None = None

    def subject(self) -> str | None:
        """Name the user, if the venue's report does."""
        return maybe_user(self.user_id)

    def notional(self) -> Decimal:
        """Return what was paid or received in the quote currency, before fees."""
        return self.quantity * self.price if self.quote_amount is None else +self.quote_amount

    def worth(self, amount: Decimal) -> Decimal:
        """Return what `amount` of the token was worth in this fill, of more than nothing.

        Where the quote amount is known, the price may be one that was rounded, even to zero.
        """
        if self.quote_amount is None:
            return amount * self.price
        return self.quote_amount * amount / self.quantity

    def tags(self) -> Iterable[str]:
        """Name the position book that the fill moves."""
        if self.user_id is None:
            return ()
        return (position_tag(self.user_id, self.token, self.position_id),)


class OrderFilled(Execution):
    """The venue executed `quantity` at `price`; `fill_id` is the venue's id of this fill."""


class FillBusted(Execution):
    """The venue took a fill back: the fields repeat the fill that never was."""


class FillConflicted(Execution):
    """The venue reported a known fill id again, with other content; nothing is booked for it."""


class OrderReplaceRequested(OrderEvent):
    """The user asked for another quantity or price."""

    quantity: Amount | None = None
    price: Amount | None = None


class OrderReplacePending(OrderEvent):
    """The venue is looking at a replace request (FIX ExecType E)."""


class OrderReplaceRejected(OrderEvent):
    """The venue refused to replace the order (FIX OrderCancelReject, CxlRejResponseTo 2)."""

    reason: str | None = None


class OrderReplaced(OrderEvent):
    """The venue changed the order to this total quantity and price (None: as before)."""

    quantity: VenueAmount | None = None
    price: VenueAmount | None = None


class OrderRestated(OrderEvent):
    """The venue changed the order unasked (FIX ExecType D).

    Either the new total `quantity`, or `quantity_change` where only the difference is known.
    """

    quantity: VenueAmount | None = None
    quantity_change: VenueAmount | None = None
    reason: str | None = None


class OrderCancelRequested(OrderEvent):
    """The user asked to cancel."""


class OrderCancelPending(OrderEvent):
    """The venue is looking at a cancel request (FIX ExecType 6)."""


class OrderCancelRejected(OrderEvent):
    """The venue refused to cancel the order (FIX OrderCancelReject, CxlRejResponseTo 1)."""

    reason: str | None = None


class OrderCancelled(OrderEvent):
    """The order is cancelled; what was filled stays filled."""

    reason: str | None = None


class OrderDoneForDay(OrderEvent):
    """No more executions today."""


class OrderRejected(OrderEvent):
    """The venue refused the order."""

    reason: str


class OrderFailed(OrderEvent):
    """The order could not be carried out."""

    reason: str


class OrderExpired(OrderEvent):
    """The order's time in force ended."""
