"""Folding a journal afresh, in memory: the state of all tables as of any size."""

from __future__ import annotations

from collections.abc import Callable

from ledger.journal import Journal
from projections.fold import Group
from projections.projection import State

CHUNK_SIZE = 5000


async def fold_prefix(
    journal: Journal, group: Group, size: int, advanced: Callable[[int], None] = lambda _: None
) -> State:
    """Return read_model(size): the state of `group` after the first `size` events.

    `advanced` is told how many events were folded, chunk by chunk.
    """
    state = group.state(journal.journal_id, journal.name)
    async for events in journal.read_chunks(0, size, chunk_size=CHUNK_SIZE):
        group.fold(state, events)
        advanced(len(events))
    return state
