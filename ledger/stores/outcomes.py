"""What both stores say about appends that were not stored."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from ledger.conditions import AtMost, Condition, ExpectedVersion
from ledger.errors import (
    ConditionFailed,
    EventExists,
    EventIdConflict,
    LedgerError,
    TagTaken,
    TooManyEvents,
    VersionConflict,
)
from ledger.stores import Outcome, PreparedAppend


def condition_error(condition: Condition, found: int) -> ConditionFailed:
    """Return the error for a condition that does not hold.

    `found` is the stream's version for ExpectedVersion, else the offset of the event in the way.
    """
    if isinstance(condition, ExpectedVersion):
        return VersionConflict(condition.stream, condition.version, found)
    if isinstance(condition, AtMost):
        seconds = condition.window.total_seconds()
        return TooManyEvents(condition.stream, condition.count, seconds)
    where = f"tag {condition.tag!r}" if condition.tag else f"stream {condition.stream!r}"
    return EventExists(where, condition.type_names(), condition.after, found)


def tag_error(tag: str, found: int) -> TagTaken:
    """Return the error for a claimed tag that another stream holds since offset `found`."""
    return TagTaken(tag, found)


def id_conflict(append: PreparedAppend, found: int) -> EventIdConflict:
    """Return the error for an append of which an event id is known, at offset `found`."""
    if len(append.events) == 1:
        return EventIdConflict(append.events[0].event_id, found, "with other content")
    reason = "alone of its append or with other content"
    return EventIdConflict(append.events[0].event_id, found, reason)


async def each_alone(
    append: Callable[[PreparedAppend], Awaitable[list[Outcome]]], batch: Sequence[PreparedAppend]
) -> list[Outcome]:
    """Append one by one, so that what fails one append fails no other."""
    outcomes: list[Outcome] = []
    for one in batch:
        try:
            outcomes += await append(one)
        except LedgerError as error:
            outcomes.append(error)
    return outcomes
