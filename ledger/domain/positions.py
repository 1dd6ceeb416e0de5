"""Positions: stream `position-<id>`. Sizes follow from fills; only these facts are their own."""

from __future__ import annotations

from uuid import UUID

from ledger.event import Amount, Event, VenueAmount


class PositionEvent(Event):
    """What all events of one position's stream have."""

    position_id: UUID

    def stream(self) -> str:
        """Name the position's stream."""
        return f"position-{self.position_id}"


class ProtectionSet(PositionEvent):
    """The position's stop loss and take profit are these; None takes a level away."""

    stop_loss: Amount | None = None
    take_profit: Amount | None = None


class PositionLiquidated(PositionEvent):
    """The venue closed the whole position at `price`."""

    price: VenueAmount
    fee: VenueAmount | None = None
