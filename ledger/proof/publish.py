"""Publishing a sealed log: static files that any web server can serve (C2SP tlog-tiles).

Entries and tiles are written first, then the checkpoint that needs them, so that whoever reads
while it is written, or after it was killed, finds a complete log of some size.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence

import msgspec

from ledger.errors import LedgerError, StoredEventInvalid
from ledger.proof.entries import entries_of
from ledger.proof.folders import Folder
from ledger.proof.log import (
    CHUNK_TILES,
    LogDamaged,
    Source,
    as_text,
    body_of,
    log_of,
    newest_checkpoint,
    root_of_tiles,
)
from ledger.proof.merkle import HASH_BYTES, leaf_hash
from ledger.proof.notes import CheckpointBody, Note, NoteInvalid, VerifierKey
from ledger.proof.tiles import (
    TILE_BITS,
    TILE_WIDTH,
    Span,
    bundle_path,
    encode_bundle,
    partial_spans,
    tile_spans,
)
from ledger.proof.witnessing import cosigned_by_all
from ledger.stores import SignedCheckpoint

CHECKPOINT, CHECKPOINTS = "checkpoint", "checkpoints"
KEPT_AT_ONCE = 1000
NOTHING = CheckpointBody("", 0, b"")


class LogConflict(LedgerError):
    """What is published already is not the beginning of the journal's log."""

    exit_code = 3


class Published(msgspec.Struct, frozen=True):
    """What is published now, and how many files were written for it."""

    origin: str
    size: int
    root: bytes
    files: int


async def publish(
    journal: Source,
    folder: Folder,
    advanced: Callable[[int], None] = lambda _: None,
    cosigners: Sequence[VerifierKey] = (),
) -> Published:
    """Write what `folder` lacks of the journal's sealed log, up to the newest signed checkpoint.

    With `cosigners` up to the newest one that all of these witnesses have cosigned. `advanced` is
    told how many events were published, chunk by chunk. Raises NotSealed, LogConflict
    where other things are published there, LogDamaged where the events are not those that were
    sealed, and FolderUnavailable. It may be run again whatever has happened.
    """
    newest = await newest_checkpoint(log_of(journal))
    body = body_of(newest)
    if await root_of_tiles(log_of(journal), body.size) != body.root:
        raise LogDamaged(f"the tiles do not have the root that was signed at size {body.size}")
    before = await _published(folder)
    await _check_growth(journal, folder, before, body)
    if cosigners:
        newest = await cosigned_by_all(log_of(journal), newest, cosigners)
        body = body_of(newest)
        if body.size < before.size:  # what is published was not cosigned; the next one will be
            return Published(before.origin, before.size, before.root, 0)
    written = 0
    async for files in _new_files(journal, before.size, body.size, advanced):
        written += await _write_new(folder, files)
    written += await _write_checkpoint(folder, newest)
    written += await _write_kept(journal, folder, newest)
    await folder.remove(_outgrown(before.size, body.size))
    return Published(body.origin, body.size, body.root, written)


async def _published(folder: Folder) -> CheckpointBody:
    """Return what the checkpoint says that is published, NOTHING where there is none."""
    found = await folder.read([CHECKPOINT])
    if CHECKPOINT not in found:
        return NOTHING
    try:
        return CheckpointBody.parse(Note.parse(found[CHECKPOINT]).text)
    except NoteInvalid as error:
        raise LogConflict(
            f"{folder.url}/{CHECKPOINT} is no checkpoint: {error}; publish to an empty folder"
        ) from error


async def _check_growth(
    journal: Source, folder: Folder, before: CheckpointBody, body: CheckpointBody
) -> None:
    """Refuse to publish over another log, a longer one, or one with another beginning."""
    if before == NOTHING:
        return
    there = (
        f"{folder.url} holds {before.origin} up to size {before.size}, root {as_text(before.root)}"
    )
    if before.origin != body.origin:
        raise LogConflict(f"{there}; the journal's log is {body.origin}: give it its own folder")
    if before.size > body.size:
        raise LogConflict(
            f"{there}; the journal is sealed up to size {body.size} only: it has lost its end, as "
            "after restoring a backup"
        )
    if await root_of_tiles(log_of(journal), before.size) != before.root:
        raise LogConflict(f"{there}, which is not how the journal's log begins")


async def _new_files(
    journal: Source, old: int, new: int, advanced: Callable[[int], None]
) -> AsyncIterator[dict[str, bytes]]:
    """Yield the files that a log of size `new` has and one of size `old` has not, some at a time.

    A file that is still partial has the name of its width, so none of these changes later.
    """
    if old == new:
        return
    for first in range(old // TILE_WIDTH, -(-new // TILE_WIDTH), CHUNK_TILES):
        start, stop = first * TILE_WIDTH, min(new, (first + CHUNK_TILES) * TILE_WIDTH)
        yield await bundles_of(journal, start, stop)
        advanced(stop - max(start, old))
    for span in tile_spans(old, new):
        if span.level > 0:
            yield {span.path: await tile_of(journal, span)}


async def bundles_of(journal: Source, start: int, stop: int) -> dict[str, bytes]:
    """Return bundles and tiles of level 0, by path, for the entries from `start` to `stop`.

    A bundle must begin at `start`. LogDamaged where an entry is not what was sealed.
    """
    try:
        raw = await journal.store.read_raw(journal.journal_id, start, stop)
        entries = entries_of(journal.name, raw)
    except (TypeError, ValueError, OverflowError, StoredEventInvalid) as error:
        raise LogDamaged(f"an event from offset {start} on cannot be read: {error}") from error
    files: dict[str, bytes] = {}
    for first in range(start, stop, TILE_WIDTH):
        width = min(TILE_WIDTH, stop - first)
        span = Span(0, first // TILE_WIDTH, width)
        tile, own = await tile_of(journal, span), entries[first - start :][:width]
        _compare(first, own, tile)
        files[bundle_path(span.index, width)] = encode_bundle(own)
        files[span.path] = tile
    return files


def _compare(first: int, entries: list[bytes], tile: bytes) -> None:
    for place in range(len(tile) // HASH_BYTES):
        sealed = tile[place * HASH_BYTES : (place + 1) * HASH_BYTES]
        if place >= len(entries) or leaf_hash(entries[place]) != sealed:
            raise LogDamaged(
                f"the event at offset {first + place} is not what was sealed; nothing that needs "
                "it is published"
            )


async def tile_of(journal: Source, span: Span) -> bytes:
    """Return the hashes of a tile, side by side; LogDamaged where it has not so many."""
    found = await log_of(journal).tiles(span.level, span.index, span.index + 1)
    hashes = found[0].hashes[: span.width * HASH_BYTES] if found else b""
    if len(hashes) < span.width * HASH_BYTES:
        raise LogDamaged(f"{span.path} is missing or too short in the database")
    return hashes


async def _write_new(folder: Folder, files: Mapping[str, bytes]) -> int:
    """Write those files that are not there; return how many.

    One that is there with the beginning of its content was being written when something broke; one
    with other content is never replaced.
    """
    there = await folder.read(list(files))
    for path, data in there.items():
        if not files[path].startswith(data):
            raise LogConflict(
                f"{folder.url}/{path} holds other bytes than the journal's log: it was tampered "
                "with, or belongs to another log; nothing was replaced"
            )
    missing = {path: data for path, data in files.items() if there.get(path) != data}
    await folder.write(missing)
    return len(missing)


async def _write_checkpoint(folder: Folder, newest: SignedCheckpoint) -> int:
    """Write the checkpoint, unless another publisher has got further meanwhile."""
    there = await folder.read([CHECKPOINT])
    if there.get(CHECKPOINT) == newest.note.encode():
        return 0
    if (await _published(folder)).size > newest.size:
        return 0
    await folder.write({CHECKPOINT: newest.note.encode()})
    return 1


async def _write_kept(journal: Source, folder: Folder, newest: SignedCheckpoint) -> int:
    """Write the older checkpoints that are kept, one a minute; return how many.

    They come after the newest: one that is newer than that would look like a log put back. Of the
    last page some may be missing, where writing it was interrupted.
    """
    sizes = {int(name) for name in await folder.names(CHECKPOINTS) if name.isdecimal()}
    above, written = min(sorted(sizes)[-KEPT_AT_ONCE:], default=-1), 0
    while page := await log_of(journal).checkpoints(newest.origin, above, KEPT_AT_ONCE):
        above = page[-1].size
        new = [each for each in page if each.size < newest.size and each.size not in sizes]
        await folder.write({f"{CHECKPOINTS}/{each.size}": each.note.encode() for each in new})
        written += len(new)
    return written


def _outgrown(old: int, new: int) -> list[str]:
    """Return the folders of partial tiles and bundles that are full now; nobody needs them."""
    folders = []
    for span in partial_spans(old):
        if (span.index + 1) * TILE_WIDTH <= new >> TILE_BITS * span.level:
            folders.append(_folder_of(span.path))
            if span.level == 0:
                folders.append(_folder_of(bundle_path(span.index, span.width)))
    return folders


def _folder_of(path: str) -> str:
    return path.rpartition("/")[0]


def log_files(
    journal: Source, size: int, advanced: Callable[[int], None] = lambda _: None
) -> AsyncIterator[dict[str, bytes]]:
    """Yield the entries and tiles of a log of `size`, some files at a time.

    Raises LogDamaged where an event is not what was sealed.
    """
    return _new_files(journal, 0, size, advanced)
