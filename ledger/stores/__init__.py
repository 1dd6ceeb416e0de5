"""Where journals are kept: one protocol, two databases.

A store is handed batches of prepared appends and answers for each append on its own. Outcomes equal
running the appends one after the other, in the order given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Protocol
from uuid import UUID

import msgspec

from ledger.conditions import AtMost, ExpectedVersion, NoEvent
from ledger.errors import LedgerError
from ledger.stores.wakeups import Wakeups

Clock = Callable[[], datetime]


class PreparedEvent(msgspec.Struct, frozen=True, gc=False):
    """A checked event, ready to be written; `occurred_at` None means the time of recording."""

    event_id: UUID
    stream: str
    type: str
    schema_version: int
    occurred_at: datetime | None
    metadata: bytes | None
    body: bytes
    tags: tuple[tuple[str, int], ...] = ()


class PreparedAppend(msgspec.Struct, frozen=True, gc=False):
    """Events that are stored together or not at all, and what must hold for it."""

    events: tuple[PreparedEvent, ...]
    conditions: tuple[ExpectedVersion | NoEvent | AtMost, ...] = ()


class Appended(msgspec.Struct, frozen=True, gc=False):
    """What was stored: the events' offsets in the order given.

    `duplicate` is True where the very same events had been stored before; then nothing was stored
    now and the offsets are the original ones.
    """

    offsets: tuple[int, ...]
    duplicate: bool = False

    @property
    def size(self) -> int:
        """The journal's size that includes the events; wait for it to read your own write."""
        return max(self.offsets) + 1


class StoredEvent(msgspec.Struct, frozen=True, gc=False):
    """One row of the events table."""

    offset: int
    event_id: UUID
    stream: str
    version: int
    schema_version: int
    occurred_at: datetime
    recorded_at: datetime
    metadata: bytes | None
    body: bytes


class PackedEvents(msgspec.Struct, frozen=True, gc=False):
    """Many stored events of one journal, column by column.

    `bodies` and `metadata` are JSON arrays, in which events without metadata have `{}`; `event_ids`
    are in the usual text form. `streams` and `metadata` are None where they were not asked for.
    `count` is that of all events between the offsets, those of ignored types included.
    """

    offsets: Sequence[int]
    bodies: bytes
    event_ids: Sequence[str]
    occurred_at: Sequence[datetime]
    recorded_at: Sequence[datetime]
    streams: Sequence[str] | None = None
    metadata: bytes | None = None
    count: int = 0


class JournalInfo(msgspec.Struct, frozen=True):
    """One journal of the database."""

    journal_id: int
    name: str
    size: int
    created_at: datetime


class SizeAt(msgspec.Struct, frozen=True):
    """How many events were recorded up to a time.

    `provisional` is True where the time has not passed yet, so that more may still be recorded.
    """

    size: int
    provisional: bool


Outcome = Appended | LedgerError


class Store(Protocol):
    """What a database must do to hold journals; the contract suite in the tests says how.

    Every method raises StoreUnavailable where the database is away, and SchemaMissing where it has
    not been migrated.
    """

    async def append(self, journal_id: int, batch: Sequence[PreparedAppend]) -> list[Outcome]:
        """Store a batch; return an outcome for each append, errors included.

        Raises AppendOutcomeUnknown where it cannot be found out what was stored.
        """
        ...

    async def read(
        self, journal_id: int, start: int, stop: int, ignored: Sequence[str] = ()
    ) -> list[StoredEvent]:
        """Return the events with start <= offset < stop, in order, but those of ignored types.

        The event at stop - 1 is among them, whatever its type.
        """
        ...

    async def read_packed(
        self, journal_id: int, start: int, stop: int, ignored: Sequence[str], *, envelope: bool
    ) -> PackedEvents:
        """Return the events with start <= offset < stop, in order, but those of ignored types.

        With `envelope` also their streams and metadata.
        """
        ...

    async def read_stream(
        self, journal_id: int, stream: str, after_version: int, limit: int
    ) -> list[StoredEvent]:
        """Return up to `limit` events of one stream above a version, in order."""
        ...

    async def read_tagged(
        self, journal_id: int, tag: str, after_offset: int, limit: int
    ) -> list[StoredEvent]:
        """Return up to `limit` events that carry a tag, of whatever kind, above an offset."""
        ...

    async def size(self, journal_id: int) -> int:
        """Return the number of events in the journal."""
        ...

    async def size_at(self, journal_id: int, moment: datetime) -> SizeAt:
        """Return the number of events recorded at or before `moment`."""
        ...

    async def journals(self) -> list[JournalInfo]:
        """Return all journals, in the order they were made."""
        ...

    async def create_journal(self, name: str) -> JournalInfo:
        """Make a journal; JournalExists for a name that is taken, InvalidEvent for a bad one."""
        ...

    def now(self) -> datetime:
        """Return the time by the clock that the store was given, else by this machine's."""
        ...

    def write_turn(self) -> AbstractAsyncContextManager[None]:
        """Hold this process's turn to write; where the database has no fair queue of its own."""
        ...

    def wakeups(self, journal_id: int) -> AbstractAsyncContextManager[Wakeups]:
        """Give what wakes up when the journal may have grown; it polls as well."""
        ...

    async def close(self) -> None:
        """Give back connections."""
        ...
