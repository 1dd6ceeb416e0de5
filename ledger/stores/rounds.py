"""Cutting a batch into rounds that can be checked as a set."""

from __future__ import annotations

from collections.abc import Sequence

from ledger.conditions import AtMost, ExpectedVersion
from ledger.schema import TAG
from ledger.stores import PreparedAppend


def rounds(batch: Sequence[PreparedAppend]) -> list[int]:
    """Return the number of appends in each round.

    Within a round no append looks at anything that an earlier one of the round writes, so checking
    all of them against the journal as it was gives what running them one by one would have given.
    """
    if _all_apart(batch):
        return [len(batch)]
    sizes = [0]
    written: set[object] = set()
    for append in batch:
        if not written.isdisjoint(_looks_at(append)):
            sizes.append(0)
            written.clear()
        written.update(_writes(append))
        sizes[-1] += 1
    return sizes


def _all_apart(batch: Sequence[PreparedAppend]) -> bool:
    """Tell, fast, whether each append keeps to streams of its own, as most batches do."""
    events = [event for append in batch for event in append.events]
    if len(events) > len(batch) or any(event.tags for event in events):
        return False
    for append in batch:
        for condition in append.conditions:
            if condition.stream != append.events[0].stream:
                return False
    streams = {event.stream for event in events}
    return len(streams) == len(events) == len({event.event_id for event in events})


def _looks_at(append: PreparedAppend) -> list[object]:
    """Return what the outcome of an append depends on: streams, tags and event ids."""
    found: list[object] = [event.event_id for event in append.events]
    for condition in append.conditions:
        if isinstance(condition, ExpectedVersion | AtMost) or condition.stream is not None:
            found.append(condition.stream)
        else:
            found.append(("tag", condition.tag))
    for event in append.events:
        if event.tags:
            found += [("tag", tag) for tag, kind in event.tags if kind != TAG]
    return found


def _writes(append: PreparedAppend) -> list[object]:
    """Return the streams, tags and event ids that an append adds to."""
    found: list[object] = []
    for event in append.events:
        found += (event.event_id, event.stream)
        if event.tags:
            found += [("tag", tag) for tag, _ in event.tags]
    return found
