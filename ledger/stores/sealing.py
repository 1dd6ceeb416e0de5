"""The sealed log of a journal in its database, the same statements for both kinds."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec

from ledger.proof.tiles import Tile
from ledger.sqltypes import text_to_time
from ledger.stores import Seal, SignedCheckpoint
from ledger.stores.queries import Queries, Statement

_SEAL = "SELECT origin, size, root, sealed_at FROM seals WHERE journal_id = $1"
# A server that took over from another one may have lost events that were read from that one.
_HOLDS = """(CAST($6 AS text) IS NULL OR EXISTS (SELECT 1 FROM events WHERE journal_id = $1
    AND "offset" = $3 - 1 AND replace(CAST(event_id AS text), '-', '') = $6))"""
_FIRST_SEAL = f"""INSERT INTO seals (journal_id, origin, size, root, sealed_at)
    SELECT $1, CAST($2 AS text), CAST($3 AS bigint), $4, $5
    WHERE NOT EXISTS (SELECT 1 FROM seals WHERE journal_id = $1) AND {_HOLDS}
    ON CONFLICT (journal_id) DO NOTHING"""  # noqa: S608 - all of it stands here
_NEXT_SEAL = f"""UPDATE seals SET origin = $2, size = $3, root = $4, sealed_at = $5
    WHERE journal_id = $1 AND origin = $7 AND size = $8 AND root = $9
    AND {_HOLDS}"""  # noqa: S608
_TILES = """SELECT level, tile_index, hashes FROM hash_tiles
    WHERE journal_id = $1 AND level = $2 AND tile_index >= $3 AND tile_index < $4
    ORDER BY tile_index"""
_WRITE_TILE = """INSERT INTO hash_tiles (journal_id, level, tile_index, hashes)
    VALUES ($1, $2, $3, $4)
    ON CONFLICT (journal_id, level, tile_index) DO UPDATE SET hashes = excluded.hashes"""
_CHECKPOINTS = """SELECT origin, size, note, made_at FROM signed_checkpoints
    WHERE journal_id = $1 AND origin = $2 AND size > $3 ORDER BY size LIMIT $4"""
_CHECKPOINTS_BELOW = """SELECT origin, size, note, made_at FROM signed_checkpoints
    WHERE journal_id = $1 AND origin = $2 AND size < $3 ORDER BY size DESC LIMIT $4"""
_CHECKPOINT = """SELECT origin, size, note, made_at FROM signed_checkpoints
    WHERE journal_id = $1 AND origin = $2 AND size = $3"""
_WRITE_CHECKPOINT = """INSERT INTO signed_checkpoints (journal_id, origin, size, note, made_at)
    VALUES ($1, $2, $3, $4, $5)"""
_KEEP_CHECKPOINT = """INSERT INTO signed_checkpoints (journal_id, origin, size, note, made_at)
    SELECT $1, CAST($2 AS text), $3, $4, $5 WHERE NOT EXISTS (
        SELECT 1 FROM signed_checkpoints WHERE journal_id = $1 AND origin = $2 AND size = $3)
    ON CONFLICT (journal_id, origin, size) DO NOTHING"""
_DROP_CHECKPOINT = """DELETE FROM signed_checkpoints
    WHERE journal_id = $1 AND origin = $2 AND size = $3 AND note = $4 AND EXISTS (
        SELECT 1 FROM signed_checkpoints c WHERE c.journal_id = $1 AND c.origin = $2
            AND c.size < $3 AND c.made_at >= $5 AND c.made_at < $6)"""
_REPLACE_NOTE = """UPDATE signed_checkpoints SET note = $5
    WHERE journal_id = $1 AND origin = $2 AND size = $3 AND note = $4"""


class StoredLog:
    """The sealed log of one journal, in the database's own tables."""

    def __init__(self, store: Queries, journal_id: int) -> None:
        """Take what runs statements."""
        self._store = store
        self._journal_id = journal_id

    async def seal(self) -> Seal | None:
        """Return how far the journal is sealed, None where it never was."""
        rows = await self._store.query(_SEAL, self._journal_id)
        if not rows:
            return None
        origin, size, root, sealed_at = rows[0]
        return Seal(origin, size, root, _time(sealed_at))

    async def tiles(self, level: int, first: int, stop: int) -> list[Tile]:
        """Return the tiles of a level with first <= index < stop that there are, in order."""
        rows = await self._store.query(_TILES, self._journal_id, level, first, stop)
        return [Tile(*row) for row in rows]

    async def checkpoints(
        self, origin: str, above: int = -1, limit: int = 1000
    ) -> list[SignedCheckpoint]:
        """Return up to `limit` signed checkpoints of sizes above one, in order of size."""
        rows = await self._store.query(_CHECKPOINTS, self._journal_id, origin, above, limit)
        return [_checkpoint(row) for row in rows]

    async def checkpoints_below(
        self, origin: str, below: int, limit: int
    ) -> list[SignedCheckpoint]:
        """Return up to `limit` signed checkpoints of sizes below one, the largest first."""
        rows = await self._store.query(_CHECKPOINTS_BELOW, self._journal_id, origin, below, limit)
        return [_checkpoint(row) for row in rows]

    async def checkpoint(self, origin: str, size: int) -> SignedCheckpoint | None:
        """Return the signed checkpoint of one size, None where there is none."""
        rows = await self._store.query(_CHECKPOINT, self._journal_id, origin, size)
        return _checkpoint(rows[0]) if rows else None

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
        key = self._journal_id
        rows = [(key, each.level, each.index, each.hashes) for each in tiles]
        note = (key, checkpoint.origin, checkpoint.size, checkpoint.note, checkpoint.made_at)
        statements = [
            self._seal_statement(old, new, last_event_id),
            Statement(_WRITE_TILE, rows),
            Statement(_WRITE_CHECKPOINT, [note]),
        ]
        if replaced is not None:
            statements.append(self._drop(replaced))
        return await self._store.transact(statements)

    def _seal_statement(self, old: Seal | None, new: Seal, last_event_id: str | None) -> Statement:
        last = None if last_event_id is None else last_event_id.replace("-", "")
        values = (self._journal_id, new.origin, new.size, new.root, new.sealed_at, last)
        if old is None:
            return Statement(_FIRST_SEAL, [values])
        return Statement(_NEXT_SEAL, [(*values, old.origin, old.size, old.root)])

    def _drop(self, replaced: SignedCheckpoint) -> Statement:
        minute = replaced.made_at.replace(second=0, microsecond=0)
        key = (self._journal_id, replaced.origin, replaced.size, replaced.note)
        return Statement(_DROP_CHECKPOINT, [(*key, minute, minute + timedelta(minutes=1))])

    async def replace_note(self, checkpoint: SignedCheckpoint, note: str) -> bool:
        """Store `note`, which adds signatures to a checkpoint; False where that has changed."""
        key = (self._journal_id, checkpoint.origin, checkpoint.size, checkpoint.note)
        return await self._store.transact([Statement(_REPLACE_NOTE, [(*key, note)])])

    async def keep(self, checkpoint: SignedCheckpoint) -> bool:
        """Store a checkpoint again that was dropped; False where there is one of its size."""
        row = (self._journal_id, *msgspec.structs.astuple(checkpoint))
        return await self._store.transact([Statement(_KEEP_CHECKPOINT, [row])])

    async def drop(self, checkpoint: SignedCheckpoint) -> bool:
        """Drop a checkpoint unless it is the first of its minute, or has got more signatures."""
        return await self._store.transact([self._drop(checkpoint)])


def _time(stored: datetime | str) -> datetime:
    """Return a time; SQLite holds text."""
    return text_to_time(stored) if isinstance(stored, str) else stored


def _checkpoint(row: Sequence[Any]) -> SignedCheckpoint:
    origin, size, note, made_at = row
    return SignedCheckpoint(origin, size, note, _time(made_at))
