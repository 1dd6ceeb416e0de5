"""Facts about markets: mark prices."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from ledger.deciding import ORIGIN, Deciding, Origin
from ledger.domain.marks import MarkPrice, PriceMarked, decide
from ledger.services.orders import AnyAmount
from ledger.stores import Appended


class Marked(msgspec.Struct, frozen=True):
    """The mark that was stored, and where."""

    event: PriceMarked
    appended: Appended


class Markets:
    """Facts about the markets of one journal."""

    def __init__(self, deciding: Deciding) -> None:
        self._journal = deciding.journal

    async def mark(
        self,
        *,
        token: str,
        price: AnyAmount,
        source: str | None = None,
        occurred_at: datetime | None = None,
        origin: Origin = ORIGIN,
    ) -> Marked:
        """Record that the token's mark price is `price` in the quote currency; `source` says whose.

        Marks are taken in the order in which they are stored, whatever the times. Raises
        InvalidCommand where the price is no amount.
        """
        amounts: dict[str, Any] = {"price": price}
        event = decide(MarkPrice(token=token, source=source, **amounts))
        if occurred_at is not None:
            origin = msgspec.structs.replace(origin, occurred_at=occurred_at)
        new = origin.of(type(event).__name__, [event])
        return Marked(event, await self._journal.append(new))
