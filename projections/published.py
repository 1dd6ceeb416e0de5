"""A published log as a source of events: replay without a database, verifying as it reads.

At the start all tiles above the lowest level are read, an eighth of a byte for each event, and held
against the signed root; after that each bundle of 256 entries is checked when it is read.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from ledger.codec import decode_bodies
from ledger.errors import LedgerError
from ledger.event import RecordedEvent
from ledger.journal import CHUNK_SIZE, Journal
from ledger.keyring import Keyring
from ledger.lens import Lens
from ledger.proof.entries import EntryInvalid, parse_named, raw_of
from ledger.proof.folders import Folder
from ledger.proof.merkle import leaf_hash
from ledger.proof.notes import CheckpointBody, Note, NoteInvalid, VerifierKey, open_checkpoint
from ledger.proof.publish import CHECKPOINT, CHECKPOINTS
from ledger.proof.tiles import (
    TILE_BITS,
    TILE_WIDTH,
    Span,
    Tile,
    TileInvalid,
    TileTree,
    bundle_path,
    decode_bundle,
    roots_of_tiles,
    split_hashes,
    tile_path,
)
from ledger.security.data_keys import DataKeys
from ledger.settings import Settings
from ledger.stores import (
    JournalInfo,
    Outcome,
    PackedEvents,
    PreparedAppend,
    RawEvents,
    Seal,
    SignedCheckpoint,
    SizeAt,
    StoredEvent,
)
from ledger.stores.search import last_recorded
from ledger.stores.subject_keys import NoKeys
from ledger.stores.wakeups import Hub, Wakeups

JOURNAL_ID = 1
BUNDLES_KEPT = 64
FILES_AT_ONCE = 64


class PublishedLogInvalid(LedgerError):
    """A published log is not what its signed checkpoint says; `offset` is where, if known."""

    exit_code = 3

    def __init__(self, where: str, reason: str, offset: int | None = None) -> None:
        super().__init__(f"{where}: {reason}")
        self.where = where
        self.offset = offset


class ReadOnlyJournal(LedgerError):
    """A published log can only be read."""


@contextlib.asynccontextmanager
async def open_published(
    directory: str | Path,
    key: VerifierKey | str | None = None,
    settings: Settings | None = None,
    keys: DataKeys | None = None,
) -> AsyncIterator[PublishedJournal]:
    """Open the journal in a published log, a directory or a URL, at its signed checkpoint.

    With `key` that must be signed by it; without, only that the log is sound in itself is checked.
    What is not what was signed raises PublishedLogInvalid, at once or when it is read; a folder
    that cannot be read FolderUnavailable, and a key that is none NoteInvalid.

    Data keys are not published: all personal fields are as if erased, unless `settings` name a
    database of data keys, or `keys` are given.
    """
    store = await PublishedStore.open(
        Folder(directory), VerifierKey.parse(key) if isinstance(key, str) else key
    )
    [info] = await store.journals()
    async with contextlib.AsyncExitStack() as stack:
        if keys is None:
            keyring = Keyring(settings or Settings(), store)
            stack.push_async_callback(keyring.close)
            keys = keyring.keys_of(info.name)
        yield PublishedJournal(store, info, keys)


class PublishedJournal:
    """The journal in a published log; it reads as any other does, and takes no events.

    It has no index of streams and tags: what needs one folds all events instead.
    """

    def __init__(
        self, store: PublishedStore, info: JournalInfo, keys: DataKeys | None = None
    ) -> None:
        """Take the store, its one journal, and the data keys, none by default."""
        self.store = store
        self.journal_id = info.journal_id
        self.name = info.name
        self.url = store.url
        self._journal = Journal(store, info, keys=keys)
        self.privacy = self._journal.privacy

    def read_chunks(
        self, start: int = 0, stop: int | None = None, *, chunk_size: int = CHUNK_SIZE
    ) -> AsyncIterator[list[RecordedEvent]]:
        """Yield the events with start <= offset < stop in lists, as `Journal.read_chunks`."""
        return self._journal.read_chunks(start, stop, chunk_size=chunk_size)

    async def read_but(self, ignored: Sequence[str], start: int, stop: int) -> list[RecordedEvent]:
        """Return the events but those of ignored types, as `Journal.read_but`."""
        return await self._journal.read_but(ignored, start, stop)

    async def read_lens(self, lens: Lens, start: int, stop: int) -> list[RecordedEvent]:
        """Return what a lens sees, as `Journal.read_lens`."""
        return await self._journal.read_lens(lens, start, stop)

    async def size(self) -> int:
        """Return the number of events in the signed checkpoint."""
        return await self._journal.size()

    async def size_at(self, moment: datetime) -> SizeAt:
        """Return how many events were recorded at or before `moment`."""
        return await self._journal.size_at(moment)

    def now(self) -> datetime:
        """Return this machine's time."""
        return self._journal.now()


class PublishedStore:
    """The one journal of a published log; it is read, never written."""

    def __init__(self, log: PublishedLog) -> None:
        self._log = log
        self._hub = Hub()
        self._bundles: OrderedDict[int, list[StoredEvent]] = OrderedDict()
        self._name: str | None = None

    @classmethod
    async def open(cls, folder: Folder, key: VerifierKey | None) -> PublishedStore:
        """Read the checkpoint and the tiles above the lowest level; see `open_published`."""
        store = cls(await PublishedLog.open(folder, key))
        if store._log.size:
            await store._bundle(0)
        return store

    @property
    def url(self) -> str:
        """Where the log is published."""
        return self._log.url

    async def _bundle(self, index: int) -> list[StoredEvent]:
        """Return the events of a bundle, of which the last few are kept."""
        if index in self._bundles:
            self._bundles.move_to_end(index)
            return self._bundles[index]
        entries = await self._log.bundle(index)
        events = [
            self._parsed(offset, entry) for offset, entry in enumerate(entries, index * TILE_WIDTH)
        ]
        self._bundles[index] = events
        while len(self._bundles) > BUNDLES_KEPT:
            self._bundles.popitem(last=False)
        return events

    def _parsed(self, offset: int, entry: bytes) -> StoredEvent:
        try:
            name, event = parse_named(entry)
        except EntryInvalid as error:
            raise self._log.invalid(f"entry {offset}: {error}", offset) from error
        if self._name is None:
            self._name = name
        if (event.offset, name) != (offset, self._name):
            said = f"entry {offset} is one of journal {name!r} at offset {event.offset}"
            raise self._log.invalid(said, offset)
        return event

    async def _events(self, start: int, stop: int) -> list[StoredEvent]:
        start, stop = max(0, start), min(stop, self._log.size)
        found: list[StoredEvent] = []
        for index in range(start // TILE_WIDTH, -(-stop // TILE_WIDTH) if start < stop else 0):
            first = index * TILE_WIDTH
            found += (await self._bundle(index))[max(0, start - first) : stop - first]
        return found

    async def read(
        self, journal_id: int, start: int, stop: int, ignored: Sequence[str] = ()
    ) -> list[StoredEvent]:
        """Return the events with start <= offset < stop but those of ignored types, in order."""
        unwanted = frozenset(ignored)
        return [
            each
            for each in await self._events(start, stop)
            if each.type not in unwanted or each.offset == stop - 1
        ]

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
        """Return the events but those of ignored types, in order, packed."""
        unwanted = frozenset(ignored)
        events = await self._events(start, stop)
        kept = [each for each in events if each.type not in unwanted]
        return _packed(kept, len(events), envelope=envelope)

    async def read_raw(self, journal_id: int, start: int, stop: int) -> RawEvents:
        """Return the events between two offsets, in order, as they are sealed."""
        return raw_of(await self._events(start, stop))

    def sealed(self, journal_id: int) -> PublishedLog:
        """Return the log itself."""
        return self._log

    @property
    def losses(self) -> int:
        """How often a connection was lost while it appended: there is none."""
        return 0

    def subject_keys(self, journal: str) -> NoKeys:
        """Return no data keys: they are not published."""
        return NoKeys()

    async def read_stream(
        self, journal_id: int, stream: str, after_version: int, limit: int
    ) -> list[StoredEvent]:
        """Return up to `limit` events of one stream above a version; the whole log is searched."""
        return await self._search(
            0, limit, lambda event: event.stream == stream and event.version > after_version
        )

    async def read_tagged(
        self, journal_id: int, tag: str, after_offset: int, limit: int
    ) -> list[StoredEvent]:
        """Return up to `limit` events that carry a tag above an offset; the log is searched."""
        return await self._search(after_offset + 1, limit, lambda event: tag in _tags_of(event))

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
        """Return what `read_stream` does, below `stop`, packed."""
        found = await self.read_stream(journal_id, stream, after_version, limit)
        kept = [each for each in found if each.offset < stop]
        last = kept[-1].version if kept else 0
        return _packed(kept, len(kept), envelope=envelope, last=last)

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
        """Return what `read_tagged` does, below `stop`, packed."""
        found = await self.read_tagged(journal_id, tag, after_offset, limit)
        kept = [each for each in found if each.offset < stop]
        last = kept[-1].offset if kept else 0
        return _packed(kept, len(kept), envelope=envelope, last=last)

    async def _search(
        self, start: int, limit: int, wanted: Callable[[StoredEvent], bool]
    ) -> list[StoredEvent]:
        found: list[StoredEvent] = []
        for first in range(start, self._log.size, TILE_WIDTH):
            events = await self._events(first, first + TILE_WIDTH)
            found += filter(wanted, events)
            if len(found) >= limit:
                break
        return found[:limit]

    async def size(self, journal_id: int) -> int:
        """Return the number of events in the signed checkpoint."""
        return self._log.size

    async def size_at(self, journal_id: int, moment: datetime) -> SizeAt:
        """Return the number of events recorded at or before `moment`.

        It is provisional from the last event on: more may have been recorded since the checkpoint.
        """

        async def recorded_at(offset: int) -> datetime:
            [event] = await self._events(offset, offset + 1)
            return event.recorded_at

        size = await last_recorded(recorded_at, self._log.size, moment)
        return SizeAt(size, provisional=size == self._log.size)

    async def journals(self) -> list[JournalInfo]:
        """Return the one journal; a log without events does not say its name."""
        name = self._name or "main"
        return [JournalInfo(JOURNAL_ID, name, self._log.size, datetime.min.replace(tzinfo=UTC))]

    async def append(self, journal_id: int, batch: Sequence[PreparedAppend]) -> list[Outcome]:
        """Refuse."""
        return [self._refusal() for _ in batch]

    async def create_journal(self, name: str) -> NoReturn:
        """Refuse."""
        raise self._refusal()

    def _refusal(self) -> ReadOnlyJournal:
        return ReadOnlyJournal(f"{self._log.url} is a published log; append to the journal itself")

    def now(self) -> datetime:
        """Return this machine's time."""
        return datetime.now(UTC)

    def write_turn(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Do nothing: nobody writes."""
        return contextlib.nullcontext()

    @contextlib.asynccontextmanager
    async def wakeups(self, journal_id: int) -> AsyncIterator[Wakeups]:
        """Give what never wakes: the checkpoint was read once."""
        with self._hub.watching(journal_id) as wakeups:
            yield wakeups

    async def close(self) -> None:
        """Do nothing."""


class PublishedLog:
    """Tiles and entries of a published log at one checkpoint, each checked when it is read."""

    def __init__(self, folder: Folder, body: CheckpointBody, note: bytes) -> None:
        self._folder = folder
        self._body = body
        self._note = note
        self._rows: dict[int, list[bytes]] = {}
        """By level above the lowest all hashes in the tiles there."""
        self._tail: list[bytes] = []
        """The hashes of the entries after the last full bundle."""

    @classmethod
    async def open(cls, folder: Folder, key: VerifierKey | None) -> PublishedLog:
        """Read the checkpoint and the tiles above the lowest level; see `open_published`."""
        found = await folder.read([CHECKPOINT])
        if CHECKPOINT not in found:
            raise PublishedLogInvalid(folder.url, f"no log is published there: no {CHECKPOINT}")
        note = found[CHECKPOINT]
        try:
            if key is None:
                body = CheckpointBody.parse(Note.parse(note).text)
            else:
                body, _ = open_checkpoint(note, key)
        except NoteInvalid as error:
            raise PublishedLogInvalid(folder.url, f"{CHECKPOINT}: {error}") from error
        log = cls(folder, body, note)
        await log._read_upper_tiles()
        return log

    @property
    def size(self) -> int:
        """Number of events."""
        return self._body.size

    @property
    def url(self) -> str:
        """Where it is published."""
        return self._folder.url

    def invalid(self, reason: str, offset: int | None = None) -> PublishedLogInvalid:
        """Return the error for what is wrong with this log."""
        return PublishedLogInvalid(self.url, reason, offset)

    async def _read_upper_tiles(self) -> None:
        """Read all but the full tiles of the lowest level; check that they lead to the root."""
        level = 1
        while count := self.size >> TILE_BITS * level:
            tiles = await self._read_tiles(level, 0, -(-count // TILE_WIDTH))
            self._rows[level] = [each for tile in tiles for each in split_hashes(tile.hashes)]
            level += 1
        for tile in await self._read_tiles(0, self.size // TILE_WIDTH, self.size // TILE_WIDTH + 1):
            self._tail = split_hashes(tile.hashes)
        for below, above in zip(self._rows, list(self._rows)[1:], strict=False):
            full = len(self._rows[below]) // TILE_WIDTH * TILE_WIDTH
            if roots_of_tiles(self._rows[below][:full]) != self._rows[above]:
                raise self.invalid(f"the tiles of level {below} do not lead to those above them")
        if self._root() != self._body.root:
            raise self.invalid(f"its tiles do not have the root that {CHECKPOINT} says")

    def _root(self) -> bytes:
        def edge(level: int, _index: int, width: int) -> bytes:
            row = self._rows[level] if level else self._tail
            return b"".join(row[len(row) - width :])

        return TileTree.load(self.size, edge).root()

    async def _read_tiles(self, level: int, first: int, stop: int) -> list[Tile]:
        """Return the tiles of a level with first <= index < stop that this size has."""
        spans = self._spans(level, first, stop)
        found: list[Tile] = []
        for at in range(0, len(spans), FILES_AT_ONCE):
            some = spans[at : at + FILES_AT_ONCE]
            paths = [(span.path, tile_path(level, span.index)) for span in some]
            for span, data in zip(some, await self._read_either(paths), strict=True):
                if len(data) < span.width * 32:
                    raise self.invalid(f"{span.path} is too short")
                found.append(Tile(level, span.index, data[: span.width * 32]))
        return found

    def _spans(self, level: int, first: int, stop: int) -> list[Span]:
        count = self.size >> TILE_BITS * level
        return [
            Span(level, index, min(TILE_WIDTH, count - index * TILE_WIDTH))
            for index in range(first, min(stop, -(-count // TILE_WIDTH)))
        ]

    async def _read_either(self, paths: Sequence[tuple[str, str]]) -> list[bytes]:
        """Return the contents of files, each by its partial name or the one it has once full."""
        found = await self._folder.read([partial for partial, _ in paths])
        lacking = [full for partial, full in paths if partial not in found and full != partial]
        found |= await self._folder.read(lacking) if lacking else {}
        for partial, full in paths:
            if partial not in found and full not in found:
                raise self.invalid(f"{partial} is missing")
        return [found.get(partial, found.get(full, b"")) for partial, full in paths]

    async def bundle(self, index: int) -> list[bytes]:
        """Return the entries of a bundle, which must be those of the signed root."""
        [span] = self._spans(0, index, index + 1)
        path = bundle_path(index, span.width)
        [data] = await self._read_either([(path, bundle_path(index))])
        try:
            entries = decode_bundle(data)[: span.width]
        except TileInvalid as error:
            raise self.invalid(f"{path}: {error}", index * TILE_WIDTH) from error
        hashes = list(map(leaf_hash, entries))
        is_right = (
            roots_of_tiles(hashes) == self._rows[1][index : index + 1]
            if len(hashes) == TILE_WIDTH == span.width
            else hashes == self._tail and span.width < TILE_WIDTH
        )
        if not is_right:
            raise await self._blame(path, span, hashes)
        return entries

    async def _blame(self, path: str, span: Span, hashes: list[bytes]) -> PublishedLogInvalid:
        """Return the error that names the first entry which is not in its tile."""
        [tile] = await self._read_tiles(0, span.index, span.index + 1)
        own, first = split_hashes(tile.hashes), span.index * TILE_WIDTH
        wrong = (at for at in range(span.width) if hashes[at : at + 1] != own[at : at + 1])
        at = next(wrong, None)
        if at is None:
            return self.invalid(f"{span.path} is not what was signed")
        return self.invalid(f"{path}: entry {first + at} is not what was signed", first + at)

    async def seal(self) -> Seal:
        """Return the size and root of the checkpoint."""
        none = datetime.min.replace(tzinfo=UTC)
        return Seal(self._body.origin, self.size, self._body.root, none)

    async def tiles(self, level: int, first: int, stop: int) -> list[Tile]:
        """Return the tiles of a level with first <= index < stop that there are, in order."""
        found = await self._read_tiles(level, first, stop)
        for tile in found:
            if not self._is_proved(tile):
                raise self.invalid(f"{tile_path(level, tile.index)} is not what was signed")
        return found

    def _is_proved(self, tile: Tile) -> bool:
        hashes, first = split_hashes(tile.hashes), tile.index * TILE_WIDTH
        if tile.level > 0:
            return hashes == self._rows[tile.level][first : first + TILE_WIDTH]
        if len(hashes) < TILE_WIDTH:
            return hashes == self._tail
        return roots_of_tiles(hashes) == self._rows[1][tile.index : tile.index + 1]

    async def checkpoints(
        self, origin: str, above: int = -1, limit: int = 1000
    ) -> list[SignedCheckpoint]:
        """Return up to `limit` published checkpoints of sizes above one, in order of size."""
        names = await self._folder.names(CHECKPOINTS)
        sizes = sorted(size for name in names if name.isdecimal() and (size := int(name)) > above)
        wanted = [size for size in sizes if size < self.size][:limit]
        found = await self._folder.read([f"{CHECKPOINTS}/{size}" for size in wanted])
        older = [self._checkpoint(size, found[f"{CHECKPOINTS}/{size}"]) for size in wanted]
        newest = [self._checkpoint(self.size, self._note)] if above < self.size else []
        return [each for each in older + newest if each.origin == origin][:limit]

    def _checkpoint(self, size: int, note: bytes) -> SignedCheckpoint:
        none = datetime.min.replace(tzinfo=UTC)
        return SignedCheckpoint(self._body.origin, size, note.decode(errors="replace"), none)

    async def checkpoint(self, origin: str, size: int) -> SignedCheckpoint | None:
        """Return the published checkpoint of one size, None where there is none."""
        found = await self.checkpoints(origin, size - 1, 1)
        return found[0] if found and found[0].size == size else None

    async def checkpoints_below(
        self, origin: str, below: int, limit: int
    ) -> list[SignedCheckpoint]:
        """Return up to `limit` published checkpoints of sizes below one, the largest first."""
        found = [each for each in await self.checkpoints(origin, -1, below) if each.size < below]
        return found[: -limit - 1 : -1]

    async def extend(
        self,
        old: Seal | None,
        new: Seal,
        tiles: Sequence[Tile],
        checkpoint: SignedCheckpoint,
        replaced: SignedCheckpoint | None = None,
        last_event_id: str | None = None,
    ) -> NoReturn:
        """Refuse."""
        raise ReadOnlyJournal(f"{self.url} is a published log; seal the journal itself")

    async def replace_note(self, checkpoint: SignedCheckpoint, note: str) -> NoReturn:
        """Refuse."""
        raise ReadOnlyJournal(f"{self.url} is a published log; it gets its notes by publishing")

    async def keep(self, checkpoint: SignedCheckpoint) -> NoReturn:
        """Refuse."""
        raise ReadOnlyJournal(f"{self.url} is a published log; it gets its notes by publishing")

    async def drop(self, checkpoint: SignedCheckpoint) -> NoReturn:
        """Refuse."""
        raise ReadOnlyJournal(f"{self.url} is a published log; what is published stays")


def _packed(
    events: Sequence[StoredEvent], count: int, *, envelope: bool, last: int = 0
) -> PackedEvents:
    metadata = b",".join(each.metadata or b"{}" for each in events)
    return PackedEvents(
        [each.offset for each in events],
        b"[" + b",".join(each.body for each in events) + b"]",
        [str(each.event_id) for each in events],
        [each.occurred_at for each in events],
        [each.recorded_at for each in events],
        [each.stream for each in events],
        b"[" + metadata + b"]" if envelope else None,
        count,
        [each.schema_version for each in events],
        last,
    )


def _tags_of(stored: StoredEvent) -> set[str]:
    [event] = decode_bodies([stored.body], [stored.offset], [stored.schema_version])
    return {*event.tags(), *event.claims(), *event.releases()}
