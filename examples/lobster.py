"""Order-book messages as LOBSTER reconstructs them from NASDAQ, as events.

    python examples/lobster.py FILE | ledger append -

One row is one message about one symbol on one day; the file says neither which symbol nor which
day, so options do. A message is known by symbol, day and its running number in the day's file.

    1  order submitted         OrderPlaced (limit) and OrderAccepted
    2  quantity reduced        OrderRestated: the new total; of an unknown order, the change
    3  deleted                 OrderCancelled
    4  visible order executed  OrderFilled, the resting order being the maker
    5  hidden order executed   PriceMarked
    6  auction, 7  halt        skipped and counted

Prices come as dollars times 10,000, times as seconds after midnight in New York; of their
nanoseconds, microseconds are kept.

Made up: LOBSTER names nobody, so 20 users `lobster-01` to `lobster-20` share the orders by a hash
of the order id. Orders from before the file starts are not made up: what happens to them is
recorded as it is, without a user.
"""

from __future__ import annotations

import argparse
import sys
import zlib
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import ROUND_DOWN, Decimal
from typing import ClassVar
from uuid import UUID

from examples.adapter import Adapter, Row, positive, run
from ledger.domain.marks import PriceMarked
from ledger.domain.orders import (
    Action,
    Liquidity,
    OrderAccepted,
    OrderCancelled,
    OrderFilled,
    OrderPlaced,
    OrderRestated,
    OrderType,
)
from ledger.event import Amount, Event, NewEvent, VenueAmount

SIDES = {"1": Action.BUY, "-1": Action.SELL}
USERS = 20
DAY_SECONDS = 86_400


class Lobster(Adapter):
    """The messages of one symbol on one day."""

    name = "lobster"
    columns: ClassVar[tuple[str, ...]] = (
        *("time_s", "type", "order_id", "size", "price_x10000", "direction"),
    )

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        self._midnight = _midnight(options.date, options.utc_offset)
        self._quantities: dict[str, VenueAmount] = {}

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        """Add what the file does not say."""
        parser.add_argument("--symbol", default="GOOG", help="default: %(default)s")
        parser.add_argument(
            "--date",
            type=date.fromisoformat,
            default=date(2012, 6, 21),
            metavar="YYYY-MM-DD",
            help="default: %(default)s",
        )
        parser.add_argument(
            "--utc-offset", type=int, default=-4, choices=(-4, -5), help="New York's on that day"
        )

    def events(self, rows: Iterator[Row]) -> Iterator[NewEvent]:
        """Number the messages and turn each into its events."""
        kinds: dict[str, Callable[[Row, str], Iterator[Event]]] = {
            "1": self._submitted,
            "2": self._reduced,
            "3": self._deleted,
            "4": self._executed,
            "5": self._executed_hidden,
            "6": self._skip,
            "7": self._skip,
        }
        for number, row in enumerate(rows, 1):
            message = f"{self.options.symbol}/{self.options.date}/{number}"
            when = self._midnight + row.read("time_s", _after_midnight)
            for event in row.one_of("type", kinds)(row, message):
                if isinstance(event, OrderPlaced):
                    yield from self.made_up_user(_username(row.name("order_id")), when)
                event_id = self.id("message", message, type(event).__name__)
                yield NewEvent(event, event_id=event_id, occurred_at=when)

    def _submitted(self, row: Row, _: str) -> Iterator[Event]:
        number = row.name("order_id")
        if number in self._quantities:
            raise row.bad("order_id", f"order {number} was submitted before")
        self._quantities[number] = row.read("size", positive)
        order_id = self._order_id(number)
        yield OrderPlaced(
            order_id=order_id,
            user_id=self.user_id(_username(number)),
            token=self.options.symbol,
            action=row.one_of("direction", SIDES),
            order_type=OrderType.LIMIT,
            quantity=row.read("size", Amount),
            price=row.read("price_x10000", lambda text: Amount(_dollars(text))),
        )
        yield OrderAccepted(order_id=order_id, venue_order_id=number)

    def _reduced(self, row: Row, _: str) -> Iterator[Event]:
        number, taken = row.name("order_id"), row.read("size", positive)
        order_id = self._order_id(number)
        if number not in self._quantities:
            yield OrderRestated(order_id=order_id, quantity_change=VenueAmount(-taken))
            return
        left = VenueAmount(self._quantities[number] - taken)
        self._quantities[number] = left
        yield OrderRestated(order_id=order_id, quantity=left)

    def _deleted(self, row: Row, _: str) -> Iterator[Event]:
        yield OrderCancelled(order_id=self._order_id(row.name("order_id")))

    def _executed(self, row: Row, message: str) -> Iterator[Event]:
        number = row.name("order_id")
        known = number in self._quantities
        yield OrderFilled(
            order_id=self._order_id(number),
            fill_id=message,
            user_id=self.user_id(_username(number)) if known else None,
            token=self.options.symbol,
            action=row.one_of("direction", SIDES),
            price=row.read("price_x10000", _dollars),
            quantity=row.read("size", positive),
            liquidity=Liquidity.MAKER,
        )

    def _executed_hidden(self, row: Row, _: str) -> Iterator[Event]:
        price = row.read("price_x10000", _dollars)
        yield PriceMarked(token=self.options.symbol, price=price, source="hidden execution")

    def _skip(self, row: Row, _: str) -> Iterator[Event]:
        self.skipped[f"messages of type {row.text('type')}"] += 1
        yield from ()

    def _order_id(self, number: str) -> UUID:
        return self.id("order", self.options.symbol, self.options.date, number)


def _username(order_number: str) -> str:
    """Deal an order out to one of the made-up users, the same one in every run."""
    return f"lobster-{zlib.crc32(order_number.encode()) % USERS + 1:02}"


def _dollars(price_x10000: str) -> VenueAmount:
    return VenueAmount(positive(price_x10000).scaleb(-4))


def _midnight(day: date, utc_offset_hours: int) -> datetime:
    """Return midnight in New York, without the zone database that a small system lacks."""
    zone = timezone(timedelta(hours=utc_offset_hours))
    return datetime.combine(day, time(), zone).astimezone(UTC)


def _after_midnight(seconds: str) -> timedelta:
    exact = VenueAmount(seconds)
    if not 0 <= exact < DAY_SECONDS:
        raise ValueError(f"{seconds} is not a second of a day")
    return timedelta(microseconds=int((exact * 1_000_000).quantize(Decimal(1), ROUND_DOWN)))


if __name__ == "__main__":
    sys.exit(run(Lobster, __doc__))
