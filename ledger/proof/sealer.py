"""The sealer: it makes tiles of new events and signs checkpoints, up to the journal's end.

A step reads events and hashes them outside any transaction, then writes all it made in one, if
nobody has sealed meanwhile. So any number of sealers may run: one gets ahead, the others wait, and
one that is frozen or killed holds up nobody and leaves nothing half done.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable

from ledger.errors import AppendOutcomeUnknown, LedgerError, SchemaMissing, StoreUnavailable
from ledger.journal import Journal
from ledger.proof.entries import entries_of
from ledger.proof.log import (
    LogDamaged,
    as_text,
    body_of,
    default_origin,
    log_of,
    root_of_tiles,
    seal_and_checkpoint,
)
from ledger.proof.merkle import leaf_hash
from ledger.proof.notes import CheckpointBody, Note, SigningKey
from ledger.proof.tiles import Tile, TileInvalid, TileTree, partial_spans
from ledger.stores import RawEvents, Seal, SignedCheckpoint

STEP_EVENTS = 5_000
STEP_SECONDS_MIN = 0.2
"""Each step signs a checkpoint; more than five a second would be of no use to anybody."""
LOOK_SECONDS = 0.5
STANDBY_SECONDS = 1.0
PAUSE_SECONDS_FIRST, PAUSE_SECONDS_MAX = 0.05, 5.0


class CannotSeal(LedgerError):
    """A checkpoint would contradict an earlier one, or be signed under a wrong name or key."""

    exit_code = 3


class Overtaken(Exception):
    """Another sealer has written first, or the events are gone again; nothing was written."""


class Sealer:
    """Seals one journal with one key."""

    def __init__(
        self,
        journal: Journal,
        key: SigningKey,
        origin: str | None = None,
        *,
        step_events: int = STEP_EVENTS,
    ) -> None:
        """Take the journal, and the log's name where it is set; else it keeps the one it has."""
        self._journal = journal
        self._key = key
        self._origin = origin
        self._log = log_of(journal)
        self._step_events = step_events
        self._tree: TileTree | None = None
        self._seal: Seal | None = None
        self._newest: SignedCheckpoint | None = None
        self._last_event_id: str | None = None
        self._seen: Seal | None = None
        """What this sealer has written or found last; the log never goes back behind it."""

    async def catch_up(self, advanced: Callable[[int], None] = lambda _: None) -> Seal:
        """Seal up to the journal's present end; return the seal.

        `advanced` is told the number of events of each step. Raises CannotSeal, LogDamaged,
        StoredEventInvalid and StoreUnavailable.
        """
        end = await self._journal.size()
        while True:
            before = 0 if self._seal is None else self._seal.size
            try:
                seal = await self.step()
            except Overtaken:
                continue
            advanced(seal.size - before)
            if seal.size >= end:
                return seal

    async def step(self) -> Seal:
        """Seal some more events and sign a checkpoint, if there are any; return the seal.

        The first checkpoint is signed also where there are none. Raises Overtaken where another
        sealer was faster; the next step then goes on from what that one has done.
        """
        tree, self._tree = self._tree or await self._load(), None
        # Whatever fails from here on, the next step looks up what has been written.
        size = await self._journal.size()
        if size < tree.size:
            raise CannotSeal(self._shrunk(size, tree.size))
        stop = min(size, tree.size + self._step_events)
        if self._seal is None or stop > tree.size:
            tiles = await self._grow(tree, stop)
            self._seal = self._seen = await self._write(tree, tiles)
        self._tree = tree
        return self._seal

    def _shrunk(self, size: int, sealed: int) -> str:
        return (
            f"journal {self._journal.name!r} holds {size} events, but {sealed} are sealed: it has "
            "lost its end, as after restoring a backup; find the lost events before anything else "
            "is appended"
        )

    async def _load(self) -> TileTree:
        """Read how far the log is; check that it is what this key has signed last."""
        seal, self._newest = await seal_and_checkpoint(self._log)
        origin = self._origin or (default_origin(self._journal.name) if seal is None else "")
        self._check_name(seal, origin or (seal.origin if seal else ""))
        await self._check_growth(seal)
        if seal is None:
            self._seal = None
            return TileTree()
        if self._newest is None:
            raise LogDamaged(f"{seal.origin} has no signed checkpoint of its size {seal.size}")
        root = body_of(self._newest, self._key.verifier).root
        tree = await self._stored_tree(seal.size)
        if not root == seal.root == tree.root():
            raise LogDamaged(
                f"{seal.origin}: the tiles and the seal of size {seal.size} do not have the root "
                "that was signed; nothing more is signed until `replay.py verify` finds it right"
            )
        self._seal = self._seen = seal
        return tree

    def _check_name(self, seal: Seal | None, origin: str) -> None:
        if seal is not None and seal.origin != origin:
            raise CannotSeal(
                f"the log of journal {self._journal.name!r} is named {seal.origin!r}, not "
                f"{origin!r}; set LEDGER_LOG_ORIGIN to that, or leave it out"
            )
        if self._key.name != origin:
            raise CannotSeal(
                f"the key is {self._key.name!r}'s, the log is {origin!r}: a log signs under its "
                f"own name; make a key with `ledger keys new FILE --name {origin}`, or set "
                "LEDGER_LOG_KEY_FILE to the key that the log has"
            )

    async def _check_growth(self, seal: Seal | None) -> None:
        """Refuse a log that is not what this sealer has seen before and more."""
        seen = self._seen
        if seen is None:
            return
        is_shorter = seal is None or seal.size < seen.size
        if is_shorter or await root_of_tiles(self._log, seen.size) != seen.root:
            raise CannotSeal(
                f"{seen.origin} was sealed up to size {seen.size}, root {as_text(seen.root)}, and "
                "is no longer: the database was put back or tampered with"
            )

    async def _stored_tree(self, size: int) -> TileTree:
        tiles: dict[tuple[int, int], bytes] = {}
        for span in partial_spans(size):
            for found in await self._log.tiles(span.level, span.index, span.index + 1):
                tiles[span.level, span.index] = found.hashes
        try:
            return TileTree.load(size, lambda level, index, _: tiles.get((level, index), b""))
        except TileInvalid as error:
            raise LogDamaged(f"the hash tiles of the log: {error}") from error

    async def _grow(self, tree: TileTree, stop: int) -> list[Tile]:
        """Append the events up to `stop`; return all tiles that are new or wider."""
        self._last_event_id = None
        if stop == tree.size:
            return []
        start = tree.size
        raw = await self._journal.store.read_raw(self._journal.journal_id, start, stop)
        if list(raw.offsets) != list(range(start, stop)):
            raise StoreUnavailable(
                f"the server does not hold all events from offset {start} to {stop - 1} of journal "
                f"{self._journal.name!r}: it is behind another one, or the journal was damaged"
            )
        self._last_event_id = raw.event_ids[-1]
        return [*tree.extend(self._hashes(raw)), *tree.partial_tiles()]

    def _hashes(self, raw: RawEvents) -> list[bytes]:
        return list(map(leaf_hash, entries_of(self._journal.name, raw)))

    async def _write(self, tree: TileTree, tiles: list[Tile]) -> Seal:
        """Sign a checkpoint and write it with the tiles, all or nothing."""
        now = self._journal.now()
        new = Seal(self._key.name, tree.size, tree.root(), now)
        body = CheckpointBody(new.origin, new.size, new.root)
        note = Note(body.text, (self._key.sign(body.text),)).render().decode()
        checkpoint = SignedCheckpoint(new.origin, new.size, note, now)
        last, replaced = self._last_event_id, self._newest
        if not await self._log.extend(self._seal, new, tiles, checkpoint, replaced, last):
            raise Overtaken
        self._newest = checkpoint
        return new

    async def follow(
        self, stopping: asyncio.Event, lost: Callable[[LedgerError], None] = lambda _: None
    ) -> None:
        """Seal whatever is appended until `stopping` is set.

        Where the database is lost, `lost` is told and it is tried again, with growing pauses. While
        another sealer is at work, this one looks about once a second whether it still is.
        """
        seconds = PAUSE_SECONDS_FIRST
        async with self._journal.wakeups() as wakeups:
            while not stopping.is_set():
                try:
                    before = self._seal
                    seal = await self.step()
                except SchemaMissing:
                    raise
                except Overtaken:
                    await _pause(stopping, STANDBY_SECONDS)
                except (StoreUnavailable, AppendOutcomeUnknown) as error:
                    lost(error)
                    await _pause(stopping, seconds)
                    seconds = min(2 * seconds, PAUSE_SECONDS_MAX)
                else:
                    seconds = PAUSE_SECONDS_FIRST
                    if before is None or seal.size - before.size < self._step_events:
                        await _pause(stopping, STEP_SECONDS_MIN)
                        await wakeups.wait(LOOK_SECONDS)


async def _pause(stopping: asyncio.Event, seconds: float) -> None:
    """Wait for about so long, not the same each time, or until `stopping` is set."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds * random.uniform(0.5, 1)):  # noqa: S311 - jitter
            await stopping.wait()
