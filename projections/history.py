"""The history of one row: every state it went through, and the event that led to each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
    """All states of a row; `note` says so where all events had to be folded, and why."""

    changes: list[Change]
    note: str | None = None


class Recorder:
    """Watches a fold, and keeps each state of one row."""

    def __init__(self, table: str, key: Any) -> None:
        self.changes: list[Change] = []
        self._table = table
        self._key = key
        self._state: State | None = None

    def __call__(self, state: State, recorded: RecordedEvent) -> None:
        """Look at the row after an event; a fold that has begun again is watched from its start."""
        if state is not self._state:
            self._state = state
            self.changes.clear()
        row = state.tables[self._table].get(state.as_id(self._key))
        if row is not None and row.changed_size == recorded.offset + 1:
            columns = copied(values_of(row_of(state, self._table, self._key)))
            before = self.changes[-1].columns if self.changes else {}
            self.changes.append(_change(recorded, before, columns))


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


def _change(recorded: RecordedEvent, before: dict[str, Any], columns: dict[str, Any]) -> Change:
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
) -> History:
    """Return all states that a row went through in the first `size` events.

    They come from the row's own streams where that is possible, else from a fold of all events.
    """
    recorder, group = Recorder(table, key), TABLES[table].only([table])
    try:
        if not isinstance(journal, Journal):
            raise NotFromStreams("a published log has no index of streams")
        events = await gather(journal, database, table, key, size, envelope=True)
        fold_events(group, journal, events, recorder)
    except NotFromStreams as reason:
        recorder = Recorder(table, key)
        await Refold(journal, group, rulings, advanced=advanced, watch=recorder).advance(size)
        return History(recorder.changes, folded_note(reason))
    return History(recorder.changes)


def folded_note(reason: NotFromStreams) -> str:
    """Say that all events were folded, and why."""
    return f"answered by a fold of all events, since {reason}"
