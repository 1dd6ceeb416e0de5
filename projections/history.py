"""The history of one row: every state it went through, and the event that led to each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import takewhile
from typing import Any

import msgspec

from ledger.event import RecordedEvent
from ledger.journal import Journal
from ledger.sqltypes import time_to_text
from projections.database import Database
from projections.groups import TABLES
from projections.keyed import NotFromStreams, fold_events, gather, row_of
from projections.lanes import NO_RULINGS, Rulings
from projections.model import values_of
from projections.projection import State
from projections.replaying import Readable, Refold

NOISE = ("journal_id", "changed_size")
"""Columns in which states always differ, or never do."""


class Change(msgspec.Struct, frozen=True):
    """A state that a row went through, with the event that led to it.

    `columns` has all of them, by name; `changed` names those that differ from the state before.
    """

    offset: int
    event_id: str
    event_type: str
    stream: str
    recorded_at: str
    occurred_at: str
    actor: str | None
    request_id: str | None
    correlation_id: str | None
    causation_id: str | None
    changed: list[str]
    columns: dict[str, Any]


class History(msgspec.Struct, frozen=True):
    """States of a row; `note` says so where all events had to be folded, and why."""

    changes: list[Change]
    note: str | None = None


class Window(msgspec.Struct, frozen=True):
    """Which states of a row are asked for: those behind an offset, the first `limit` of them."""

    after: int = -1
    limit: int | None = None


ALL_STATES = Window()


class Recorder:
    """Watches a fold, and keeps the states of one row that are asked for."""

    def __init__(self, table: str, key: Any, window: Window = ALL_STATES) -> None:
        self.changes: list[Change] = []
        self._table = table
        self._key = key
        self._window = window
        self._state: State | None = None
        self._before: dict[str, Any] = {}

    @property
    def is_full(self) -> bool:
        """Whether all that is asked for has been kept."""
        return self._window.limit is not None and len(self.changes) >= self._window.limit

    def __call__(self, state: State, recorded: RecordedEvent) -> None:
        """Look at the row after an event; a fold that has begun again is watched from its start."""
        if state is not self._state:
            self._state, self._before = state, {}
            self.changes.clear()
        row = state.tables[self._table].get(state.as_id(self._key))
        if row is None or row.changed_size != recorded.offset + 1 or self.is_full:
            return
        columns = copied(values_of(row_of(state, self._table, self._key)))
        if recorded.offset > self._window.after:
            self.changes.append(change_of(recorded, self._before, columns))
        self._before = columns


def copied(value: Any) -> Any:
    """Return a value that later folds do not change in place."""
    if isinstance(value, dict):
        return {name: copied(each) for name, each in value.items()}
    return [copied(each) for each in value] if isinstance(value, list) else value


def differing(before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    """Name the columns that differ between two states of a row, where that says anything."""
    for name, value in after.items():
        if name not in NOISE and before.get(name) != value:
            yield name


def change_of(recorded: RecordedEvent, before: dict[str, Any], columns: dict[str, Any]) -> Change:
    """Return the state that an event led to, from the columns before and after it."""
    metadata = recorded.metadata
    return Change(
        offset=recorded.offset,
        event_id=str(recorded.event_id),
        event_type=recorded.event.kind.__name__,
        stream=recorded.stream,
        recorded_at=time_to_text(recorded.recorded_at),
        occurred_at=time_to_text(recorded.occurred_at),
        actor=metadata.actor,
        request_id=metadata.request_id,
        correlation_id=_text(metadata.correlation_id),
        causation_id=_text(metadata.causation_id),
        changed=list(differing(before, columns)),
        columns=columns,
    )


def _text(value: object) -> str | None:
    return None if value is None else str(value)


async def history_of(
    journal: Readable,
    database: Database | None,
    table: str,
    key: Any,
    size: int,
    *,
    rulings: Rulings = NO_RULINGS,
    advanced: Callable[[int], None] = lambda _: None,
    window: Window = ALL_STATES,
    most: int | None = None,
) -> History:
    """Return the states that a row went through in the first `size` events.

    They come from the row's own streams where that is possible, else from a fold of all events.
    """
    recorder, group = Recorder(table, key, window), TABLES[table].only([table])
    try:
        if not isinstance(journal, Journal):
            raise NotFromStreams("a published log has no index of streams")
        events = await gather(journal, database, table, key, size, envelope=True, most=most)
        fold_events(group, journal, takewhile(lambda _: not recorder.is_full, events), recorder)
    except NotFromStreams as reason:
        recorder = Recorder(table, key, window)
        await Refold(journal, group, rulings, advanced=advanced, watch=recorder).advance(size)
        return History(recorder.changes, folded_note(reason))
    return History(recorder.changes)


def folded_note(reason: NotFromStreams) -> str:
    """Say that all events were folded, and why."""
    return f"answered by a fold of all events, since {reason}"
