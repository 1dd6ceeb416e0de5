"""Some events of a long stream, evenly chosen, without reading all of it."""

from __future__ import annotations

from ledger.event import RecordedEvent
from ledger.journal import Journal


async def sampled(
    journal: Journal, stream: str, start: int, stop: int, count_max: int
) -> list[RecordedEvent]:
    """Return up to `count_max` events of a stream with start <= offset < stop, in order.

    All of them, where they are not more; else every so many, each read by itself.
    """
    first = await _version_from(journal, stream, start)
    end = await _version_from(journal, stream, stop)
    step = -(-(end - first) // count_max)
    if step <= 1:
        return await journal.read_stream(stream, first - 1, stop=stop)
    found: list[RecordedEvent] = []
    for version in range(first, end, step):
        found += await journal.read_stream(stream, version - 1, limit=1)
    return found


async def _version_from(journal: Journal, stream: str, offset: int) -> int:
    """Return the first version of a stream at or above an offset, by bisection."""

    async def is_below(version: int) -> bool:
        found = await journal.read_stream(stream, version - 1, limit=1)
        return bool(found) and found[0].offset < offset

    low, high = 0, 1
    while await is_below(high):
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if await is_below(middle) else (low, middle)
    return high
