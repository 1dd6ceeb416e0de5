"""Mark prices: stream `market-<token>`."""

from __future__ import annotations

from ledger.decider import Command
from ledger.event import Event, VenueAmount


def market_stream(token: str) -> str:
    """Return the stream of a market."""
    return f"market-{token}"


class PriceMarked(Event):
    """The token's mark price is `price` in the quote currency; `source` says whose."""

    token: str
    price: VenueAmount
    source: str | None = None

    def stream(self) -> str:
        """Name the market's stream."""
        return market_stream(self.token)


class MarkPrice(Command):
    """Record what the mark price of a token is."""

    token: str
    price: VenueAmount
    source: str | None = None


def decide(command: MarkPrice) -> PriceMarked:
    """Return the event of a mark: a fact, which no state can refuse."""
    return PriceMarked(token=command.token, price=command.price, source=command.source)
