"""What changed between two points: rows that came, changed, or went.

A journal is folded to the first point, then on to the second; of the rows that change on the way a
copy is kept as they were. So one fold is enough, and no table is held twice.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from decimal import localcontext
from typing import Any

import msgspec

from ledger.event import RecordedEvent
from projections.fold import Group
from projections.history import NOISE, copied
from projections.lanes import NO_RULINGS, Rulings
from projections.model import Model, values_of
from projections.numbers import CONTEXT
from projections.projection import Projection, Rows, State
from projections.replaying import Begin, Readable, Refold, fold_prefix, from_the_start

ADDED, CHANGED, GONE = "added", "changed", "gone"

Values = dict[str, Any]


class RowChange(msgspec.Struct, frozen=True):
    """What became of one row: its columns before and after; None where it is not there."""

    table: str
    key: str
    before: Values | None
    after: Values | None

    @property
    def kind(self) -> str:
        """Whether it came, changed, or went."""
        if self.before is None:
            return ADDED
        return CHANGED if self.after is not None else GONE

    def columns(self) -> dict[str, tuple[Any, Any]]:
        """Return the columns that differ, each with its value before and after."""
        before, after = self.before or {}, self.after or {}
        names = [each for each in after or before if each not in NOISE]
        return {
            name: (before.get(name), after.get(name))
            for name in names
            if before.get(name) != after.get(name)
        }

    def turned(self) -> RowChange:
        """Return the same seen from the other point."""
        return RowChange(self.table, self.key, self.after, self.before)


async def diff(
    journal: Readable,
    group: Group,
    first: int,
    second: int,
    *,
    rulings: Rulings = NO_RULINGS,
    advanced: Callable[[int], None] = lambda _: None,
    begin: Begin = from_the_start,
) -> Iterator[RowChange]:
    """Return what differs in the tables of (a part of) a group between two sizes."""
    low, high = sorted((first, second))
    changes = await _diff(journal, group, low, high, rulings, advanced, begin)
    return changes if first <= second else (each.turned() for each in changes)


async def _diff(
    journal: Readable,
    group: Group,
    low: int,
    high: int,
    rulings: Rulings,
    advanced: Callable[[int], None],
    begin: Begin,
) -> Iterator[RowChange]:
    refold = Refold(journal, group, rulings, advanced=advanced, begin=begin)
    state = await refold.advance(low)
    if not rulings and not state.parking:
        for rows in state.tables.values():
            rows.changed.clear()
        keeper = Keeper()
        with state.seen_through(keeper.view):
            after = await refold.advance(high)
        if after is state and not state.parking:
            return keeper.changes(state)
        # A handler has raised on the way: the guarded fold began again, and nothing was kept.
    before = await fold_prefix(journal, group, low, advanced, begin, rulings)
    after = await fold_prefix(journal, group, high, advanced, begin, rulings)
    return compared(before, after)


class Keeper:
    """Keeps copies of rows as they were before they first changed."""

    def __init__(self) -> None:
        self._before: dict[str, dict[Hashable, Any]] = {}

    def view(self, rows: Rows[Any]) -> Rows[Any]:
        """Return the same rows, of which copies are kept."""
        before = self._before.setdefault(rows.projection.name, {})
        return _KeepingRows(rows, before)

    def changes(self, state: State) -> Iterator[RowChange]:
        """Return what has become of the rows that changed."""
        for table, rows in state.tables.items():
            before = self._before.get(table, {})
            for key, row in rows.changed.items():
                yield from _change(rows.projection, key, before.get(key), row)


class _KeepingRows(Rows[Model]):
    """The same rows; a copy of each is kept before it changes."""

    def __init__(self, rows: Rows[Model], before: dict[Hashable, Any]) -> None:
        vars(self).update(vars(rows))
        self._before = before

    def edit(self, key: Hashable, recorded: RecordedEvent) -> Model | None:
        """Return the row with this key, to change."""
        row = self.get(key)
        return None if row is None else self.touch(row, recorded)

    def touch(self, row: Any, recorded: RecordedEvent) -> Model:
        """Note that `row` changes."""
        key = getattr(row, self.projection.key)
        if key not in self._before:
            self._before[key] = copy_of(row)
        return super().touch(row, recorded)

    def add(self, key: Hashable, recorded: RecordedEvent, **values: Any) -> Model:
        """Make a row."""
        self._before.setdefault(key, None)
        return super().add(key, recorded, **values)


def copy_of(row: Any) -> Any:
    """Return a copy of a row that later folds do not change."""
    return type(row)(**copied(msgspec.structs.asdict(row)))


def compared(before: State, after: State) -> Iterator[RowChange]:
    """Return what differs between two states of the same tables."""
    for table, rows in after.tables.items():
        olds = before.tables[table]
        keys = dict.fromkeys(getattr(each, rows.projection.key) for each in (*olds, *rows))
        for key in keys:
            yield from _change(rows.projection, key, olds.get(key), rows.get(key))


def _change(
    projection: Projection[Any], key: Hashable, before: Any, after: Any
) -> Iterable[RowChange]:
    """Return the change of a row; none where it is what it was."""
    values = [None if row is None else _shown(projection, row) for row in (before, after)]
    if values[0] == values[1]:
        return ()
    return (RowChange(projection.name, str(key), *values),)


def _shown(projection: Projection[Any], row: Any) -> Values:
    with localcontext(CONTEXT):
        return values_of(projection.finish(row))
