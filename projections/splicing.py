"""A journal whose first events come from a published log of it, the others from the database."""

from __future__ import annotations

from collections.abc import AsyncIterator

from ledger.event import RecordedEvent
from ledger.journal import Journal
from projections.published import PublishedJournal, PublishedLogInvalid
from projections.replaying import CHUNK_SIZE


class Spliced:
    """What was signed, and after it what has not been published yet, as one journal to fold."""

    def __init__(self, published: PublishedJournal, journal: Journal, log_size: int) -> None:
        """Take both, and the log's size; PublishedLogInvalid where the log is of another one."""
        if published.name != journal.name and log_size:
            raise PublishedLogInvalid(
                published.url, f"holds journal {published.name!r}, not {journal.name!r}"
            )
        self.journal_id = journal.journal_id
        self.name = journal.name
        self._published = published
        self._journal = journal
        self._log_size = log_size

    async def read_chunks(
        self, start: int = 0, stop: int | None = None, *, chunk_size: int = CHUNK_SIZE
    ) -> AsyncIterator[list[RecordedEvent]]:
        """Yield the events with start <= offset < stop in lists, as `Journal.read_chunks`."""
        end = await self._journal.size() if stop is None else stop
        signed_end = min(end, self._log_size)
        if start < signed_end:
            signed = self._published.read_chunks(start, signed_end, chunk_size=chunk_size)
            async for chunk in signed:
                yield chunk
        start = max(start, signed_end)
        if start < end:
            async for chunk in self._journal.read_chunks(start, end, chunk_size=chunk_size):
                yield chunk
