"""Logs as they are published, made by a few plain lines that share nothing with the sealer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from uuid import UUID

from ledger.proof.merkle import leaf_hash, root_of
from ledger.proof.notes import CheckpointBody, Note, SigningKey
from ledger.proof.tiles import TILE_WIDTH, bundle_path, encode_bundle, tile_path

START = datetime(2026, 1, 1, tzinfo=UTC)
KEY = SigningKey("ledger/main", bytes(range(32)))


def entry(offset: int, /, **changed: object) -> bytes:
    """Return an entry as docs/proofs.md describes it; a body given as text is taken as it is."""
    body = changed.pop("body", '{"text":"ä \\" 1.50"}')
    values = {
        "v": 1,
        "journal": "main",
        "offset": offset,
        "stream": f"order-{offset % 7}",
        "version": offset // 7 + 1,
        "event_id": str(UUID(int=offset + 1)),
        "type": "OrderPlaced",
        "schema_version": 1,
        "recorded_at": f"{START + timedelta(seconds=offset):%FT%T.%fZ}",
        "occurred_at": "2026-01-01T00:00:00.000000Z",
        "metadata": None if offset % 3 else {"actor": "é"},
        **changed,
    }
    head = json.dumps(values, separators=(",", ":"), ensure_ascii=False)
    return f'{head[:-1]},"body":{body}}}'.encode()


def entries(count: int) -> list[bytes]:
    """Return good entries, one a second."""
    return [entry(offset) for offset in range(count)]


def checkpoint(
    leaves: Sequence[bytes], key: SigningKey = KEY, cosigners: Iterable[SigningKey] = ()
) -> bytes:
    """Return a signed checkpoint over leaf hashes."""
    text = CheckpointBody(key.name, len(leaves), root_of(leaves)).text
    signatures = (key.sign(text), *(each.cosign(text, 1_800_000_000) for each in cosigners))
    return Note(text, signatures).render()


def tile_files(leaves: Sequence[bytes]) -> dict[str, bytes]:
    """Return the hash tiles over leaf hashes, by path."""
    files, level, hashes = {}, 0, list(leaves)
    while hashes:
        for at in range(0, len(hashes), TILE_WIDTH):
            held = hashes[at : at + TILE_WIDTH]
            files[tile_path(level, at // TILE_WIDTH, len(held))] = b"".join(held)
        whole = range(0, len(hashes) - TILE_WIDTH + 1, TILE_WIDTH)
        hashes = [root_of(hashes[at : at + TILE_WIDTH]) for at in whole]
        level += 1
    return files


def bundle_files(logged: Sequence[bytes]) -> dict[str, bytes]:
    """Return the entry bundles, by path."""
    files = {}
    for at in range(0, len(logged), TILE_WIDTH):
        held = logged[at : at + TILE_WIDTH]
        files[bundle_path(at // TILE_WIDTH, len(held))] = encode_bundle(held)
    return files


@dataclass
class Log:
    """The files of a published log, by path; it is a reader for `verify_log` itself."""

    files: dict[str, bytes] = field(default_factory=dict)

    @classmethod
    def of(cls, logged: Sequence[bytes], older: Iterable[int] = ()) -> Log:
        """Publish entries, with a checkpoint now and at each of the older sizes."""
        leaves = [leaf_hash(each) for each in logged]
        kept = {f"checkpoints/{size}": checkpoint(leaves[:size]) for size in older}
        files = {**tile_files(leaves), **bundle_files(logged), **kept}
        return cls({**files, "checkpoint": checkpoint(leaves)})

    def read(self, path: str) -> bytes:
        """Return a file's content."""
        try:
            return self.files[path]
        except KeyError:
            raise FileNotFoundError(path) from None

    def names(self, folder: str) -> list[str]:
        """Return the names of the files in a folder."""
        return [path.split("/")[1] for path in self.files if path.startswith(f"{folder}/")]

    def write_to(self, directory: Path) -> Path:
        """Write the files into a directory; return it."""
        for path, data in self.files.items():
            (directory / path).parent.mkdir(parents=True, exist_ok=True)
            (directory / path).write_bytes(data)
        return directory


def flipped(data: bytes, random: Random) -> bytes:
    """Return the bytes with one of them changed."""
    at = random.randrange(len(data))
    return data[:at] + bytes([data[at] ^ random.randrange(1, 256)]) + data[at + 1 :]
