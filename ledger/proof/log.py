"""The sealed log of a journal: its roots, proofs from it, and whether the events still fit it."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol, TypeVar
from urllib.parse import quote

import msgspec

from ledger.errors import LedgerError, StoredEventInvalid
from ledger.proof.entries import entries_of
from ledger.proof.merkle import (
    HASH_BYTES,
    ReadHash,
    consistency_proof,
    full_trees,
    inclusion_proof,
    join_edge,
    leaf_hash,
)
from ledger.proof.notes import CheckpointBody, Note, NoteInvalid, TlogProof, VerifierKey, open_note
from ledger.proof.tiles import TILE_WIDTH, Tile, TileTree, hash_reader, tile_path
from ledger.stores import Seal, SealedLog, SignedCheckpoint, Store

T = TypeVar("T")

CHUNK_TILES = 16
CHUNK_EVENTS = CHUNK_TILES * TILE_WIDTH
NO_HASH = bytes(HASH_BYTES)
"""Stands for the hash of an event that is missing or unreadable; no entry has it."""


class LogDamaged(LedgerError):
    """The tables of the sealed log contradict each other or the events."""

    exit_code = 3


class NotSealed(LedgerError):
    """The journal is not sealed, or not at the size that was asked for."""


class Source(Protocol):
    """What holds events and their log: a journal, or a published log of one."""

    @property
    def store(self) -> Store:
        """Where it is kept."""
        ...

    @property
    def journal_id(self) -> int:
        """Which of the store's journals it is."""
        ...

    @property
    def name(self) -> str:
        """The journal's name."""
        ...

    async def size(self) -> int:
        """Return the number of events."""
        ...


class Sealed(msgspec.Struct):
    """What became of comparing the events with what was sealed.

    `offset` is that of the first bad event, None where there is none or it cannot be told; then
    the events below `agreed` are as they were sealed. `fault` says what is wrong.
    """

    origin: str
    size: int
    root: bytes
    checkpoints: int = 0
    fault: str | None = None
    offset: int | None = None
    agreed: int = 0

    @property
    def is_verified(self) -> bool:
        """Whether all is as it was sealed."""
        return self.fault is None

    def __str__(self) -> str:
        said = f"sealed up to size {self.size}, root {as_text(self.root)}, origin {self.origin}"
        return said if self.fault is None else f"{said}: {self.fault}"


def as_text(root: bytes) -> str:
    """Return a root as checkpoints have it, in base64."""
    return b64encode(root).decode()


def default_origin(journal: str) -> str:
    """Return the name of a journal's log where no other is set; it has no spaces and no +."""
    return f"ledger/{quote(journal, safe='/:@!$&*,;=~()')}"


def log_of(journal: Source) -> SealedLog:
    """Return the sealed log of a journal."""
    return journal.store.sealed(journal.journal_id)


def body_of(checkpoint: SignedCheckpoint, key: VerifierKey | None = None) -> CheckpointBody:
    """Return what a stored checkpoint says, signed by `key` if one is given.

    Raises LogDamaged where it is no signed checkpoint of its origin and size.
    """
    data = checkpoint.note.encode()
    try:
        note = Note.parse(data) if key is None else open_note(data, (key,))
        body = CheckpointBody.parse(note.text)
    except NoteInvalid as error:
        raise LogDamaged(f"the signed checkpoint of size {checkpoint.size}: {error}") from error
    if (body.origin, body.size) != (checkpoint.origin, checkpoint.size):
        raise LogDamaged(
            f"the signed checkpoint of {checkpoint.origin} at size {checkpoint.size} is one of "
            f"{body.origin} at size {body.size}"
        )
    return body


async def with_hashes(log: SealedLog, size: int, make: Callable[[ReadHash], T]) -> T:
    """Return what `make` makes of the hashes of the tree of `size` leaves.

    It is called again each time that it has asked for a tile that was not read yet. Raises
    LogDamaged where a tile is missing or too short.
    """
    tiles: dict[tuple[int, int], bytes] = {}

    def read_tile(level: int, index: int, _width: int) -> bytes:
        if (level, index) not in tiles:
            raise _Wanted(level, index)
        return tiles[level, index]

    while True:
        try:
            return make(hash_reader(size, read_tile))
        except _Wanted as wanted:
            found = await log.tiles(wanted.level, wanted.index, wanted.index + 1)
            tiles[wanted.level, wanted.index] = found[0].hashes if found else b""
        except ValueError as error:
            raise LogDamaged(f"the hash tiles of the log: {error}") from error


class _Wanted(Exception):
    """A tile has to be read first."""

    def __init__(self, level: int, index: int) -> None:
        super().__init__(level, index)
        self.level = level
        self.index = index


async def root_at(journal: Source, size: int) -> bytes | None:
    """Return the root of the first `size` events, None where the journal is not sealed so far.

    It is read from the log's tiles, not made of the events.
    """
    seal = await log_of(journal).seal()
    if seal is None or not 0 <= size <= seal.size:
        return None
    return await root_of_tiles(log_of(journal), size)


async def root_of_tiles(log: SealedLog, size: int) -> bytes:
    """Return the root of the first `size` leaves, which must be sealed."""
    trees = list(full_trees(0, size))
    return await with_hashes(log, size, lambda read: join_edge([read(*each) for each in trees]))


async def newest_checkpoint(log: SealedLog) -> SignedCheckpoint:
    """Return the signed checkpoint of the sealed size.

    Raises NotSealed where there is no seal, and LogDamaged where it has no checkpoint.
    """
    seal, checkpoint = await seal_and_checkpoint(log)
    if seal is None:
        raise NotSealed("the journal is not sealed; run `ledger seal`")
    if checkpoint is None:
        raise LogDamaged(f"{seal.origin} has no signed checkpoint of its sealed size {seal.size}")
    return checkpoint


async def seal_and_checkpoint(log: SealedLog) -> tuple[Seal | None, SignedCheckpoint | None]:
    """Return the seal and its signed checkpoint, None for what there is not.

    Where the checkpoint is not there, a sealer may have put a newer one in its place meanwhile.
    """
    seal = await log.seal()
    while seal is not None:
        checkpoint = await log.checkpoint(seal.origin, seal.size)
        before, seal = seal, seal if checkpoint else await log.seal()
        if checkpoint is not None or seal == before:
            return before, checkpoint
    return None, None


async def prove(journal: Source, offset: int, size: int | None = None) -> TlogProof:
    """Prove that the event at `offset` is in the log, at a signed size or the newest.

    The entry is written along as extra data. Raises NotSealed where the event is not sealed or no
    checkpoint was kept of this size, and LogDamaged where the event is not what was sealed.
    """
    log = log_of(journal)
    checkpoint = await newest_checkpoint(log)
    if size is not None and size != checkpoint.size:
        checkpoint = await _kept(log, checkpoint, size)
    if not 0 <= offset < checkpoint.size:
        raise NotSealed(f"no event at offset {offset} is sealed at size {checkpoint.size}")
    count = checkpoint.size
    hashes = await with_hashes(log, count, lambda read: inclusion_proof(offset, count, read))
    sealed = await with_hashes(log, count, lambda read: read(0, offset))
    entry = await _entry(journal, offset)
    if entry is None or leaf_hash(entry) != sealed:
        raise LogDamaged(f"the event at offset {offset} is not what was sealed; run a full verify")
    return TlogProof(offset, tuple(hashes), checkpoint.note.encode(), entry)


async def _kept(log: SealedLog, newest: SignedCheckpoint, size: int) -> SignedCheckpoint:
    found = await log.checkpoint(newest.origin, size)
    if found is None:
        near = await log.checkpoints(newest.origin, size, 1)
        hint = f"; the next one is of size {near[0].size}" if near else ""
        raise NotSealed(f"no signed checkpoint of size {size} is kept{hint}")
    return found


async def consistency(journal: Source, old: int, new: int) -> list[bytes]:
    """Prove that the sealed tree of size `old` is the beginning of that of size `new`."""
    log = log_of(journal)
    return await with_hashes(log, new, lambda read: consistency_proof(old, new, read))


async def _entry(journal: Source, offset: int) -> bytes | None:
    try:
        raw = await journal.store.read_raw(journal.journal_id, offset, offset + 1)
        entries = entries_of(journal.name, raw)
    except (TypeError, ValueError, OverflowError, StoredEventInvalid):
        return None
    return entries[0] if entries else None


async def leaf_hashes(journal: Source, start: int, stop: int) -> list[bytes]:
    """Return the hashes of the entries from `start` to `stop` (exclusive).

    NO_HASH stands for those that are missing or cannot be read.
    """
    try:
        raw = await journal.store.read_raw(journal.journal_id, start, stop)
        entries = entries_of(journal.name, raw)
    except (TypeError, ValueError, OverflowError, StoredEventInvalid):
        if stop - start == 1:
            return [NO_HASH]
        middle = (start + stop) // 2
        halves = ((start, middle), (middle, stop))
        return [each for half in halves for each in await leaf_hashes(journal, *half)]
    found = dict(zip(raw.offsets, map(leaf_hash, entries), strict=True))
    return [found.get(offset, NO_HASH) for offset in range(start, stop)]


async def verify_sealed(
    journal: Source,
    key: VerifierKey | None = None,
    advanced: Callable[[int], None] = lambda _: None,
) -> Sealed | None:
    """Compare the events with the stored tiles and signed checkpoints; None where it has no seal.

    With `key` the signatures of all checkpoints are checked too.
    `advanced` is told how many events were compared, chunk by chunk.
    """
    seal, newest = await seal_and_checkpoint(log_of(journal))
    return None if seal is None else await _Comparison(journal, seal, newest, key, advanced).run()


class _Comparison:
    """Events, tiles and checkpoints side by side, from the first event to the sealed size.

    Sealing may go on meanwhile: tiles become wider, checkpoints come, and some of them go.
    """

    def __init__(
        self,
        journal: Source,
        seal: Seal,
        newest: SignedCheckpoint | None,
        key: VerifierKey | None,
        advanced: Callable[[int], None],
    ) -> None:
        self._journal = journal
        self._log = log_of(journal)
        self._seal = seal
        self._newest = newest
        self._key = key
        self._advanced = advanced
        self._found = Sealed(seal.origin, seal.size, seal.root)
        self._tree = TileTree()
        self._differs: int | None = None
        """The first offset where event and tile of level 0 differ."""
        self._bad_tile: str | None = None
        self._bad_checkpoint: str | None = None

    async def run(self) -> Sealed:
        """Compare everything; return what was found."""
        checkpoints = self._checkpoints()
        mark = await anext(checkpoints, None)
        for start in range(0, self._seal.size, CHUNK_EVENTS):
            stop = min(self._seal.size, start + CHUNK_EVENTS)
            hashes = await leaf_hashes(self._journal, start, stop)
            await self._compare_tiles(start, hashes)
            while mark is not None and mark.size < stop:
                await self._extend(hashes[self._tree.size - start : mark.size - start])
                self._compare_checkpoint(mark)
                mark = await anext(checkpoints, None)
            await self._extend(hashes[self._tree.size - start :])
            self._advanced(stop - start)
        await self._compare_stored(self._tree.partial_tiles())
        await self._finish()
        return self._found

    async def _checkpoints(self) -> AsyncIterator[SignedCheckpoint]:
        above = -1
        while page := await self._log.checkpoints(self._seal.origin, above):
            for each in page:
                if each.size >= self._seal.size:
                    return
                yield each
            above = page[-1].size

    async def _compare_tiles(self, start: int, hashes: Sequence[bytes]) -> None:
        """Find the first event whose hash is not that in its tile."""
        first, count = start // TILE_WIDTH, -(-len(hashes) // TILE_WIDTH)
        tiles = {each.index: each.hashes for each in await self._log.tiles(0, first, first + count)}
        for number in range(count):
            own = hashes[number * TILE_WIDTH : (number + 1) * TILE_WIDTH]
            stored = tiles.get(first + number, b"")
            if stored.startswith(b"".join(own)) or self._differs is not None:
                continue
            for place, each in enumerate(own):
                if stored[place * HASH_BYTES : (place + 1) * HASH_BYTES] != each:
                    self._differs = (first + number) * TILE_WIDTH + place
                    break

    async def _extend(self, hashes: Sequence[bytes]) -> None:
        await self._compare_stored([each for each in self._tree.extend(hashes) if each.level > 0])

    async def _compare_stored(self, tiles: Sequence[Tile]) -> None:
        for each in tiles:
            found = await self._log.tiles(each.level, each.index, each.index + 1)
            if not found or not found[0].hashes.startswith(each.hashes):
                path = tile_path(each.level, each.index)
                self._bad_tile = self._bad_tile or path

    def _compare_checkpoint(self, checkpoint: SignedCheckpoint) -> None:
        """Compare a kept checkpoint with the events up to its size."""
        self._found.checkpoints += 1
        try:
            body = body_of(checkpoint, self._key)
        except LogDamaged as error:
            self._bad_checkpoint = self._bad_checkpoint or str(error)
            return
        if body.root == self._tree.root() and self._bad_checkpoint is None:
            self._found.agreed = body.size
        elif self._bad_checkpoint is None:
            self._bad_checkpoint = (
                f"the signed checkpoint of size {body.size} has another root: an event at offset "
                f"{self._found.agreed} or later is not what was sealed, or the checkpoint is not"
            )

    async def _finish(self) -> None:
        """Say what is wrong, if anything is."""
        found, seal = self._found, self._seal
        root = self._tree.root()
        signed = self._signed_root()
        held = await self._journal.size()
        if held < seal.size:
            self._differs = min(held, seal.size if self._differs is None else self._differs)
            await self._blame_events("the journal has lost its end", signed)
        elif signed is not None and root != signed:
            await self._blame_events("the events are not what was sealed", signed)
        elif signed is None or self._bad_checkpoint is not None:
            found.fault = self._bad_checkpoint
        elif seal.root != signed:
            found.fault = "the sealed root is not that of its signed checkpoint"
        elif self._differs is not None or self._bad_tile is not None:
            place = self._bad_tile or tile_path(0, (self._differs or 0) // TILE_WIDTH)
            found.offset = self._differs
            found.fault = f"the events are as they were sealed, but {place} is not"
        if found.fault is None:
            found.agreed = seal.size

    def _signed_root(self) -> bytes | None:
        """Return the root in the newest checkpoint; None, with the reason, where it is wrong."""
        if self._newest is None:
            self._bad_checkpoint = f"no checkpoint of the sealed size {self._seal.size} is signed"
            return None
        self._found.checkpoints += 1
        try:
            return body_of(self._newest, self._key).root
        except LogDamaged as error:
            self._bad_checkpoint = str(error)
            return None

    async def _blame_events(self, what: str, signed: bytes | None) -> None:
        """Say which event is the first bad one, or from where on it must lie."""
        found = self._found
        if self._differs is not None and await self._tiles_lead_to(signed):
            found.offset = found.agreed = self._differs
            found.fault = f"{what}: the first bad event is at offset {self._differs}"
        else:
            found.fault = f"{what}: the first bad event is at offset {found.agreed} or later"

    async def _tiles_lead_to(self, root: bytes | None) -> bool:
        """Whether the stored tiles of level 0 are those of the signed root."""
        tree = TileTree()
        for first in range(0, -(-self._seal.size // TILE_WIDTH), CHUNK_TILES):
            for each in await self._log.tiles(0, first, first + CHUNK_TILES):
                if each.index * TILE_WIDTH != tree.size or len(each.hashes) % HASH_BYTES:
                    return False
                hashes = [
                    each.hashes[at : at + HASH_BYTES]
                    for at in range(0, len(each.hashes), HASH_BYTES)
                ]
                tree.extend(hashes)
        return tree.size == self._seal.size and tree.root() == root
