"""Commands for positions: protection by stop loss and take profit, and liquidations."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import msgspec

from ledger.conditions import NoEvent
from ledger.deciding import ORIGIN, Deciding, Origin
from ledger.domain.positions import (
    MOVING,
    BookDecider,
    Liquidate,
    PositionLiquidated,
    ProtectionSet,
    SetProtection,
)
from ledger.errors import CommandRefused, EventIdConflict, InvalidCommand
from ledger.event import Event
from ledger.services.orders import AnyAmount
from ledger.stores import Appended


class PositionStored(msgspec.Struct, frozen=True):
    """What was stored about a position, and where."""

    position_id: UUID
    event: ProtectionSet | PositionLiquidated
    appended: Appended


class Positions:
    """Commands for the positions of one journal.

    A position is named by its user and token; when hedging, also by the explicit `position_id` that
    its orders carry.
    """

    def __init__(self, deciding: Deciding) -> None:
        self._deciding = deciding
        self._journal = deciding.journal
        self._decider = BookDecider(deciding.journal.name)

    async def protect(
        self,
        *,
        user_id: UUID,
        token: str,
        position_id: UUID | None = None,
        stop_loss: AnyAmount | None = None,
        take_profit: AnyAmount | None = None,
        origin: Origin = ORIGIN,
    ) -> PositionStored:
        """Set the levels of the open position in place of those it has; None takes one away.

        Raises CommandRefused where no position of this user is open, InvalidCommand where a level
        is not above zero or the two are on the wrong sides of each other, and Contended.
        """
        levels: dict[str, Any] = {"stop_loss": stop_loss, "take_profit": take_profit}
        command = SetProtection(user_id=user_id, token=token, position_id=position_id, **levels)
        return await self._decide(command, origin)

    async def liquidated(
        self,
        *,
        user_id: UUID,
        token: str,
        price: AnyAmount,
        position_id: UUID | None = None,
        fee: AnyAmount | None = None,
        origin: Origin = ORIGIN,
    ) -> PositionStored:
        """Record that the venue closed the whole position at `price`, for a fee in quote currency.

        It is recorded whether the position is open or not. Raises Contended if fills kept coming:
        then nothing was stored.
        """
        amounts: dict[str, Any] = {"price": price, "fee": fee}
        command = Liquidate(user_id=user_id, token=token, position_id=position_id, **amounts)
        return await self._decide(command, origin)

    async def _decide(self, command: SetProtection | Liquidate, origin: Origin) -> PositionStored:
        async def attempt() -> PositionStored:
            try:
                return await self._attempt(command, origin)
            except (CommandRefused, EventIdConflict, InvalidCommand):
                earlier = await self._earlier(command, origin)
                if earlier is None:
                    raise
                return earlier

        async with self._deciding.turn(command.book):
            return await self._deciding.until_stored(attempt, type(command).__name__, command.book)

    async def _attempt(self, command: SetProtection | Liquidate, origin: Origin) -> PositionStored:
        """Decide on the book as it is, and store that if nothing has moved it meanwhile."""
        book = await self._deciding.load_tagged(self._decider, command.book)
        [event] = self._decider.decide(command, book.state)
        unmoved = NoEvent(types=MOVING, tag=command.book, after=book.offset)
        new = origin.of(type(command).__name__, [event])
        return _stored(event, await self._journal.append(new, unmoved))

    async def _earlier(
        self, command: SetProtection | Liquidate, origin: Origin
    ) -> PositionStored | None:
        """Return what an earlier run of the same command stored."""
        event_id = origin.event_id(type(command).__name__)
        if event_id is None:
            return None
        for each in await self._journal.read_tagged(command.book):
            if each.event_id == event_id:
                return _stored(each.event, Appended((each.offset,), duplicate=True))
        return None


def _stored(event: Event, appended: Appended) -> PositionStored:
    if not isinstance(event, ProtectionSet | PositionLiquidated):
        raise TypeError(f"{type(event).__name__} is no event of a position")
    return PositionStored(event.position_id, event, appended)
