"""Which events a report is about, and reading them in chunks, however many there are."""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import aclosing
from typing import cast

import msgspec

from ledger.event import Event, RecordedEvent, event_types
from ledger.journal import Journal
from projections.points import InvalidRequest, parsed_time, root_at

CHUNK_SIZE = 2_000


class InvalidSpan(InvalidRequest):
    """No such part of the journal can be reported on."""


class Span(msgspec.Struct, frozen=True):
    """The events with `start` <= offset < `stop` of a journal.

    It is provisional where `stop` was found by a time that has not passed yet: more events of that
    time may still be recorded. `root` is the journal's Merkle root at `stop` in base64, None where
    it is not sealed so far.
    """

    journal: str
    start: int
    stop: int
    provisional: bool = False
    root: str | None = None

    @property
    def size(self) -> int:
        """The journal's size that the report is as of."""
        return self.stop


async def find_span(journal: Journal, first: str | None, last: str | None) -> Span:
    """Return the events from one point to another; a point is a size, or a time of recording.

    A time stands for the size of the journal then. So two reports of which one begins where the
    other ends have all events between them, and none twice. The defaults are the journal's
    beginning and its present end. Raises InvalidRequest.
    """
    end = await journal.size()
    start, _ = (0, False) if first is None else await _size_of(journal, "--from", first)
    stop, provisional = (end, False) if last is None else await _size_of(journal, "--to", last)
    if stop > end:
        raise InvalidSpan(f"--to: journal {journal.name!r} holds only {end} events")
    if start > stop:
        raise InvalidSpan(f"--from {first} (size {start}) lies behind the end at size {stop}")
    root = await root_at(journal, stop)
    root_text = None if root is None else base64.b64encode(root).decode()
    return Span(journal.name, start, stop, provisional, root_text)


async def _size_of(journal: Journal, option: str, text: str) -> tuple[int, bool]:
    """Return a point's size, and whether it is provisional."""
    if text.isascii() and text.isdigit():
        return int(text), False
    moment = parsed_time(text, option)
    if moment is None:
        raise InvalidSpan(f"{option}: give a size or a time")
    found = await journal.size_at(moment)
    return found.size, found.provisional


async def read_span(
    journal: Journal, span: Span, types: Iterable[type[Event]]
) -> AsyncIterator[tuple[list[RecordedEvent], int]]:
    """Yield the events of these types, in order and in lists, each with the number of offsets.

    Raises StoredEventInvalid at an event that this program cannot decode, also one whose type it
    does not know.
    """
    wanted = tuple(types)
    names = {each.__name__ for each in wanted}
    ignored = [name for name in event_types() if name not in names]
    for start in range(span.start, span.stop, CHUNK_SIZE):
        stop = min(span.stop, start + CHUNK_SIZE)
        found = await journal.read_but(ignored, start, stop)
        yield [each for each in found if isinstance(each.event, wanted)], stop - start


async def first_event(journal: Journal, stream: str, stop: int) -> Event | None:
    """Return the event that began a stream, None where none did before offset `stop`."""
    chunks = journal.read_chunks(0, stop, stream=stream, chunk_size=1)
    async with aclosing(cast("AsyncGenerator[list[RecordedEvent]]", chunks)) as found:
        async for [recorded] in found:
            return recorded.event
    return None
