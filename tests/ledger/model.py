"""A journal as plain lists, written for clearness alone: what every store must agree with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from ledger.conditions import AtMost, Condition, ExpectedVersion, NoEvent
from ledger.errors import (
    ConditionFailed,
    EventExists,
    EventIdConflict,
    LedgerError,
    TagTaken,
    TooManyEvents,
    VersionConflict,
)
from ledger.event import NewEvent
from ledger.stores import Appended
from tests.ledger.support import START, AnyEvent


@dataclass(frozen=True)
class Append:
    """One call of `Journal.append`."""

    events: tuple[NewEvent, ...]
    conditions: tuple[Condition, ...] = ()


@dataclass(frozen=True)
class Row:
    """An event as the model holds it."""

    event_id: UUID
    stream: str
    version: int
    event: AnyEvent
    recorded_at: datetime


@dataclass
class ModelJournal:
    """Appends run one after the other, each to its end."""

    rows: list[Row] = field(default_factory=list)
    now: datetime = START

    def run(self, batch: Sequence[Append], now: datetime) -> list[tuple[object, ...]]:
        """Return the outcomes of appends that were queued in this order and stored at `now`."""
        self.now = max(now, self.rows[-1].recorded_at) if self.rows else now
        return [outcome(self._append(append)) for append in batch]

    def _append(self, append: Append) -> Appended | LedgerError:
        known = {row.event_id: offset for offset, row in enumerate(self.rows)}
        found = [known[new.event_id] for new in append.events if new.event_id in known]
        if found:
            return self._known(append, found)
        for error in (self._failed(append), self._taken(append)):
            if error is not None:
                return error
        return Appended(tuple(self._store(new) for new in append.events))

    def _known(self, append: Append, found: list[int]) -> Appended | LedgerError:
        rows = [self.rows[offset] for offset in found]
        stored = [(row.event_id, row.stream, row.event) for row in rows]
        given = [(new.event_id, new.stream, new.event) for new in append.events]
        if stored == given:
            return Appended(tuple(found), duplicate=True)
        return EventIdConflict(append.events[0].event_id, max(found), "")

    def _failed(self, append: Append) -> ConditionFailed | None:
        """Return the first failure; the versions of the append's own streams come first."""
        streams = [new.stream for new in append.events]
        own: dict[str, Condition] = {}
        for condition in append.conditions:
            if isinstance(condition, ExpectedVersion) and condition.stream in streams:
                own.setdefault(condition.stream, condition)
        first = [own[stream] for stream in dict.fromkeys(streams) if stream in own]
        for condition in (*first, *append.conditions):
            if error := self._check(condition, streams):
                return error
        return None

    def _check(self, condition: Condition, written: list[str]) -> ConditionFailed | None:
        if isinstance(condition, ExpectedVersion):
            version = len(self._stream(condition.stream))
            if version == condition.version:
                return None
            return VersionConflict(condition.stream, condition.version, version)
        if isinstance(condition, AtMost):
            return self._too_many(condition, written.count(condition.stream))
        return self._exists(condition)

    def _too_many(self, condition: AtMost, added: int) -> ConditionFailed | None:
        start = self.now - condition.window
        young = [row for row in self._stream(condition.stream) if row.recorded_at > start]
        if len(young) + added <= condition.count:
            return None
        return TooManyEvents(condition.stream, condition.count, condition.window.total_seconds())

    def _exists(self, condition: NoEvent) -> ConditionFailed | None:
        for offset, row in enumerate(self.rows):
            event = row.event
            tags = (*event.tagged, *event.claimed, *event.released)
            here = condition.stream == row.stream or condition.tag in tags
            of_type = not condition.types or type(event) in condition.types
            if here and of_type and offset > condition.after:
                where = f"tag {condition.tag!r}" if condition.tag else f"stream {row.stream!r}"
                return EventExists(where, condition.type_names(), condition.after, offset)
        return None

    def _taken(self, append: Append) -> ConditionFailed | None:
        for new in append.events:
            assert isinstance(new.event, AnyEvent)
            for tag in new.event.claimed:
                holder, since = self._holder(tag)
                if holder not in (None, new.stream):
                    return TagTaken(tag, since)
        return None

    def _holder(self, tag: str) -> tuple[str | None, int]:
        """Return which stream holds the tag, and since when."""
        holder, since = None, -1
        for offset, row in enumerate(self.rows):
            if tag in row.event.released and holder == row.stream:
                holder = None
            if tag in row.event.claimed:
                holder, since = row.stream, offset
        return holder, since

    def _stream(self, stream: str) -> list[Row]:
        return [row for row in self.rows if row.stream == stream]

    def _store(self, new: NewEvent) -> int:
        assert isinstance(new.event, AnyEvent)
        version = len(self._stream(new.stream)) + 1
        self.rows.append(Row(new.event_id, new.stream, version, new.event, self.now))
        return len(self.rows) - 1


def outcome(result: object) -> tuple[object, ...]:
    """Return what must be equal of an answer or an error."""
    match result:
        case Appended(offsets, duplicate):
            return "duplicate" if duplicate else "stored", offsets
        case VersionConflict():
            return "version", result.stream, result.expected, result.actual
        case EventExists():
            return "exists", result.where, result.offset
        case TagTaken():
            return "taken", result.tag, result.offset
        case TooManyEvents():
            return "too many", result.stream, result.count, result.window_seconds
        case EventIdConflict():
            return "known id", result.event_id, result.offset
    raise AssertionError(f"unexpected: {result!r}")
