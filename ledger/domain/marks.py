"""Mark prices: stream `market-<token>`."""

from __future__ import annotations

from ledger.event import Event, VenueAmount


class PriceMarked(Event):
    """The token's mark price is `price` in the quote currency; `source` says whose."""

    token: str
    price: VenueAmount
    source: str | None = None

    def stream(self) -> str:
        """Name the market's stream."""
        return f"market-{self.token}"
