"""The one fold: read_model(N) = fold(events[0:N]).

Projecting live, replaying, verifying and rebuilding all call `Group.fold`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from decimal import localcontext
from functools import cached_property
from typing import Any
from uuid import UUID

import msgspec

from ledger.event import Event, RecordedEvent, event_types
from projections.model import ReadModel
from projections.numbers import CONTEXT
from projections.projection import Handler, Projection, State, itself


class Slicing(msgspec.Struct, frozen=True):
    """How to cut a group: each row of `tables` belongs to whom events name in the field `owner`."""

    owner: str
    tables: tuple[str, ...]


class Group:
    """Projections that advance together, in the order of their foreign keys.

    `fold_version` changes whenever the fold gives other rows for the same events. With `slicing`
    several processes may fold one journal; see `projections.slicing`.
    """

    def __init__(
        self,
        name: str,
        *projections: Projection[Any],
        fold_version: str = "1",
        slicing: Slicing | None = None,
    ) -> None:
        self.name = name
        self.projections = projections
        self.fold_version = fold_version
        self.slicing = slicing

    def only(self, tables: Iterable[str], shares: Mapping[str, Collection[str]] = {}) -> Group:
        """Return the part of the group that these tables and all that they look up make.

        Its fold gives the very same rows: what is left out was never looked at. Of the tables in
        `shares` there are only the rows that events of these types make.
        """
        by_name = {
            each.name: each.share(shares[each.name]) if each.name in shares else each
            for each in self.projections
        }
        wanted = list(tables)
        for name in wanted:
            wanted += [other for other in by_name[name].looks_up if other not in wanted]
        part = (each for name, each in by_name.items() if name in wanted)
        return self._of(part)

    def at(self, names: Mapping[str, str]) -> Group:
        """Return the same group with some tables elsewhere: their names by the usual ones."""
        moved = (
            each.at(names[each.name]) if each.name in names else each for each in self.projections
        )
        return self._of(moved)

    def _of(self, projections: Iterable[Projection[Any]]) -> Group:
        version = self.fold_version
        return Group(self.name, *projections, fold_version=version, slicing=self.slicing)

    def state(
        self, journal_id: int, journal_name: str, as_id: Callable[[UUID], Any] = itself
    ) -> State:
        """Return the state before the first event; `as_id` is `str` for events through a lens."""
        return State(journal_id, journal_name, self.projections, as_id)

    def fold(self, state: State, events: Iterable[RecordedEvent]) -> None:
        """Fold `events` into `state`, in which all rows that they need must be."""
        with localcontext(CONTEXT):
            for recorded in events:
                for handler in self._handlers[type(recorded.event)]:
                    handler(state, recorded, recorded.event)

    def finished(self, state: State, table: str) -> Iterable[ReadModel]:
        """Return all rows of a table as they are stored and shown."""
        rows = state.tables[table]
        return self._finish(rows.projection, rows)

    def changed(self, state: State, table: str) -> list[ReadModel]:
        """Return the changed rows of a table as they are stored and shown."""
        rows = state.tables[table]
        return self._finish(rows.projection, rows.changed.values())

    def _finish(self, projection: Projection[Any], rows: Iterable[ReadModel]) -> list[ReadModel]:
        with localcontext(CONTEXT):
            return [projection.finish(row) for row in rows]

    @cached_property
    def event_types(self) -> frozenset[type[Event]]:
        """The types of event that the group's folds take in."""
        return frozenset(known for each in self.projections for known in each.handlers)

    @cached_property
    def ignored(self) -> tuple[str, ...]:
        """The names of the types of event, among those that are known, that no fold takes in."""
        wanted = {known.__name__ for known in self.event_types}
        return tuple(name for name in event_types() if name not in wanted)

    @cached_property
    def steps(self) -> dict[type[Event], tuple[tuple[Projection[Any], Handler], ...]]:
        """All handlers by event type, with the projections whose they are."""
        return {
            known: tuple((e, e.handlers[known]) for e in self.projections if known in e.handlers)
            for known in self.event_types
        }

    @cached_property
    def _handlers(self) -> _Handlers:
        """All handlers by event type, each tuple in the order of the projections."""
        return _Handlers(
            (known, tuple(e.handlers[known] for e in self.projections if known in e.handlers))
            for known in self.event_types
        )


class _Handlers(dict[type[Event], tuple[Handler, ...]]):
    """Finds the handlers of classes that a lens makes, and none for types that nobody folds."""

    def __missing__(self, event_class: type[Event]) -> tuple[Handler, ...]:
        found = self[event_class] = self.get(event_class.kind, ())
        return found
