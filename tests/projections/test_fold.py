"""The fold against a slow one that shares no code with it, and where batches end."""

from __future__ import annotations

from collections import defaultdict
from decimal import ROUND_DOWN, Decimal, getcontext, localcontext
from fractions import Fraction
from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.event import RecordedEvent
from projections.fold import Group
from projections.groups import GROUPS
from projections.model import values_of
from projections.orders import Order
from projections.positions import Position
from tests.projections.random_events import random_events
from tests.projections.slow_fold import SlowFold
from tests.projections.support import JOURNAL, JOURNAL_ID, folded, record

SEEDS, COUNTS = st.integers(0, 2**32), st.integers(1, 150)
"""A shorter count gives a beginning of the same history: failures shrink to the event at fault."""


class Shelf:
    """Rows between batches, as tables would keep them."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.rows: dict[str, dict[Any, dict[str, Any]]] = defaultdict(dict)

    def fold(self, batch: list[RecordedEvent]) -> None:
        """Fold one batch on nothing but the rows that its events ask for."""
        state = self.group.state(JOURNAL_ID, JOURNAL)
        for projection in self.group.projections:
            keys = {projection.wanted(each.event) for each in batch}
            wanted = {
                (alias.column, name)
                for alias in projection.aliases
                for each in batch
                for name in alias.wanted(each.event)
            }
            for key, stored in self.rows[projection.name].items():
                is_found = any(
                    stored.get(column) == name
                    and (column != "book" or stored.get("status", "open") == "open")
                    for column, name in wanted
                )
                if not projection.append_only and (key in keys or is_found):
                    copied = {n: dict(v) if type(v) is dict else v for n, v in stored.items()}
                    state.tables[projection.name].put(projection.row(**copied))
        self.group.fold(state, batch)
        for name, rows in state.tables.items():
            for row in self.group.changed(state, name):
                self.rows[name][getattr(row, rows.projection.key)] = values_of(row)


@settings(max_examples=150, deadline=None)
@given(SEEDS, COUNTS, st.lists(st.integers(1, 30), min_size=1))
def test_batches_do_not_matter(seed: int, count: int, sizes: list[int]) -> None:
    """Any batch sizes, with rows stored and loaded in between, lead to exactly the same rows."""
    events = random_events(Random(seed), count)
    recorded = record(events)
    for group in GROUPS.values():
        shelf, start = Shelf(group), 0
        while start < len(recorded):
            size = sizes[start % len(sizes)]
            shelf.fold(recorded[start : start + size])
            start += size
        state = folded(events, group)
        for name, rows in state.tables.items():
            key = rows.projection.key
            assert shelf.rows[name] == {getattr(row, key): values_of(row) for row in rows}


def test_the_callers_decimal_context_does_not_matter() -> None:
    """A fold computes the same whatever precision and rounding its caller has set."""
    events = random_events(Random(7), 400)
    expected = folded(events)
    with localcontext(getcontext()) as context:
        context.prec, context.rounding = 5, ROUND_DOWN
        found = folded(events)
    for name, rows in found.tables.items():
        assert [values_of(row) for row in rows] == [values_of(row) for row in expected.tables[name]]


@settings(max_examples=300, deadline=None)
@given(SEEDS, COUNTS)
def test_a_slow_fold_agrees(seed: int, count: int) -> None:
    """Positions and orders are those of plain fractions, whatever the facts."""
    events = random_events(Random(seed), count, odd_chance=0)
    state, slow = folded(events), SlowFold()
    slow.fold(events)
    rows = list(state.rows(Position))
    assert [row.status for row in rows] == [cycle.status for cycle in slow.cycles]
    for row, cycle in zip(rows, slow.cycles, strict=True):
        assert is_near(row.exact_size, cycle.size)
        assert is_near(row.exact_entry_price, cycle.average)
        assert is_near(row.exact_realized_pnl, cycle.gained)
        assert is_near(row.exact_fees, cycle.fees)
        assert (row.user_id, row.owner_id) == (cycle.owner, cycle.holder)
        assert row.other_fees.keys() == cycle.other_fees.keys()
        for currency, fee in cycle.other_fees.items():
            assert is_near(Decimal(row.other_fees[currency]), fee)
        assert row.armed_size == cycle.armed_size
        assert row.closing_order_id == (cycle.closer.order_id if cycle.closer else None)
        assert row.cost_basis == 0 if row.status != "open" else row.exact_size != 0
    orders = {each.order_id: each for each in state.rows(Order)}
    assert orders.keys() == slow.orders.keys()
    for order_id, expected in slow.orders.items():
        order = orders[order_id]
        assert order.status == expected.status()
        assert is_near(order.exact_filled_quantity, expected.filled)
        assert is_near(order.exact_notional, expected.notional)
        assert is_near(order.exact_fees, expected.fees)
        assert (order.order_type is not None) == expected.is_placed


def is_near(value: Decimal, fraction: Fraction) -> bool:
    """Whether 50 digits of `fraction` could give `value`."""
    return abs(Fraction(value) - fraction) <= Fraction(1, 10**30)
