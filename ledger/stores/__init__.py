"""Where journals are kept: one protocol, two databases.

A store is handed batches of prepared appends and answers for each append on its own. Outcomes equal
running the appends one after the other, in the order given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Protocol, runtime_checkable
from uuid import UUID

import msgspec

from ledger.conditions import AtMost, ExpectedVersion, NoEvent
from ledger.errors import LedgerError
from ledger.proof.tiles import Tile
from ledger.stores.subject_keys import KeyTable
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
    type: str


class RawEvents(msgspec.Struct, frozen=True, gc=False):
    """Many stored events of one journal, column by column, as they are sealed.

    Ids and times are text: `recorded_at` and `occurred_at` as `ledger.sqltypes.time_to_text`
    writes them, `event_ids` in the usual form.
    """

    offsets: Sequence[int]
    streams: Sequence[str]
    versions: Sequence[int]
    event_ids: Sequence[str]
    types: Sequence[str]
    schema_versions: Sequence[int]
    recorded_at: Sequence[str]
    occurred_at: Sequence[str]
    metadata: Sequence[bytes | None]
    bodies: Sequence[bytes]


class PackedEvents(msgspec.Struct, frozen=True, gc=False):
    """Many stored events of one journal, column by column.

    `bodies` and `metadata` are JSON arrays, in which events without metadata have `{}`; `event_ids`
    are in the usual text form. `streams` and `metadata` are None where they were not asked for.
    `count` is that of all events between the offsets, those of ignored types included.
    `schema_versions` are those that the bodies were written in, None means today's.
    A chunk of a stream or of what is tagged goes on after `last`, the version or offset where it
    ends.
    """

    offsets: Sequence[int]
    bodies: bytes
    event_ids: Sequence[str]
    occurred_at: Sequence[datetime]
    recorded_at: Sequence[datetime]
    streams: Sequence[str] | None = None
    metadata: bytes | None = None
    count: int = 0
    schema_versions: Sequence[int] | None = None
    last: int = 0


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


class Seal(msgspec.Struct, frozen=True):
    """How far a journal is sealed: the size and root of its tree, and the name of its log."""

    origin: str
    size: int
    root: bytes
    sealed_at: datetime


class SignedCheckpoint(msgspec.Struct, frozen=True):
    """A signed note about a log at one size (C2SP tlog-checkpoint)."""

    origin: str
    size: int
    note: str
    made_at: datetime


class Connections(msgspec.Struct, frozen=True):
    """How many connections a store has open, how many are at work, and how many there may be."""

    open: int
    in_use: int
    most: int


Outcome = Appended | LedgerError


class SealedLog(Protocol):
    """The sealed log of one journal: its Merkle tree in tiles, and the notes signed about it.

    Every method raises StoreUnavailable where the database is away.
    """

    async def seal(self) -> Seal | None:
        """Return how far the journal is sealed, None where it never was."""
        ...

    async def tiles(self, level: int, first: int, stop: int) -> list[Tile]:
        """Return the tiles of a level with first <= index < stop that there are, in order."""
        ...

    async def checkpoints(
        self, origin: str, above: int = -1, limit: int = 1000
    ) -> list[SignedCheckpoint]:
        """Return up to `limit` signed checkpoints of sizes above one, in order of size."""
        ...

    async def checkpoints_below(
        self, origin: str, below: int, limit: int
    ) -> list[SignedCheckpoint]:
        """Return up to `limit` signed checkpoints of sizes below one, the largest first."""
        ...

    async def checkpoint(self, origin: str, size: int) -> SignedCheckpoint | None:
        """Return the signed checkpoint of one size, None where there is none."""
        ...

    async def extend(
        self,
        old: Seal | None,
        new: Seal,
        tiles: Sequence[Tile],
        checkpoint: SignedCheckpoint,
        replaced: SignedCheckpoint | None = None,
        last_event_id: str | None = None,
    ) -> bool:
        """Write what was sealed, all or nothing, if the seal is still `old`; return whether it was.

        The last of the events must be the one with `last_event_id`, if that is given.
        The checkpoint `replaced` is dropped unless it is the first of its minute or has got more
        signatures.
        """
        ...

    async def replace_note(self, checkpoint: SignedCheckpoint, note: str) -> bool:
        """Store `note`, which adds signatures to a checkpoint; False where that has changed."""
        ...

    async def keep(self, checkpoint: SignedCheckpoint) -> bool:
        """Store a checkpoint again that was dropped; False where there is one of its size."""
        ...

    async def drop(self, checkpoint: SignedCheckpoint) -> bool:
        """Drop a checkpoint unless it is the first of its minute, or has got more signatures.

        It must not be the newest. Return whether it was dropped.
        """
        ...


@runtime_checkable
class Pooled(Protocol):
    """A store that keeps connections."""

    def connections(self) -> Connections:
        """Return the state of its connections, those for appending and for reading together."""
        ...


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
        self,
        journal_id: int,
        start: int,
        stop: int,
        ignored: Sequence[str],
        *,
        envelope: bool,
        streams_of: Sequence[str] = (),
    ) -> PackedEvents:
        """Return the events with start <= offset < stop, in order, but those of ignored types.

        With `envelope` also their streams and metadata, else the streams of some types, and those
        of others are empty or not.
        """
        ...

    async def read_raw(self, journal_id: int, start: int, stop: int) -> RawEvents:
        """Return the events with start <= offset < stop, in order, as they are sealed.

        Raises ValueError, TypeError or OverflowError where a value is none that was ever stored.
        """
        ...

    def sealed(self, journal_id: int) -> SealedLog:
        """Return the sealed log of a journal."""
        ...

    @property
    def losses(self) -> int:
        """How often a connection was lost while it appended; another server may have taken over."""
        ...

    def subject_keys(self, journal: str) -> KeyTable:
        """Return the data keys of the subjects of a journal, by its name."""
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

    async def read_packed_stream(
        self,
        journal_id: int,
        stream: str,
        after_version: int,
        limit: int,
        *,
        stop: int,
        envelope: bool,
    ) -> PackedEvents:
        """Return the same as `read_stream` packed, of all types, but only what lies below `stop`.

        Streams are there in any case, metadata with `envelope`. Fewer than `limit` are the last.
        """
        ...

    async def read_packed_tagged(
        self,
        journal_id: int,
        tag: str,
        after_offset: int,
        limit: int,
        *,
        stop: int,
        envelope: bool,
    ) -> PackedEvents:
        """Return the same as `read_tagged` packed, as `read_packed_stream` does."""
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
