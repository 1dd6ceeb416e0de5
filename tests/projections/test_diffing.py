"""What changed between two points: one fold, the same as comparing two."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from ledger.journal import Journal
from projections.diffing import ADDED, CHANGED, GONE, RowChange, diff
from projections.fold import Group
from projections.groups import GROUPS, TRADING
from projections.lanes import Rulings
from projections.model import values_of
from projections.replaying import fold_prefix
from tests.projections.poison import at, poisoned
from tests.projections.random_events import random_events
from tests.projections.support import append

SIZE = 200

Values = dict[str, Any]


async def rows_at(
    journal: Journal, group: Group, size: int, rulings: Rulings
) -> dict[tuple[str, str], Values]:
    """Return the columns of all rows of a group."""
    state = await fold_prefix(journal, group, size, rulings=rulings)
    return {
        (each.name, str(getattr(row, each.key))): values_of(row)
        for each in group.projections
        for row in group.finished(state, each.name)
    }


async def assert_differences(
    journal: Journal, group: Group, first: int, second: int, rulings: Rulings | None = None
) -> list[RowChange]:
    """Hold that a diff is that of two folds; return it."""
    rulings = rulings or Rulings()
    before = await rows_at(journal, group, first, rulings)
    after = await rows_at(journal, group, second, rulings)
    changes = list(await diff(journal, group, first, second, rulings=rulings))
    found = {(each.table, each.key): (each.before, each.after) for each in changes}
    assert len(found) == len(changes)
    assert found == {
        key: (before.get(key), after.get(key))
        for key in before | after
        if before.get(key) != after.get(key)
    }
    return changes


@pytest.mark.parametrize("seed", range(3))
async def test_one_fold_tells_what_two_would(journal: Journal, seed: int) -> None:
    """For every group, forwards and backwards, also from nothing and between the same."""
    random = Random(seed)
    await append(journal, random_events(random, SIZE))
    for group in GROUPS.values():
        for _ in range(4):
            first, second = random.sample(range(SIZE + 1), 2)
            await assert_differences(journal, group, first, second)
        assert await assert_differences(journal, group, SIZE // 2, SIZE // 2) == []
        await assert_differences(journal, group, 0, SIZE)


async def test_rows_come_change_and_go(journal: Journal) -> None:
    """Seen from the other side, what came has gone, and the values are the other way round."""
    await append(journal, random_events(Random(1), SIZE))
    there = await assert_differences(journal, TRADING, 120, SIZE)
    back = await assert_differences(journal, TRADING, SIZE, 120)
    assert {each.kind for each in there} == {ADDED, CHANGED}
    assert {each.kind for each in back} == {GONE, CHANGED}
    assert [each.turned() for each in back] == there
    changed = next(each for each in there if each.kind == CHANGED and each.table == "orders")
    assert changed.before is not None
    assert changed.after is not None
    for name, (old, new) in changed.columns().items():
        assert (changed.before[name], changed.after[name]) == (old, new)
        assert old != new


@pytest.mark.parametrize("place", [20, 150])
async def test_poison_on_the_way(journal: Journal, place: int) -> None:
    """Where a handler raises before or between the points, both sides are as the tables were."""
    await append(journal, random_events(Random(2), SIZE))
    every = at(*((each.name, place) for each in TRADING.projections))
    group = poisoned(TRADING, every)
    await assert_differences(journal, group, 100, SIZE)


async def test_skipped_events_are_left_out(journal: Journal) -> None:
    """Rulings hold on both sides."""
    await append(journal, random_events(Random(2), SIZE))
    skipped = frozenset((each.name, n) for each in TRADING.projections for n in range(90, 130))
    await assert_differences(journal, TRADING, 100, SIZE, Rulings(skipped))
