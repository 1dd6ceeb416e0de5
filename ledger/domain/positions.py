"""Positions: stream `position-<id>`. Sizes follow from fills; only these facts are their own.

What fills net into is a book: a user's token, or an explicit position when hedging. The events of a
book carry its tag. Each of its cycles, from flat to flat, is a position with an id.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal, localcontext
from typing import assert_never, cast
from uuid import UUID

import msgspec
import uuid_utils

from ledger.decider import Command, Decider
from ledger.domain.orders import (
    Action,
    Execution,
    FillBusted,
    OrderFilled,
    kept_token,
    owner_of_book,
    position_tag,
)
from ledger.domain.users import user_stream
from ledger.event import CONTEXT, Amount, Event, RecordedEvent, VenueAmount

IDS = UUID("6f1c1d8e-52a5-5b0c-9d3f-0d4a4ad1c9f7")
"""The namespace of the ids of cycles."""
_IDS = uuid_utils.UUID(str(IDS))
ZERO = Decimal(0)
BUY = Action.BUY


def position_stream(position_id: UUID) -> str:
    """Return the stream of a position."""
    return f"position-{position_id}"


class PositionEvent(Event, kw_only=True):
    """What all events of one position's stream have.

    `book` is the tag of the book that the position is a cycle of; None where only the id is known,
    which then is taken for that of an explicit position. `user_id` says whose it is where the book
    does not.
    """

    position_id: UUID
    book: str | None = None
    user_id: UUID | None = None

    def stream(self) -> str:
        """Name the position's stream."""
        return position_stream(self.position_id)

    def tags(self) -> Iterable[str]:
        """Name the book, so that conditions on its fills see this event too."""
        return (self.book or f"position:{self.position_id}",)

    def subject(self) -> str | None:
        """Name the user, else that of the book; one of an explicit position does not say whose."""
        if self.user_id is not None:
            return user_stream(self.user_id)
        return None if self.book is None else owner_of_book(self.book)


class ProtectionSet(PositionEvent):
    """The position's stop loss and take profit are these; None takes a level away."""

    stop_loss: Amount | None = None
    take_profit: Amount | None = None


class PositionLiquidated(PositionEvent):
    """The venue closed the whole position at `price`."""

    price: VenueAmount
    fee: VenueAmount | None = None


MOVING = (OrderFilled, FillBusted, PositionLiquidated)
"""The types of event that can move a book."""


class Effect(msgspec.Struct, frozen=True, gc=False):
    """What a fill does to its book: positive `size` is bought, negative sold.

    `value` is what that size cost in the quote currency before fees, with the sign of the size.
    `fee` is in the quote currency, `other_fee` in a third one; rebates are negative.
    """

    size: Decimal
    value: Decimal
    fee: Decimal = ZERO
    other_fee: Decimal = ZERO

    def undone(self) -> Effect:
        """Return the effect of taking it all back."""
        return Effect(-self.size, -self.value, -self.fee, -self.other_fee)

    def split(self, size: Decimal) -> tuple[Effect, Effect]:
        """Return two parts in proportion: all but `size`, and `size`."""
        amounts = (self.value, self.fee, self.other_fee)
        parts = [each * size / self.size for each in amounts]
        rest = [each - part for each, part in zip(amounts, parts, strict=True)]
        return Effect(self.size - size, *rest), Effect(size, *parts)


def effect_of(event: Execution) -> Effect:
    """Return what a fill does, or the bust of one undoes.

    A fee in the token is taken out of what is held, as if sold at the price of the fill; one in a
    third currency moves neither size nor quote currency.
    """
    size, value = +event.quantity, event.notional()
    if event.action != BUY:
        size, value = -size, -value
    fee, other_fee = ZERO if event.fee is None else +event.fee, ZERO
    if event.fee_currency is None:
        pass  # as good as always
    elif event.fee_currency == event.token:
        worth = event.worth(fee)
        size, value, fee = size - fee, value - worth, worth
    else:
        fee, other_fee = ZERO, fee
    effect = Effect(size, value, fee, other_fee)
    return effect.undone() if event.kind is FillBusted else effect


def cycle_id(journal: str, event_id: UUID | str, event: Execution, *, is_first: bool) -> UUID:
    """Return the id of the cycle that a fill opens, whose event has this id.

    It is the explicit id in the first cycle of its book, else one that follows from journal, book
    and event. Derived ids are UUIDs of version 8, which no explicit one may be: else somebody could
    choose the id that a later cycle will have. Where the event's ids are text, it is text too.
    """
    explicit = event.position_id
    if explicit is not None and is_first and not is_derived(explicit):
        return explicit
    book = f"{journal}:{event.user_id}:{event.token}:{explicit or ''}"
    text = _derived_text(f"{book}:{event_id}")
    return cast("UUID", text) if isinstance(event_id, str) else UUID(text)


def is_derived(position_id: UUID) -> bool:
    """Whether an id is of the version that no explicit one may have."""
    text = str(position_id)
    return text[14] == "8" and text[19] in "89ab"


def _derived_id(name: str) -> UUID:
    return UUID(_derived_text(name))


def _derived_text(name: str) -> str:
    """Return the same as uuid5 (RFC 9562), but of version 8."""
    text = str(uuid_utils.uuid5(_IDS, name))
    return f"{text[:14]}8{text[15:]}"


def id_of_nothing(book: str) -> UUID:
    """Return the id under which liquidations stand that found no position in their book."""
    return _derived_id(f"{book}:none")


def closing_order_id(position_id: UUID, armed_size: int) -> UUID:
    """Return the id of the one order that levels armed at this size can lead to.

    `armed_size` is the size of the journal after the event that armed them. The id is a derived one
    too, so that nobody can place another order under it, and so switch the levels off.
    """
    return _derived_id(f"closing {position_id}:{armed_size}")


class BookCommand(Command, kw_only=True):
    """What all commands for a book have; `position_id` is the explicit one when hedging."""

    user_id: UUID
    token: str
    position_id: UUID | None = None

    @property
    def book(self) -> str:
        """The tag of the book."""
        return position_tag(self.user_id, self.token, self.position_id)


class SetProtection(BookCommand):
    """Set the stop loss and take profit of the open position; None takes a level away."""

    stop_loss: Amount | None = None
    take_profit: Amount | None = None


class Liquidate(BookCommand):
    """Record that the venue closed the whole position at `price`."""

    price: VenueAmount
    fee: VenueAmount | None = None


class Book(msgspec.Struct, frozen=True):
    """What the events of a book have led to; it is flat where `size` is 0.

    `cycles` counts what was opened; the other fields are those of the last cycle.
    """

    size: Decimal = ZERO
    cycles: int = 0
    position_id: UUID | None = None
    explicit_id: UUID | None = None
    user_id: UUID | None = None
    token: str | None = None

    def is_of(self, user_id: UUID | None, token: str) -> bool:
        """Whether the last cycle is in this user's token."""
        return (self.user_id, self.token) == (user_id, kept_token(token))


def decide(command: SetProtection | Liquidate, book: Book) -> Sequence[Event]:
    """Return the event that a command leads to.

    A liquidation is a fact and never refused; one of nothing gets an id that no position has.
    """
    match command:
        case SetProtection():
            return (_protection(command, book),)
        case Liquidate():
            return (_liquidation(command, book),)
        case _:
            assert_never(command)


def _protection(command: SetProtection, book: Book) -> ProtectionSet:
    for name in ("stop_loss", "take_profit"):
        level: Amount | None = getattr(command, name)
        if level is not None and level <= 0:
            raise command.invalid(name, f"must be above zero, not {level}")
    is_own = book.is_of(command.user_id, command.token)
    if book.size == 0 or book.position_id is None or not is_own:
        state = "flat" if book.size == 0 else "held by another"
        raise command.refused(command.book, state, "there is no open position to protect")
    _check_sides(command, book)
    return ProtectionSet(
        position_id=book.position_id,
        book=command.book,
        user_id=_unsaid(command),
        stop_loss=command.stop_loss,
        take_profit=command.take_profit,
    )


def _check_sides(command: SetProtection, book: Book) -> None:
    """Refuse levels of which one lies where the other would have been reached before."""
    stop, target = command.stop_loss, command.take_profit
    if stop is None or target is None:
        return
    side, where = ("long", "below") if book.size > 0 else ("short", "above")
    if stop == target or (stop < target) != (book.size > 0):
        reason = f"{stop} is not {where} take_profit {target}, as a {side} position needs it"
        raise command.invalid("stop_loss", reason)


def _liquidation(command: Liquidate, book: Book) -> PositionLiquidated:
    position_id = book.position_id
    if position_id is None or not book.is_of(command.user_id, command.token):
        position_id = id_of_nothing(command.book)
    return PositionLiquidated(
        position_id=position_id,
        book=command.book,
        user_id=_unsaid(command),
        price=command.price,
        fee=command.fee,
    )


def _unsaid(command: BookCommand) -> UUID | None:
    """Return the user where the book's tag does not say whose it is."""
    return command.user_id if owner_of_book(command.book) is None else None


def evolve(book: Book, event: Event) -> Book:
    """Return the book after an event with its tag; a cycle that this opens has no id yet.

    What is not the book's own moves nothing: a fill of another user or token that names an explicit
    position, the liquidation of another cycle.
    """
    if isinstance(event, OrderFilled | FillBusted):
        is_foreign = book.size != 0 and not book.is_of(event.user_id, event.token)
        return book if is_foreign or event.quantity <= 0 else _moved(book, event)
    if isinstance(event, PositionLiquidated):
        is_own = event.position_id in (book.position_id, book.explicit_id)
        return msgspec.structs.replace(book, size=ZERO) if is_own else book
    return book


def _moved(book: Book, event: Execution) -> Book:
    with localcontext(CONTEXT):
        size = book.size + effect_of(event).size
    if size == 0 or book.size * size > 0:
        return msgspec.structs.replace(book, size=size)
    return Book(
        size=size,
        cycles=book.cycles + 1,
        explicit_id=event.position_id,
        user_id=event.user_id,
        token=kept_token(event.token),
    )


class BookDecider(Decider[SetProtection | Liquidate, Book]):
    """Decides about the books of one journal, whose name is a part of derived ids."""

    def __init__(self, journal: str) -> None:
        super().__init__(Book(), decide, evolve)
        self._journal = journal

    def take(self, state: Book, recorded: RecordedEvent) -> Book:
        """Return the book after a recorded event, with the id of the cycle that this opens."""
        book, event = self.evolve(state, recorded.event), recorded.event
        if book.cycles == state.cycles or not isinstance(event, Execution):
            return book
        is_first = book.cycles == 1
        opened = cycle_id(self._journal, recorded.event_id, event, is_first=is_first)
        return msgspec.structs.replace(book, position_id=opened)
