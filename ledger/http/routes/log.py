"""The sealed log, in the paths of C2SP tlog-tiles, and proofs from it.

Checkpoints, tiles and proofs of consistency hold hashes only, and are for everybody. Entries are
the events themselves.
"""

from __future__ import annotations

from base64 import b64encode
from functools import cache
from pathlib import Path as FilePath
from typing import Annotated, Any

from fastapi import Depends, HTTPException, Path, Query, Request
from fastapi.responses import PlainTextResponse, Response
from pydantic import BaseModel, Field

from ledger.http import routing
from ledger.http.auth import Principal, ledger_of, require
from ledger.http.permissions import EVENTS_READ
from ledger.http.problems import Kind, define, responses
from ledger.journal import Journal
from ledger.proof.keys import read_key
from ledger.proof.log import (
    LogDamaged,
    NotSealed,
    as_text,
    body_of,
    consistency,
    log_of,
    newest_checkpoint,
    prove,
    root_of_tiles,
)
from ledger.proof.merkle import leaf_hash
from ledger.proof.notes import CheckpointBody, Note
from ledger.proof.publish import bundles_of, tile_of
from ledger.proof.tiles import (
    TILE_BITS,
    TILE_WIDTH,
    Span,
    TileInvalid,
    bundle_path,
    parse_tile_path,
)
from ledger.settings import Settings

SIZE_MAX = 2**62
TILE_PATH_CHARS_MAX = 80
TILE = "application/octet-stream"
FOREVER = "max-age=31536000, immutable"

define(
    LogDamaged,
    Kind("log-damaged", 500, "The log does not fit the events", detail="run `replay.py verify`"),
)

router = routing.router("log")

Reader = Annotated[Principal, Depends(require(EVENTS_READ))]
Size = Annotated[int, Path(ge=1, le=SIZE_MAX)]
TilePath = Annotated[
    str,
    Path(
        max_length=TILE_PATH_CHARS_MAX,
        description="The tile's number in groups of three digits, all but the last with an x; "
        "with `.p/W` a partial tile of W hashes.",
        examples=["000", "x001/067", "000.p/8"],
    ),
]
Hash = Annotated[str, Field(description="32 bytes in base64.")]

_NOTE: dict[str, Any] = {
    "response_class": PlainTextResponse,
    "responses": responses(404) | {200: {"description": "A signed note."}},
}
_BYTES: dict[str, Any] = {
    "response_class": Response,
    "responses": responses(404)
    | {
        200: {
            "description": "It never changes.",
            "content": {TILE: {"schema": {"type": "string", "format": "binary"}}},
        }
    },
}


class EventProof(BaseModel):
    """That an event is entry `index` of the log of `size`, whose root `checkpoint` has signed.

    `entry` has the bytes that were sealed, in base64; `leaf_hash` is SHA-256 over 0x00 and them.
    `hashes` lead from there to the root (RFC 9162). `proof` is all of it as a .tlog-proof file.
    `vkey` is the log's public key, null where the service has none at hand: compare it with the one
    that you have from elsewhere.
    """

    offset: int
    index: int
    size: int
    entry: str
    leaf_hash: Hash
    hashes: list[Hash]
    root: Hash
    checkpoint: str
    vkey: str | None
    proof: str


class SizeAndRoot(BaseModel):
    """A size of the log, and its root there."""

    size: int
    root: Hash


class ConsistencyProof(BaseModel):
    """That the log of the first size is the beginning of that of the second (RFC 9162)."""

    first: SizeAndRoot
    second: SizeAndRoot
    hashes: list[Hash]


@router.get("/log/checkpoint", **_NOTE)
async def newest(request: Request) -> Response:
    """Return the newest signed checkpoint."""
    checkpoint = await newest_checkpoint(log_of(_journal(request)))
    return PlainTextResponse(checkpoint.note, headers={"Cache-Control": "no-cache"})


@router.get("/log/checkpoints/{size}", **_NOTE)
async def checkpoint_of(request: Request, size: Size) -> Response:
    """Return the signed checkpoint of a size, if it is one of those that are kept."""
    log = log_of(_journal(request))
    newest = await newest_checkpoint(log)
    found = await log.checkpoint(newest.origin, size)
    if found is None:
        raise HTTPException(404, f"no signed checkpoint of size {size} is kept")
    return PlainTextResponse(found.note, headers={"Cache-Control": "no-cache"})


@router.get("/log/tile/entries/{path:path}", **_BYTES)
async def entries(request: Request, path: TilePath, _who: Reader) -> Response:
    """Return a bundle of entries: each with its length in two bytes before it."""
    journal = _journal(request)
    span = await _span(journal, f"tile/entries/{path}")
    start = span.index * TILE_WIDTH
    files = await bundles_of(journal, start, start + span.width)
    data = files[bundle_path(span.index, span.width)]
    return Response(data, media_type=TILE, headers={"Cache-Control": f"private, {FOREVER}"})


@router.get("/log/tile/{level}/{path:path}", **_BYTES)
async def tile(
    request: Request, level: Annotated[int, Path(ge=0, le=63)], path: TilePath
) -> Response:
    """Return a tile: up to 256 hashes of 32 bytes, side by side."""
    journal = _journal(request)
    span = await _span(journal, f"tile/{level}/{path}")
    data = await tile_of(journal, span)
    return Response(data, media_type=TILE, headers={"Cache-Control": f"public, {FOREVER}"})


@router.get(
    "/proofs/events/{offset}", response_model=EventProof, responses=responses(404), tags=["proofs"]
)
async def prove_event(
    request: Request,
    offset: Annotated[int, Path(ge=0, le=SIZE_MAX)],
    _who: Reader,
    size: Annotated[
        int | None,
        Query(ge=1, le=SIZE_MAX, description="Under the checkpoint of this size, not the newest."),
    ] = None,
) -> EventProof:
    """Prove that the event at an offset is in the log, under a signed checkpoint."""
    found = await prove(_journal(request), offset, size)
    entry = found.extra or b""
    body = CheckpointBody.parse(Note.parse(found.checkpoint).text)
    return EventProof(
        offset=offset,
        index=found.index,
        size=body.size,
        entry=b64encode(entry).decode(),
        leaf_hash=as_text(leaf_hash(entry)),
        hashes=list(map(as_text, found.hashes)),
        root=as_text(body.root),
        checkpoint=found.checkpoint.decode(),
        vkey=_vkey(request.app.state.settings),
        proof=found.render().decode(),
    )


@router.get(
    "/proofs/consistency",
    response_model=ConsistencyProof,
    responses=responses(404),
    tags=["proofs"],
)
async def prove_consistency(
    request: Request,
    first: Annotated[int, Query(ge=1, le=SIZE_MAX)],
    second: Annotated[
        int | None, Query(ge=1, le=SIZE_MAX, description="By default the sealed size.")
    ] = None,
) -> ConsistencyProof:
    """Prove that the log only grew between two sizes."""
    journal = _journal(request)
    log = log_of(journal)
    sealed = await _sealed_size(journal)
    later = sealed if second is None else second
    if not first <= later <= sealed:
        raise NotSealed(f"the log is sealed up to size {sealed}; `first` is the smaller size")
    hashes = await consistency(journal, first, later)
    roots = [as_text(await root_of_tiles(log, size)) for size in (first, later)]
    return ConsistencyProof(
        first=SizeAndRoot(size=first, root=roots[0]),
        second=SizeAndRoot(size=later, root=roots[1]),
        hashes=list(map(as_text, hashes)),
    )


async def _sealed_size(journal: Journal) -> int:
    """Return the size of the newest checkpoint; raises NotSealed where there is none."""
    return body_of(await newest_checkpoint(log_of(journal))).size


async def _span(journal: Journal, path: str) -> Span:
    """Return the tile that a path names; 404 where the log has none of this width."""
    try:
        level, index, width = parse_tile_path(path)
    except TileInvalid as error:
        raise HTTPException(404, str(error)) from error
    span = Span(level or 0, index, width)
    leaves = (await _sealed_size(journal)) >> TILE_BITS * span.level
    if span.width > leaves - span.index * TILE_WIDTH:
        raise HTTPException(404, f"the log has no {path} yet")
    return span


def _journal(request: Request) -> Journal:
    return ledger_of(request).journal


def _vkey(settings: Settings) -> str | None:
    return None if settings.log_key_file is None else _vkey_of(settings.log_key_file)


@cache
def _vkey_of(file: FilePath) -> str:
    return read_key(file).vkey
