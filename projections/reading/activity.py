"""How a journal grew: its size at some moments, for a time line."""

from __future__ import annotations

from datetime import datetime
from typing import cast

import msgspec

from ledger.journal import Journal
from ledger.sqltypes import text_to_time
from ledger.stores.queries import Queries

SAMPLES_MAX = 1000

# The places of the samples are in the query, so that it is one, with a look-up for each of them.
_RECORDED = """WITH RECURSIVE places (n) AS (
    SELECT CAST(0 AS bigint) UNION ALL SELECT n + 1 FROM places WHERE n < CAST($3 AS bigint))
    SELECT n, (SELECT recorded_at FROM events WHERE journal_id = CAST($1 AS bigint)
        AND "offset" = CAST($2 AS bigint) * n / CAST($3 AS bigint)) FROM places ORDER BY n"""


class Activity(msgspec.Struct, frozen=True):
    """A journal's size, and samples of how it got there, the first and last event among them.

    A sample is a size, and when the last of so many events was recorded.
    """

    size: int
    samples: tuple[tuple[int, datetime], ...]


async def activity(journal: Journal, samples: int = 120) -> Activity:
    """Return how a journal grew, in up to so many samples, evenly spaced by offset.

    `samples` is 2 to 1000.
    """
    size = await journal.size()
    steps = max(1, min(samples, SAMPLES_MAX, size) - 1)
    if size == 0:
        return Activity(0, ())
    store = cast(Queries, journal.store)
    rows = await store.query(_RECORDED, journal.journal_id, size - 1, steps)
    places = [((size - 1) * n // steps, recorded_at) for n, recorded_at in rows]
    found = {offset + 1: _time(at) for offset, at in places if at is not None}
    return Activity(size, tuple(found.items()))


def _time(stored: datetime | str) -> datetime:
    """Return a time; SQLite holds text."""
    return text_to_time(stored) if isinstance(stored, str) else stored
