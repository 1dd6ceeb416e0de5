"""Hyperliquid: fills, their made-up orders, and the positions they add up to."""

import csv
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

from ledger.domain.orders import Action, OrderFilled, OrderPlaced, OrderType
from ledger.domain.users import UserRegistered
from tests.examples.support import Line, convert, facts, write_csv
from tests.examples.test_adapters import HYPERLIQUID, HYPERLIQUID_HEADER

Converted = Callable[[str], list[Line]]

RELATIVE_ERROR_MAX = Decimal("1e-8")  # the exchange gives ten digits


def test_a_row_is_a_fill(converted: Converted, expected_counts: dict[str, Any]) -> None:
    """As many fills as rows, nothing else from the file; accounts are users of that name."""
    found = converted("hyperliquid")
    assert Counter(map(type, facts(found))) == {
        OrderFilled: expected_counts["hyperliquid_dev"]["rows"]
    }
    users = {e.username for line in found if isinstance(e := line.event, UserRegistered)}
    assert users == {"acct_4e3a57e1", "acct_9ce99243"}


def test_fills_add_up_to_the_start_positions(
    converted: Converted, real_file: Callable[[str], Path]
) -> None:
    """In file order the signed quantities, less fees taken in the token, are the exchange's own."""
    fills: Iterator[OrderFilled] = iter(facts(converted("hyperliquid")))
    positions: dict[tuple[object, str], Decimal] = defaultdict(Decimal)
    with real_file("hyperliquid").open(encoding="utf-8") as file:
        for row, fill in zip(csv.DictReader(file), fills, strict=True):
            book = (fill.user_id, fill.token)
            start = Decimal(row["start_position"])
            assert abs(positions[book] - start) <= abs(start) * RELATIVE_ERROR_MAX
            positions[book] += fill.quantity if fill.action is Action.BUY else -fill.quantity
            positions[book] -= (fill.fee or 0) if fill.fee_currency == fill.token else 0


def test_an_order_is_placed_once_over_the_sum_of_its_fills(converted: Converted) -> None:
    """Each order is placed before its first fill, for what is filled in the end."""
    placed: dict[object, OrderPlaced] = {}
    filled: dict[object, Decimal] = defaultdict(Decimal)
    for event in (line.event for line in converted("hyperliquid")):
        if isinstance(event, OrderPlaced):
            assert placed.setdefault(event.order_id, event) is event
        if isinstance(event, OrderFilled):
            assert placed[event.order_id].token == event.token
            assert placed[event.order_id].action == event.action
            filled[event.order_id] += event.quantity
    assert {order_id: order.quantity for order_id, order in placed.items()} == filled
    assert len(placed) == 76


def test_maker_fills_tell_the_limit(converted: Converted) -> None:
    """An order with maker fills rested at their price, which bounds its taker fills too."""
    events = [line.event for line in converted("hyperliquid")]
    orders = {e.order_id: e for e in events if isinstance(e, OrderPlaced)}
    for fill in (e for e in events if isinstance(e, OrderFilled)):
        order = orders[fill.order_id]
        if order.order_type is OrderType.MARKET:
            assert (fill.liquidity, order.price) == ("taker", None)
        else:
            assert order.price is not None
            worse = fill.price - order.price
            assert worse <= 0 if order.action is Action.BUY else worse >= 0
    assert Counter(order.order_type for order in orders.values()) == {"market": 43, "limit": 33}


def test_one_order_id_in_two_books_is_two_orders(tmp_path: Path) -> None:
    """An order is (order id, account, coin, side)."""
    others = [
        HYPERLIQUID.replace(old, new)
        for old, new in (("ETH", "SOL"), ("BUY", "SELL"), ("t,", "u,"))
    ]
    file = write_csv(tmp_path / "ids.csv", HYPERLIQUID_HEADER, HYPERLIQUID, *others)
    fills = facts(convert("hyperliquid", file))
    assert len({fill.order_id for fill in fills}) == 4


def test_a_limit_order_without_one_price_has_none(tmp_path: Path) -> None:
    """Maker fills at two prices: the order was changed, so its price is not known."""
    maker = HYPERLIQUID.replace("TRUE", "FALSE")
    other = maker.replace(",1,1,1,", ",1,2,1,").replace(",10,2,", ",11,2,")
    file = write_csv(tmp_path / "two.csv", HYPERLIQUID_HEADER, maker, other)
    orders = [
        e for line in convert("hyperliquid", file) if isinstance(e := line.event, OrderPlaced)
    ]
    assert [(o.order_type, o.price, o.quantity) for o in orders] == [
        (OrderType.LIMIT, None, Decimal(4))
    ]


def test_only_a_spot_purchase_pays_in_the_token(tmp_path: Path) -> None:
    """A sale and a perpetual pay in the quote currency; a rebate is a negative fee."""
    spot = HYPERLIQUID.replace("perp", "spot")
    rows = [spot, spot.replace("BUY", "SELL"), HYPERLIQUID.replace("0.1,0xa", "-0.1,0xa")]
    numbered = [row.replace(",1,1,1,", f",1,{n},1,") for n, row in enumerate(rows)]
    fills = facts(
        convert("hyperliquid", write_csv(tmp_path / "f.csv", HYPERLIQUID_HEADER, *numbered))
    )
    assert [(f.fee_currency, f.fee) for f in fills] == [
        ("ETH", Decimal("0.1")),
        (None, Decimal("0.1")),
        (None, Decimal("-0.1")),
    ]
