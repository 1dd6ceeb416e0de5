"""Deciding on orders: the commands, an order's state, and what comes of the two.

PlaceOrder, RequestReplace, RequestCancel and FailOrder come from our own users and programs and are
refused where they do not fit. RecordFill and RecordBust report what the venue did: it is recorded
whatever the state, once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation, localcontext
from typing import Any, TypeVar, assert_never
from uuid import UUID

import msgspec

from ledger.decider import Command, Decider
from ledger.domain import order_stages as stages
from ledger.domain.order_stages import Stage
from ledger.domain.orders import (
    Action,
    Execution,
    FillBusted,
    FillConflicted,
    Liquidity,
    OrderCancelRequested,
    OrderEvent,
    OrderFailed,
    OrderFilled,
    OrderPlaced,
    OrderReplaced,
    OrderReplaceRequested,
    OrderRestated,
    OrderType,
    TimeInForce,
    order_stream,
)
from ledger.errors import CommandRefused, InvalidCommand
from ledger.event import CONTEXT, Amount, Event, Instant, VenueAmount

ZERO = Decimal(0)
PRICE_PLACES = 18
"""Places of a price that follows from what was paid and got."""

TOKEN_CHARS_MAX = 200
BASIS_POINTS_MAX = 10_000
DERIVED = 8
"""The version of ids that follow from events: of cycles and closing orders; nobody chooses one."""

_TRIGGERED_TYPES = (OrderType.STOP_LOSS, OrderType.TAKE_PROFIT)
_MONEY = ("price", "quantity", "fee", "fee_currency", "quote_amount")
_DETAILS = ("token", "action", "user_id", "position_id", "liquidity", "transaction_signature")

ExecutionType = TypeVar("ExecutionType", bound=Execution)


class Raw(msgspec.Struct, frozen=True, gc=False):
    """An amount in the smallest unit, as chains report it: `amount` / 10 ** `decimals`."""

    amount: int
    decimals: int

    def exact(self) -> VenueAmount:
        """Return the amount with all its places; InvalidCommand where it has too many digits."""
        digits = tuple(map(int, str(abs(self.amount))))
        try:
            if self.decimals < 0:
                raise ValueError(f"an amount cannot have {self.decimals} places")
            return VenueAmount(Decimal((int(self.amount < 0), digits, -self.decimals)))
        except ValueError as error:
            raise InvalidCommand("Raw", "amount", str(error)) from error


class OrderCommand(Command):
    """What all commands on one order have."""

    order_id: UUID

    def check_positive(self, *fields: str) -> None:
        """Raise InvalidCommand for an amount that is given and not above zero."""
        for name in fields:
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise self.invalid(name, f"must be above zero, not {value}")

    def check_explicit(self, position_id: UUID | None) -> None:
        """Raise InvalidCommand for the id of a cycle, which names no book."""
        if position_id is not None and position_id.version == DERIVED:
            reason = "is of a cycle; give the book's own explicit id, or none for netting"
            raise self.invalid("position_id", reason)


class PlaceOrder(OrderCommand):
    """Place an order; `now` is the time of the command, the other fields are those of OrderPlaced.

    None of them says that the order closes a protected position: that is the reactor's business.
    """

    now: Instant
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
    strategy: str | None = None
    extra_data: dict[str, str] | None = None

    def __post_init__(self) -> None:
        """Raise InvalidCommand where no venue could carry the order out."""
        super().__post_init__()
        if (self.quantity is None) == (self.amount is None):
            raise self.invalid("quantity", "give either a quantity or an amount")
        self.check_positive("quantity", "amount", "price", "trigger_price", "reference_price")
        self._check_prices()
        self._check_terms()
        self._check_identity()

    def _check_prices(self) -> None:
        """Require the prices that the type of the order needs, and no others."""
        if self.order_type is OrderType.LIMIT and self.price is None:
            raise self.invalid("price", "a limit order needs one")
        if self.order_type is OrderType.MARKET and self.price is not None:
            raise self.invalid("price", "a market order has none; give a reference_price")
        if (self.order_type in _TRIGGERED_TYPES) != (self.trigger_price is not None):
            raise self.invalid("trigger_price", "stop_loss and take_profit need one, no others")
        if self.slippage_bps is not None and not 0 <= self.slippage_bps <= BASIS_POINTS_MAX:
            raise self.invalid("slippage_bps", f"must be 0 to {BASIS_POINTS_MAX}")

    def _check_terms(self) -> None:
        if (self.time_in_force is TimeInForce.GTD) != (self.expires_at is not None):
            raise self.invalid("expires_at", "gtd needs it, no other time in force has it")

    def check_time(self) -> None:
        """Raise InvalidCommand where the order would have expired at the time of the command.

        That is for deciding: a repeated command may come when its order has expired.
        """
        if self.expires_at is not None and self.expires_at <= self.now:
            raise self.invalid("expires_at", f"{self.expires_at.isoformat()} has passed")

    def _check_identity(self) -> None:
        if not 0 < len(self.token) <= TOKEN_CHARS_MAX or not self.token.isprintable():
            raise self.invalid("token", f"must be 1 to {TOKEN_CHARS_MAX} printable characters")
        self.check_explicit(self.position_id)
        if self.order_id.version == DERIVED:
            raise self.invalid("order_id", "UUIDs of version 8 are those of closing orders")
        if self.reduce_only and self.amount is not None:
            raise self.invalid("amount", "an order that may only reduce needs a quantity")


class RequestReplace(OrderCommand):
    """Ask the venue for another total quantity or price (None: as before)."""

    quantity: Amount | None = None
    price: Amount | None = None

    def __post_init__(self) -> None:
        """Raise InvalidCommand where nothing is asked for, or what no order can have."""
        super().__post_init__()
        if self.quantity is None and self.price is None:
            raise self.invalid("quantity", "give a quantity, a price or both")
        self.check_positive("quantity", "price")


class RequestCancel(OrderCommand):
    """Ask the venue to cancel."""


class FailOrder(OrderCommand):
    """Give an order up that our gateway could not carry out."""

    reason: str


class ExecutionCommand(OrderCommand):
    """What a report of a fill and of its bust have; what is None is taken from the order."""

    fill_id: str
    price: VenueAmount | None = None
    quantity: VenueAmount | None = None
    quote_amount: VenueAmount | None = None
    fee: VenueAmount | None = None
    fee_currency: str | None = None
    liquidity: Liquidity | None = None
    transaction_signature: str | None = None
    token: str | None = None
    action: Action | None = None
    user_id: UUID | None = None
    position_id: UUID | None = None

    def __post_init__(self) -> None:
        """Let the price follow from what was paid or received, where only that is given."""
        super().__post_init__()
        self.check_explicit(self.position_id)
        if self.price is None and None not in (self.quantity, self.quote_amount):
            msgspec.structs.force_setattr(self, "price", self._price())

    def _price(self) -> VenueAmount:
        """Return quote amount / quantity; an execution of nothing has no price."""
        if not self.quantity or self.quote_amount is None:
            return VenueAmount(0)
        price = CONTEXT.divide(self.quote_amount, self.quantity)
        try:
            return VenueAmount(price.quantize(Decimal(1).scaleb(-PRICE_PLACES), context=CONTEXT))
        except (ValueError, InvalidOperation) as error:
            raise self.invalid("price", "quote_amount / quantity is too large") from error


class RecordFill(ExecutionCommand):
    """Record that the venue executed `quantity`, at `price` or for `quote_amount` in all."""

    def __post_init__(self) -> None:
        """Raise InvalidCommand where it is not said how much was executed, and for what."""
        super().__post_init__()
        if self.quantity is None:
            raise self.invalid("quantity", "a fill needs one")
        if self.price is None:
            raise self.invalid("price", "a fill needs a price or a quote_amount")


class RecordBust(ExecutionCommand):
    """Record that the venue took a fill back; only one that is not known has to be described."""


AnyOrderCommand = PlaceOrder | RequestReplace | RequestCancel | FailOrder | RecordFill | RecordBust


class OrderState(msgspec.Struct, frozen=True):
    """An order as its events have it: terms, exact sums, stage, and fills and busts by fill id."""

    stage: int = 0
    user_id: UUID | None = None
    token: str | None = None
    action: Action | None = None
    order_type: OrderType | None = None
    position_id: UUID | None = None
    quantity: Decimal | None = None
    amount: Decimal | None = None
    price: Decimal | None = None
    filled: Decimal = ZERO
    notional: Decimal = ZERO
    fills: Mapping[str, OrderFilled] = msgspec.field(default_factory=dict)
    busted: Mapping[str, FillBusted] = msgspec.field(default_factory=dict)

    @property
    def has_fills(self) -> bool:
        """Whether something is filled."""
        return self.filled > 0

    @property
    def is_filled(self) -> bool:
        """Whether all that was ordered is filled."""
        return stages.reaches(self.filled, self.notional, self.quantity, self.amount)

    @property
    def name(self) -> str:
        """The state in a word: FIX's OrdStatus, or Unknown."""
        if not self.stage & Stage.PLACED:
            return "Unknown"
        return stages.ord_status(self.stage, self.has_fills, self.is_filled)

    def step(self, event_type: type[OrderEvent]) -> stages.Step:
        """Return what an event would make of the stage."""
        return stages.step(self.stage, event_type, self.has_fills, self.is_filled)


def decide(command: AnyOrderCommand, state: OrderState) -> Sequence[OrderEvent]:
    """Return the events that a command leads to; CommandRefused where it does not fit.

    Raises InvalidCommand for what is wrong only at its time, or for the order that it meets.
    """
    match command:
        case PlaceOrder():
            return (_place(command, state),)
        case RequestReplace():
            return (_request_replace(command, state),)
        case RequestCancel():
            _check_fits(command, state, OrderCancelRequested)
            return (OrderCancelRequested(order_id=command.order_id),)
        case FailOrder():
            _check_fits(command, state, OrderFailed)
            return (OrderFailed(order_id=command.order_id, reason=command.reason),)
        case RecordFill():
            return _fill(command, state)
        case RecordBust():
            return _bust(command, state)
        case _:
            assert_never(command)


def _place(command: PlaceOrder, state: OrderState) -> OrderPlaced:
    """Place the order, also one that the venue has reported on already, unless it has ended."""
    command.check_time()
    if state.stage & (Stage.PLACED | stages.ENDED):
        raise _refused(command, state, "an order is placed once")
    values: dict[str, Any] = msgspec.structs.asdict(command)
    del values["now"]
    return OrderPlaced(**values)


def _request_replace(command: RequestReplace, state: OrderState) -> OrderReplaceRequested:
    """Ask for other terms; a filled order works again if there is more to fill."""
    _check_fits(command, state, OrderReplaceRequested)
    if command.price is not None and state.order_type is OrderType.MARKET:
        raise command.invalid("price", "a market order has none")
    if command.quantity is not None and state.quantity is None and state.amount is not None:
        raise command.invalid("quantity", "an order over an amount has none")
    if state.is_filled and (command.quantity is None or command.quantity <= state.filled):
        raise _refused(command, state, f"{state.filled} are filled; only more can be asked for")
    return OrderReplaceRequested(
        order_id=command.order_id, quantity=command.quantity, price=command.price
    )


def _check_fits(command: OrderCommand, state: OrderState, event_type: type[OrderEvent]) -> None:
    misfit = state.step(event_type).misfit
    if misfit is not None:
        raise _refused(command, state, misfit)


def _refused(command: OrderCommand, state: OrderState, reason: str) -> CommandRefused:
    return command.refused(order_stream(command.order_id), state.name, reason)


def _fill(command: RecordFill, state: OrderState) -> Sequence[Execution]:
    """Record a fill once; the same id with other content is a conflict, which is recorded too."""
    known = state.fills.get(command.fill_id) or state.busted.get(command.fill_id)
    if known is None:
        return (_execution(OrderFilled, command, state),)
    conflict = () if _repeats(command, known) else (_execution(FillConflicted, command, state),)
    return (*_mirror(known), *conflict)


def _mirror(known: Execution) -> Sequence[Execution]:
    """Return the fill that a bust has taken back already, so that nothing is left of the two."""
    if isinstance(known, FillBusted):
        return (OrderFilled(**msgspec.structs.asdict(known)),)
    return ()


def _repeats(command: ExecutionCommand, known: Execution) -> bool:
    """Whether a report says the same as a known fill; either may leave out details."""
    if any(getattr(command, name) != getattr(known, name) for name in _MONEY):
        return False
    details = ((getattr(command, name), getattr(known, name)) for name in _DETAILS)
    return all(None in pair or pair[0] == pair[1] for pair in details)


def _bust(command: RecordBust, state: OrderState) -> Sequence[Execution]:
    """Take a fill back once, with the fields of the fill where that is known."""
    if command.fill_id in state.busted:
        return ()
    known = state.fills.get(command.fill_id)
    if known is None:
        return (_execution(FillBusted, command, state),)
    return (FillBusted(**msgspec.structs.asdict(known)),)


def _execution(
    kind: type[ExecutionType], command: ExecutionCommand, state: OrderState
) -> ExecutionType:
    """Return the event for a report; what it leaves out about the order is taken from there."""
    values: dict[str, Any] = msgspec.structs.asdict(command)
    for name in ("token", "action", "user_id", "position_id"):
        values[name] = getattr(state, name) if values[name] is None else values[name]
    for name in ("price", "quantity", "token", "action"):
        if values[name] is None:
            raise command.invalid(name, f"must be given: order {command.order_id} does not tell it")
    return kind(**values)


def evolve(state: OrderState, event: Event) -> OrderState:
    """Return the state after an event of the order's stream."""
    with localcontext(CONTEXT):
        match event:
            case OrderPlaced():
                return _placed(state, event)
            case OrderFilled() | FillBusted():
                return _executed(state, event)
            case OrderReplaced() | OrderRestated():
                return _amended(state, event)
            case OrderEvent():
                return msgspec.structs.replace(state, stage=state.step(type(event)).stage)
    return state


def _placed(state: OrderState, event: OrderPlaced) -> OrderState:
    """Take the terms; only the first placing counts."""
    if state.stage & Stage.PLACED:
        return state
    return msgspec.structs.replace(
        state,
        stage=state.step(OrderPlaced).stage,
        user_id=event.user_id,
        token=event.token,
        action=event.action,
        order_type=event.order_type,
        position_id=event.position_id,
        quantity=event.quantity,
        amount=event.amount,
        price=event.price,
    )


def _executed(state: OrderState, event: OrderFilled | FillBusted) -> OrderState:
    """Know a fill or a bust by its id, and add it to the sums or take it out, if it is of any."""
    state = _known(msgspec.structs.replace(state, stage=state.step(type(event)).stage), event)
    if event.quantity <= 0:
        return state
    sign = -1 if isinstance(event, FillBusted) else 1
    return msgspec.structs.replace(
        _with_terms(state, event),
        filled=state.filled + sign * event.quantity,
        notional=state.notional + sign * event.notional(),
    )


def _known(state: OrderState, event: OrderFilled | FillBusted) -> OrderState:
    """Keep what was reported; of an id that was reported twice the first."""
    if isinstance(event, FillBusted):
        return msgspec.structs.replace(state, busted={event.fill_id: event, **state.busted})
    return msgspec.structs.replace(state, fills={event.fill_id: event, **state.fills})


def _with_terms(state: OrderState, event: Execution) -> OrderState:
    """Let the first fill stand for the terms of an order that nobody placed."""
    if state.stage & Stage.PLACED or state.token is not None:
        return state
    return msgspec.structs.replace(
        state,
        user_id=event.user_id,
        token=event.token,
        action=event.action,
        position_id=event.position_id,
    )


def _amended(state: OrderState, event: OrderReplaced | OrderRestated) -> OrderState:
    price = event.price if isinstance(event, OrderReplaced) else None
    return msgspec.structs.replace(
        state,
        stage=state.step(type(event)).stage,
        quantity=stages.amended(state.quantity, event),
        price=state.price if price is None else +price,
    )


ORDERS: Decider[AnyOrderCommand, OrderState] = Decider(OrderState(), decide, evolve)
