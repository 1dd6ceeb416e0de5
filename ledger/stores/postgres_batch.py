"""A batch of appends as the arrays that `ledger_append` takes, and its answer as outcomes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from itertools import islice
from typing import Any

import asyncpg

from ledger.conditions import AtMost, Condition, ExpectedVersion
from ledger.stores import Appended, Outcome, PreparedAppend
from ledger.stores.outcomes import condition_error, id_conflict, tag_error

_STORED, _KNOWN, _FAILED, _ID_CONFLICT = range(4)
_VERSION, _TAG, _STREAM, _WINDOW = range(1, 5)
_ANY_VERSION = -1
_USUAL: tuple[object, ...] = (..., 1, _ANY_VERSION, ..., ..., ..., 1, None, None, ...)
"""What the function takes each missing value of a column of events for; ... where none may miss."""


class Batch:
    """The columns of a batch; indexes in them count from 1, as in PostgreSQL."""

    def __init__(self, appends: Sequence[PreparedAppend], rounds: Sequence[int]) -> None:
        """Lay out `appends`, of which each round holds so many."""
        self._appends = appends
        self._events: list[tuple[Any, ...]] = []
        self._tags: list[tuple[int, str, int]] = []
        self._conditions: list[tuple[Any, ...]] = []
        self._condition_of: list[Condition] = []
        numbered = iter(enumerate(appends, 1))
        for size in rounds:
            places: dict[str, int] = {}
            for number, append in islice(numbered, size):
                self._add(number, append, places)

    def _add(self, number: int, append: PreparedAppend, places: dict[str, int]) -> None:
        expected = self._add_conditions(number, append) if append.conditions else {}
        for event in append.events:
            nth = places[event.stream] = places.get(event.stream, 0) + 1
            self._events.append(
                (
                    number,
                    nth,
                    expected.pop(event.stream, _ANY_VERSION) if expected else _ANY_VERSION,
                    event.event_id,
                    event.stream,
                    event.type,
                    event.schema_version,
                    event.occurred_at,
                    event.metadata,
                    event.body,
                )
            )
            for tag, kind in event.tags:
                self._tags.append((len(self._events), tag, kind))

    def _add_conditions(self, number: int, append: PreparedAppend) -> dict[str, int]:
        """Return the versions expected of the append's own streams; lay out all else.

        The function looks up the version of every stream it writes anyway.
        """
        own = {event.stream for event in append.events}
        expected: dict[str, int] = {}
        for condition in append.conditions:
            if (
                isinstance(condition, ExpectedVersion)
                and condition.stream in own
                and condition.stream not in expected
            ):
                expected[condition.stream] = condition.version
            else:
                self._conditions.append((number, *_row(condition, append)))
                self._condition_of.append(condition)
        return expected

    def arguments(self) -> list[list[Any]]:
        """Return the arrays in the function's order."""
        events = _transposed(self._events, len(_USUAL))
        return [
            *(_shortened(column, usual) for column, usual in zip(events, _USUAL, strict=True)),
            *_transposed(self._tags, 3),
            *_transposed(self._conditions, 7),
        ]

    def outcomes(self, answer: asyncpg.Record) -> list[Outcome]:
        """Return the outcome of each append."""
        offsets = iter(answer["e_offset"])
        statuses = zip(answer["a_status"], answer["a_which"], answer["a_found"], strict=True)
        return [
            self._outcome(append, tuple(islice(offsets, len(append.events))), *status)
            for append, status in zip(self._appends, statuses, strict=True)
        ]

    def _outcome(
        self, append: PreparedAppend, offsets: tuple[int, ...], status: int, which: int, found: int
    ) -> Outcome:
        if status in (_STORED, _KNOWN):
            return Appended(offsets, duplicate=status == _KNOWN)
        if status == _ID_CONFLICT:
            return id_conflict(append, found)
        if status == _FAILED:
            return condition_error(self._failed(which), found)
        return tag_error(self._tags[which - 1][1], found)

    def _failed(self, which: int) -> Condition:
        """Return the condition at fault; the version of an own stream stands by its event."""
        if which > 0:
            return self._condition_of[which - 1]
        _, _, expected, _, stream, *_ = self._events[-which - 1]
        return ExpectedVersion(stream, expected)


def _row(condition: Condition, append: PreparedAppend) -> tuple[Any, ...]:
    """Return kind, stream, tag, types, number and window of a condition."""
    if isinstance(condition, ExpectedVersion):
        return _VERSION, condition.stream, "", "", condition.version, timedelta(0)
    if isinstance(condition, AtMost):
        added = sum(event.stream == condition.stream for event in append.events)
        return _WINDOW, condition.stream, "", "", condition.count - added, condition.window
    types = ",".join(condition.type_names())
    if condition.tag is not None:
        return _TAG, "", condition.tag, types, condition.after, timedelta(0)
    return _STREAM, condition.stream, "", types, condition.after, timedelta(0)


def _shortened(column: list[Any], usual: object) -> list[Any]:
    """Return an empty array where all values are usual: most batches need only half the columns."""
    return [] if usual is not ... and column.count(usual) == len(column) else column


def _transposed(rows: Sequence[tuple[Any, ...]], width: int) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)] if rows else [[]] * width
