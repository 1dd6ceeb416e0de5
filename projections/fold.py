"""The one fold: read_model(N) = fold(events[0:N]).

Projecting live, replaying, verifying and rebuilding all call `Group.fold`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import localcontext
from functools import cached_property
from typing import Any

from ledger.event import Event, RecordedEvent
from projections.model import ReadModel
from projections.numbers import CONTEXT
from projections.projection import Handler, Projection, State


class Group:
    """Projections that advance together, in the order of their foreign keys.

    `fold_version` changes whenever the fold gives other rows for the same events.
    """

    def __init__(self, name: str, *projections: Projection[Any], fold_version: str = "1") -> None:
        self.name = name
        self.projections = projections
        self.fold_version = fold_version

    def only(self, tables: Iterable[str]) -> Group:
        """Return the part of the group that these tables and all that they look up make.

        Its fold gives the very same rows: what is left out was never looked at.
        """
        wanted, by_name = list(tables), {each.name: each for each in self.projections}
        for name in wanted:
            wanted += [other for other in by_name[name].looks_up if other not in wanted]
        part = (each for each in self.projections if each.name in wanted)
        return Group(self.name, *part, fold_version=self.fold_version)

    def at(self, names: Mapping[str, str]) -> Group:
        """Return the same group with some tables elsewhere: their names by the usual ones."""
        moved = (
            each.at(names[each.name]) if each.name in names else each for each in self.projections
        )
        return Group(self.name, *moved, fold_version=self.fold_version)

    def state(self, journal_id: int, journal_name: str) -> State:
        """Return the state before the first event."""
        return State(journal_id, journal_name, self.projections)

    def fold(self, state: State, events: Iterable[RecordedEvent]) -> None:
        """Fold `events` into `state`, in which all rows that they need must be."""
        with localcontext(CONTEXT):
            for recorded in events:
                for handler in self._handlers.get(type(recorded.event), ()):
                    handler(state, recorded, recorded.event)

    def finished(self, state: State, table: str) -> Iterable[ReadModel]:
        """Return all rows of a table as they are stored and shown."""
        rows = state.tables[table]
        return self._finish(rows.projection, rows)

    def changed(self, state: State, table: str) -> Iterable[ReadModel]:
        """Return the changed rows of a table as they are stored and shown."""
        rows = state.tables[table]
        return self._finish(rows.projection, rows.changed.values())

    def _finish(self, projection: Projection[Any], rows: Iterable[ReadModel]) -> list[ReadModel]:
        with localcontext(CONTEXT):
            return [projection.finish(row) for row in rows]

    @cached_property
    def _handlers(self) -> dict[type[Event], tuple[Handler, ...]]:
        """All handlers by event type, each tuple in the order of the projections."""
        types = {event_type for each in self.projections for event_type in each.handlers}
        return {
            event_type: tuple(
                each.handlers[event_type]
                for each in self.projections
                if event_type in each.handlers
            )
            for event_type in types
        }
