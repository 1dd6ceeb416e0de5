"""The guarded fold: what raises is undone, and whom it concerns is parked.

It calls the very handlers of the plain fold, and gives the very same rows where none of them
raises. Each call (one event, one table) is atomic. Where it raises, the event's lanes in that table
are parked; from then on a call waits, and its own lanes are parked with it, if one of them is
parked or if it looks at a row of which a name is. So no row is ever folded from a stale one, and
what is parked depends on the events alone, not on where batches end.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from decimal import localcontext
from typing import Any

import msgspec

from ledger.errors import LedgerError
from ledger.event import RecordedEvent
from projections.fold import Group
from projections.lanes import NO_RULINGS, Lane, Parking, Rulings, described
from projections.model import Model
from projections.numbers import CONTEXT
from projections.projection import Handler, Projection, Rows, State

EVENT = "event"
"""Stands for the column in the lane of an event that has no other."""

_NOTHING: Any = object()


class LanesUnknown(LedgerError):
    """A read model cannot say whom an event concerns, so nobody knows what would have to wait."""

    exit_code = 3

    def __init__(self, table: str, event: RecordedEvent, error: Exception) -> None:
        super().__init__(
            f"{table} cannot tell whom the {event.event.kind.__name__} at offset {event.offset} "
            f"concerns ({described(error)}); the group stops here until its fold is mended"
        )


class _Waits(Exception):
    """A handler has looked at a parked row."""


def lanes_of(projection: Projection[Any], journal: str, event: RecordedEvent) -> list[Lane]:
    """Return the lanes of an event in a table; it has one of its own if there is no other.

    Raises LanesUnknown.
    """
    try:
        names = list(dict.fromkeys(projection.names(journal, event)))
    except Exception as error:
        raise LanesUnknown(projection.name, event, error) from error
    names = names or [(EVENT, str(event.event_id))]
    return [Lane(projection.name, column, value) for column, value in names]


class Trace:
    """Notes which rows are changed by what the lanes of `old` have held back."""

    def __init__(self, old: Parking) -> None:
        self.old = old
        self.touched: dict[str, dict[Hashable, None]] = {}

    def was_held(self, projection: Projection[Any], journal: str, event: RecordedEvent) -> bool:
        """Whether the old lanes have held an event back from a table."""
        if not self.old.values(projection.name):
            return False
        lanes = lanes_of(projection, journal, event)
        parked = (self.old.lanes[lane] for lane in lanes if lane in self.old.lanes)
        return any(each.offset <= event.offset for each in parked)

    def note(self, touched: Iterable[tuple[str, Hashable]]) -> None:
        """Note rows, by table and key."""
        for table, key in touched:
            self.touched.setdefault(table, {})[key] = None

    def take(self, state: State) -> dict[str, int]:
        """Let just the noted rows count as changed; return how many there are of each table."""
        counts = {}
        for name, rows in state.tables.items():
            found = {key: rows.get(key) for key in self.touched.get(name, ())}
            rows.changed = {key: row for key, row in found.items() if row is not None}
            counts[name] = len(rows.changed)
        return counts


def fold_guarded(
    group: Group,
    state: State,
    events: Iterable[RecordedEvent],
    rulings: Rulings = NO_RULINGS,
    trace: Trace | None = None,
) -> None:
    """Fold `events` into `state`, in which all rows and parked lanes that they need must be.

    What raises is parked in `state.parking`. Raises LanesUnknown.
    """
    guard = _Guard(state, rulings)
    with state.seen_through(lambda rows: _GuardedRows(rows, guard)), localcontext(CONTEXT):
        for event in events:
            for projection, handler in group.steps.get(event.event.kind, ()):
                is_folded = guard.folds(projection, handler, event)
                if is_folded and trace and trace.was_held(projection, state.journal_name, event):
                    trace.note(guard.touched)


class _Guard:
    """Stands between handlers and rows: undoes what raises, and stops who looks at parked rows."""

    def __init__(self, state: State, rulings: Rulings) -> None:
        self.parking = state.parking
        self.touched: list[tuple[str, Hashable]] = []
        self.waits_for: Lane | None = None
        self._state = state
        self._rulings = rulings
        self._entries: list[tuple[dict[Hashable, Any], Hashable, Any]] = []
        self._rows: dict[int, tuple[Any, tuple[Any, ...], dict[str, Any]]] = {}

    def folds(self, projection: Projection[Any], handler: Handler, event: RecordedEvent) -> bool:
        """Fold one event into one table; return False where it is skipped or held back."""
        place = (projection.name, event.offset)
        if place in self._rulings.skipped:
            return False
        self.waits_for = self._parked_lane(projection, event)
        error = self._rulings.poisoned.get(place)
        if self.waits_for is None and error is None:
            error = self._call(handler, event)
        if self.waits_for is None and error is None:
            return True
        error = error if self.waits_for is None else None
        lanes = lanes_of(projection, self._state.journal_name, event)
        self.parking.hold(lanes, event, error, self.waits_for)
        return False

    def _parked_lane(self, projection: Projection[Any], event: RecordedEvent) -> Lane | None:
        parked = self.parking.values(projection.name)
        if not parked:
            return None
        lanes = lanes_of(projection, self._state.journal_name, event)
        return next((lane for lane in lanes if lane.value in parked.get(lane.column, ())), None)

    def _call(self, handler: Handler, event: RecordedEvent) -> str | None:
        """Call a handler; where it raises or waits undo what it did, and return the error."""
        self._entries.clear()
        self._rows.clear()
        self.touched.clear()
        try:
            handler(self._state, event, event.event)
        except MemoryError:  # tells of this machine, not of the event
            raise
        except Exception as error:  # noqa: BLE001 - whatever a fold raises is poison
            self._undo()
            return described(error)
        if self.waits_for is not None:
            self._undo()
        return None

    def _undo(self) -> None:
        for entries, key, value in reversed(self._entries):
            if value is _NOTHING:
                entries.pop(key, None)
            else:
                entries[key] = value
        for row, values, copies in self._rows.values():
            for name, value in zip(row.__struct_fields__, values, strict=True):
                setattr(row, name, copies.get(name, value))

    def wait(self, lane: Lane) -> None:
        """Stop a handler that has come upon a parked lane."""
        self.waits_for = lane
        raise _Waits(str(lane))

    def keep(self, row: Any, containers: Iterable[str]) -> None:
        """Keep a row as it is now, with copies of what may be changed in place."""
        if id(row) not in self._rows:
            copies = {name: _copied(getattr(row, name)) for name in containers}
            self._rows[id(row)] = row, msgspec.structs.astuple(row), copies

    def keep_entry(self, entries: dict[Hashable, Any], key: Hashable) -> None:
        """Keep an entry of an index as it is now."""
        self._entries.append((entries, key, entries.get(key, _NOTHING)))


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _copied(each) for name, each in value.items()}
    return [_copied(each) for each in value] if isinstance(value, list) else value


class _GuardedRows(Rows[Model]):
    """The same rows, seen through a guard."""

    def __init__(self, rows: Rows[Model], guard: _Guard) -> None:
        vars(self).update(vars(rows))
        self._guard = guard
        self._parked = guard.parking.values(rows.projection.name)

    def get(self, key: Hashable) -> Model | None:
        """Return the row with this key, if it is not parked."""
        self._check(self.projection.key, key)
        row = super().get(key)
        return row if row is None else self._checked(row)

    def find(self, column: str, value: Hashable) -> Model | None:
        """Return a row by an alias, if it is not parked."""
        self._check(column, value)
        row = super().find(column, value)
        if row is None or not self.projection.is_meant(column, row):
            return row  # one that only happens to be in memory
        return self._checked(row)

    def rename(self, row: Model, column: str, value: Hashable) -> None:
        """Give a row another value in an alias column."""
        self._guard.keep(self._checked(row), self.projection.containers)
        for each in (getattr(row, column), value):
            self._guard.keep_entry(self._by_alias[column], each)
        super().rename(row, column, value)

    def edit(self, key: Hashable, recorded: RecordedEvent) -> Model | None:
        """Return the row with this key, to change, if it is not parked."""
        row = self.get(key)
        return None if row is None else self.touch(row, recorded)

    def touch(self, row: Model, recorded: RecordedEvent) -> Model:
        """Note that `row` changes, if it is not parked."""
        key = getattr(row, self.projection.key)
        self._guard.keep(self._checked(row), self.projection.containers)
        self._guard.keep_entry(self.changed, key)
        self._guard.touched.append((self.projection.name, key))
        return super().touch(row, recorded)

    def put(self, row: Model) -> None:
        """Take in a new row."""
        self._guard.keep_entry(self._by_key, getattr(row, self.projection.key))
        for column, rows in self._by_alias.items():
            self._guard.keep_entry(rows, getattr(row, column))
        super().put(row)

    def _check(self, column: str, value: Hashable) -> None:
        if self._parked and column in self._parked and str(value) in self._parked[column]:
            self._guard.wait(Lane(self.projection.name, column, str(value)))

    def _checked(self, row: Model) -> Model:
        if self._parked:
            for column, value in self.projection.names_of(row):
                self._check(column, value)
        return row
