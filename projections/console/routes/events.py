"""Single events, and the proof that they are in the log."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends
from starlette.exceptions import HTTPException
from starlette.responses import Response

from ledger.event import RecordedEvent
from ledger.http.permissions import EVENTS_READ
from ledger.http.showing import shown
from ledger.proof.keys import KeyUnusable, read_key
from ledger.proof.log import LogDamaged, NotSealed, prove
from ledger.proof.notes import TlogProof
from ledger.settings import Settings
from projections.console.desk import HEADERS, Desk, PageRoute, at_desk
from projections.console.routes.tables import event_at

router = APIRouter(route_class=PageRoute)

Reader = Annotated[Desk, Depends(at_desk(EVENTS_READ))]


@router.get("/events/{offset}")
async def event(offset: int, desk: Reader) -> Response:
    """Show an event with its envelope, and prove it."""
    found = await _found(desk, offset)
    proof, unproved = None, None
    try:
        proof = await prove(desk.journal, offset)
    except (NotSealed, LogDamaged) as error:
        unproved = str(error)
    return await desk.page(
        "event.html",
        event=found,
        shown=msgspec.json.decode(msgspec.json.encode(shown(found))),
        kind=found.event.kind.__name__,
        size=await desk.journal.size(),
        proof=None if proof is None else _parts(proof, desk.request.app.state.settings),
        unproved=unproved,
    )


@router.get("/events/{offset}/{name}")
async def file(offset: int, name: str, desk: Reader) -> Response:
    """Give out the proof as a file, or the entry that it is of."""
    if name not in FILES:
        raise HTTPException(404, f"there is no file {name!r}; there are {', '.join(FILES)}")
    await _found(desk, offset)
    proof = await prove(desk.journal, offset)
    headers = HEADERS | {"Content-Disposition": f'attachment; filename="{offset}-{name}"'}
    body = FILES[name](proof, desk.request.app.state.settings)
    return Response(body, headers=headers, media_type="application/octet-stream")


def _as_json(proof: TlogProof, settings: Settings) -> bytes:
    return msgspec.json.format(msgspec.json.encode(_parts(proof, settings)), indent=2)


FILES: dict[str, Callable[[TlogProof, Settings], bytes]] = {
    "proof.json": _as_json,
    "proof.tlog-proof": lambda proof, _: proof.render(),
    "entry.json": lambda proof, _: proof.extra or b"",
}
"""What can be taken along of a proof, by the names of files."""


async def _found(desk: Desk, offset: int) -> RecordedEvent:
    size = await desk.journal.size()
    found = await event_at(desk.journal, offset) if 0 <= offset < size else None
    if found is None:
        raise HTTPException(404, f"there is no event at offset {offset}: the size is {size:,}")
    return found


def _parts(proof: TlogProof, settings: Settings) -> dict[str, Any]:
    """Return a proof as pages and files have it: the entry as text, hashes in base64."""
    return {
        "index": proof.index,
        "entry": (proof.extra or b"").decode(),
        "hashes": [b64encode(each).decode() for each in proof.hashes],
        "checkpoint": proof.checkpoint.decode(),
        "vkey": _vkey(settings),
    }


def _vkey(settings: Settings) -> str:
    """Return the log's public key; nothing where this service does not seal itself."""
    if settings.log_key_file is None:
        return ""
    try:
        return read_key(settings.log_key_file).vkey
    except KeyUnusable:
        return ""
