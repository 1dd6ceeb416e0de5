"""Fills exported from the exchange Hyperliquid, as events.

    python examples/hyperliquid.py FILE | ledger append -

One row is one fill and becomes one `OrderFilled`, in the order of the file: the export knows only
minutes, and its order within an account and coin is what the running positions rely on. A fill is
known by (account, coin, segment, seq); an order is (order_id, account, coin, side). The fee of a
spot purchase is taken from the token and says so in `fee_currency`.

Made up, since the export does not hold it:

- a user for each account, of that username;
- an `OrderPlaced` before an order's first fill, over the sum of its fills in the file, so import
  whole exports. A resting order trades at its own price: an order with maker fills at one price is
  a limit order at that price (at several: without a price). One with only taker fills is given as
  a market order, though it may have been a limit order that traded at once.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator
from typing import ClassVar

from examples.adapter import Adapter, Row, instant, positive, run
from ledger.domain.orders import Action, Liquidity, OrderFilled, OrderPlaced, OrderType
from ledger.event import Amount, NewEvent, VenueAmount

SIDES = {"BUY": Action.BUY, "SELL": Action.SELL}
LIQUIDITY = {"TRUE": Liquidity.TAKER, "FALSE": Liquidity.MAKER}
SPOT = {"spot": True, "perp": False}


class Hyperliquid(Adapter):
    """Orders and fills of a few accounts."""

    name = "hyperliquid"
    columns: ClassVar[tuple[str, ...]] = (
        *("account", "coin", "kind", "segment", "seq", "minute_utc", "side", "price", "size"),
        *("fee", "tx_pseudonym", "order_id", "taker"),
    )

    def events(self, rows: Iterator[Row]) -> Iterator[NewEvent]:
        """Put each order before its first fill, which needs all fills at hand."""
        fills = [(row, self._fill(row)) for row in rows]
        by_order = defaultdict(list)
        for _, fill in fills:
            by_order[fill.order_id].append(fill)
        for row, fill in fills:
            yield from self._parents(row, by_order.pop(fill.order_id, []))
            event_id = self.id("fill", *map(row.name, ("account", "coin", "segment", "seq")))
            yield NewEvent(fill, event_id=event_id, occurred_at=row.read("minute_utc", instant))

    def _fill(self, row: Row) -> OrderFilled:
        account, coin, side = row.name("account"), row.name("coin"), row.one_of("side", SIDES)
        fee_in_token = row.one_of("kind", SPOT) and side is Action.BUY
        return OrderFilled(
            order_id=self.id("order", row.name("order_id"), account, coin, side),
            fill_id="/".join((account, coin, row.name("segment"), row.name("seq"))),
            user_id=self.user_id(account),
            token=coin,
            action=side,
            price=row.read("price", positive),
            quantity=row.read("size", positive),
            fee=row.read("fee", VenueAmount),
            fee_currency=coin if fee_in_token else None,
            liquidity=row.one_of("taker", LIQUIDITY),
            transaction_signature=row.name("tx_pseudonym"),
        )

    def _parents(self, row: Row, fills: list[OrderFilled]) -> Iterator[NewEvent]:
        """Make up what the first fill of an order needs; `fills` is empty for the others."""
        if not fills:
            return
        when = row.read("minute_utc", instant)
        yield from self.made_up_user(row.name("account"), when)
        placed = self._placed(row, fills)
        yield self.make_up(placed, placed.order_id, when, row.name("order_id"))

    def _placed(self, row: Row, fills: list[OrderFilled]) -> OrderPlaced:
        resting = {fill.price for fill in fills if fill.liquidity is Liquidity.MAKER}
        quantity = sum(fill.quantity for fill in fills)
        price = resting.pop() if len(resting) == 1 else None
        limit = any(fill.liquidity is Liquidity.MAKER for fill in fills)
        return OrderPlaced(
            order_id=fills[0].order_id,
            user_id=self.user_id(row.name("account")),
            token=fills[0].token,
            action=fills[0].action,
            order_type=OrderType.LIMIT if limit else OrderType.MARKET,
            quantity=row.read("size", lambda _: Amount(quantity)),
            price=None if price is None else row.read("price", lambda _: Amount(price)),
            extra_data={"venue_order_id": row.name("order_id")},
        )


if __name__ == "__main__":
    sys.exit(run(Hyperliquid, __doc__))
