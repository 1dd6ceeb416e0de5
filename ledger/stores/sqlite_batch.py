"""Appending to SQLite: the appends of a batch one after the other, inside one transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from ledger.conditions import AtMost, Condition, ExpectedVersion, NoEvent
from ledger.errors import JournalNotFound, LedgerError
from ledger.schema import CLAIM
from ledger.sqltypes import text_to_time, time_to_text
from ledger.stores import Appended, Outcome, PreparedAppend, PreparedEvent
from ledger.stores.outcomes import condition_error, id_conflict, tag_error

_VERSION = "SELECT coalesce(max(version), 0) FROM events WHERE journal_id = ? AND stream = ?"
_KNOWN = """SELECT "offset", stream, type, schema_version, body FROM events
    WHERE journal_id = ? AND event_id = ?"""
_TAGGED = """SELECT "offset", type FROM event_tags
    WHERE journal_id = ? AND tag = ? AND "offset" > ? ORDER BY "offset" """
_IN_STREAM = """SELECT "offset", type FROM events
    WHERE journal_id = ? AND stream = ? AND "offset" > ? ORDER BY version"""
_NTH_BACK = """SELECT "offset", recorded_at FROM events
    WHERE journal_id = ? AND stream = ? AND version = ?"""
_HOLDER = """SELECT "offset", stream FROM event_tags
    WHERE journal_id = ? AND tag = ? AND kind = 1 ORDER BY "offset" DESC LIMIT 1"""
_RELEASED = """SELECT 1 FROM event_tags
    WHERE journal_id = ? AND tag = ? AND kind = 2 AND stream = ? AND "offset" > ? LIMIT 1"""
_INSERT = "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_INSERT_TAG = "INSERT INTO event_tags VALUES (?, ?, ?, ?, ?, ?)"
_ADVANCE = "UPDATE journals SET size = ?, last_recorded_at = ? WHERE journal_id = ?"


class Batch:
    """One transaction's appends to one journal. The transaction is the caller's."""

    def __init__(self, connection: sqlite3.Connection, journal_id: int, now: datetime) -> None:
        """Read where the journal stands; `recorded_at` never decreases."""
        self._connection = connection
        self._journal_id = journal_id
        row = self._one(
            "SELECT size, last_recorded_at FROM journals WHERE journal_id = ?", journal_id
        )
        if row is None:
            raise JournalNotFound(f"#{journal_id}")
        self.size: int = row[0]
        self.now = now if row[1] is None else max(now, text_to_time(row[1]))

    def run(self, batch: Sequence[PreparedAppend]) -> list[Outcome]:
        """Append each in turn and move the journal's size."""
        before = self.size
        outcomes = [self._append(append) for append in batch]
        if self.size > before:
            self._one(_ADVANCE, self.size, time_to_text(self.now), self._journal_id)
        return outcomes

    def _append(self, append: PreparedAppend) -> Outcome:
        outcome = self._known(append) or self._refused(append)
        if outcome is not None:
            return outcome
        offsets = tuple(self._insert(event) for event in append.events)
        return Appended(offsets)

    def _known(self, append: PreparedAppend) -> Outcome | None:
        """Return the outcome of an append whose event ids are stored already."""
        rows = [self._one(_KNOWN, self._journal_id, event.event_id.hex) for event in append.events]
        found = [row[0] for row in rows if row is not None]
        if not found:
            return None
        same = all(
            row is not None
            and row[1:] == (event.stream, event.type, event.schema_version, event.body)
            for row, event in zip(rows, append.events, strict=True)
        )
        return Appended(tuple(found), duplicate=True) if same else id_conflict(append, max(found))

    def _refused(self, append: PreparedAppend) -> LedgerError | None:
        """Return the error of the first condition that does not hold, or of a taken tag."""
        for condition in append.conditions:
            found = self._violation(condition, append)
            if found is not None:
                return condition_error(condition, found)
        for event in append.events:
            for tag, kind in event.tags:
                if kind == CLAIM and (taken := self._taken(tag, event.stream)) is not None:
                    return tag_error(tag, taken)
        return None

    def _violation(self, condition: Condition, append: PreparedAppend) -> int | None:
        if isinstance(condition, ExpectedVersion):
            version = self._version(condition.stream)
            return None if version == condition.version else version
        if isinstance(condition, AtMost):
            added = sum(event.stream == condition.stream for event in append.events)
            return self._too_many(condition, added)
        return self._first_event(condition)

    def _too_many(self, condition: AtMost, added: int) -> int | None:
        """Return the event that would be one too many in the window, if it is still inside."""
        version = self._version(condition.stream) + added - condition.count
        row = self._one(_NTH_BACK, self._journal_id, condition.stream, version)
        if row is None or text_to_time(row[1]) <= self.now - condition.window:
            return None
        return int(row[0])

    def _first_event(self, condition: NoEvent) -> int | None:
        sql = _TAGGED if condition.tag is not None else _IN_STREAM
        where = condition.tag if condition.tag is not None else condition.stream
        types = condition.type_names()
        rows = self._connection.execute(sql, (self._journal_id, where, condition.after))
        return next((int(offset) for offset, type_ in rows if not types or type_ in types), None)

    def _taken(self, tag: str, stream: str) -> int | None:
        """Return since when another stream holds the tag."""
        holder = self._one(_HOLDER, self._journal_id, tag)
        if holder is None or holder[1] == stream:
            return None
        released = self._one(_RELEASED, self._journal_id, tag, holder[1], holder[0])
        return int(holder[0]) if released is None else None

    def _insert(self, event: PreparedEvent) -> int:
        offset, recorded_at = self.size, time_to_text(self.now)
        values = (
            self._journal_id,
            offset,
            event.event_id.hex,
            event.stream,
            self._version(event.stream) + 1,
            event.type,
            event.schema_version,
            recorded_at if event.occurred_at is None else time_to_text(event.occurred_at),
            recorded_at,
            event.metadata,
            event.body,
        )
        self._connection.execute(_INSERT, values)
        for tag, kind in event.tags:
            tagged = (self._journal_id, tag, offset, kind, event.type, event.stream)
            self._connection.execute(_INSERT_TAG, tagged)
        self.size += 1
        return offset

    def _version(self, stream: str) -> int:
        row = self._one(_VERSION, self._journal_id, stream)
        return int(row[0]) if row else 0

    def _one(self, sql: str, *arguments: Any) -> tuple[Any, ...] | None:
        row: tuple[Any, ...] | None = self._connection.execute(sql, arguments).fetchone()
        return row
