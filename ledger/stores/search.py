"""Finding the size of a journal at a time: recorded_at never decreases along offsets."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime


async def last_recorded(
    recorded_at: Callable[[int], Awaitable[datetime]], size: int, moment: datetime
) -> int:
    """Return how many of the first `size` events were recorded at or before `moment`."""
    low, high = 0, size
    while low < high:
        middle = (low + high) // 2
        if await recorded_at(middle) <= moment:
            low = middle + 1
        else:
            high = middle
    return low
