"""Lanes: whom a poisoned event concerns, and what has been decided about single events.

A *lane* is a table, a column and a value: all rows of the table that have this value there, also
those that are still to be made. Rows are found by their key and by the columns of aliases, so the
lanes of an event are all names by which its fold may find or make rows of a table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple
from uuid import UUID

import msgspec

from ledger.event import RecordedEvent

ERROR_CHARS_MAX = 500

Place = tuple[str, int]
"""A table and an offset: the fold of one event into one table."""


class Lane(NamedTuple):
    """All rows of `table` that have `value` in `column`."""

    table: str
    column: str
    value: str

    def __str__(self) -> str:
        return f"{self.table} {self.column}={self.value}"


class Parked(msgspec.Struct):
    """Since when a lane is parked, and why: the first event held back.

    `error` is what its fold raised; a lane that only waits names in `waits_for` the one for which.
    `waiting` counts the events held back.
    """

    offset: int
    event_id: UUID
    event_type: str
    error: str | None = None
    waits_for: str | None = None
    waiting: int = 1

    def __str__(self) -> str:
        why = self.error or f"waits for {self.waits_for}"
        return f"is parked at offset {self.offset} ({self.event_type}): {why}"


class Rulings(msgspec.Struct, frozen=True):
    """What has been decided about single events of a journal, for the tables of a group.

    `skipped` ones are left out of the table. `poisoned` ones count as raising this error, whatever
    their fold does: they were refused by the database, or have not been retried.
    """

    skipped: frozenset[Place] = frozenset()
    poisoned: Mapping[Place, str] = {}

    def __bool__(self) -> bool:
        return bool(self.skipped or self.poisoned)

    def concern(self, start: int, stop: int) -> bool:
        """Whether one of the events with start <= offset < stop is ruled about."""
        places = (*self.skipped, *self.poisoned)
        return any(start <= offset < stop for _, offset in places)


NO_RULINGS = Rulings()


class Parking:
    """The lanes that are parked, and which of them were parked or met since `changed` was empty."""

    def __init__(self, lanes: Mapping[Lane, Parked] | None = None) -> None:
        self.lanes: dict[Lane, Parked] = {}
        self.changed: dict[Lane, None] = {}
        self._values: dict[str, dict[str, set[str]]] = {}
        for lane, parked in (lanes or {}).items():
            self._take(lane, parked)

    def __bool__(self) -> bool:
        return bool(self.lanes)

    def values(self, table: str) -> dict[str, set[str]]:
        """Return the parked values of a table by column; it follows what is parked later."""
        return self._values.setdefault(table, {})

    def lane_of(self, table: str, names: Iterable[tuple[str, str]]) -> Lane | None:
        """Return the first of the names (column and value) that is parked in a table."""
        lanes = (Lane(table, *name) for name in names)
        return next((lane for lane in lanes if lane in self.lanes), None)

    def hold(
        self,
        lanes: Iterable[Lane],
        held: RecordedEvent,
        error: str | None,
        waits_for: Lane | None,
    ) -> None:
        """Hold an event back: park its lanes, and count it where they are parked already."""
        name, why = held.event.kind.__name__, None if waits_for is None else str(waits_for)
        for lane in lanes:
            known = self.lanes.get(lane)
            if known is None:
                event_id = UUID(str(held.event_id))  # text, if it came through a lens
                self._take(lane, Parked(held.offset, event_id, name, error, why))
            else:
                known.waiting += 1
            self.changed[lane] = None

    def _take(self, lane: Lane, parked: Parked) -> None:
        self.lanes[lane] = parked
        self.values(lane.table).setdefault(lane.column, set()).add(lane.value)


def described(error: BaseException) -> str:
    """Return type and text of an error in one bounded line that any database can hold."""
    words = " ".join(f"{type(error).__name__}: {error}".split())
    shown = "".join(char if char.isprintable() else "\ufffd" for char in words)
    return shown[:ERROR_CHARS_MAX]
