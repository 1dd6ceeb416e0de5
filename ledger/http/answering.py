"""What the routes of commands have in common."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec
from fastapi import HTTPException, Response
from pydantic import BaseModel

from ledger.deciding import Origin
from ledger.http.calls import Call
from ledger.http.problems import responses
from ledger.stores import Appended

_HEADERS = {
    "Ledger-Size": {
        "description": "A size of the journal that includes what was stored.",
        "schema": {"type": "integer", "minimum": 0},
    },
    "Preference-Applied": {
        "description": "Given where `Prefer` was met: the tables show what was stored.",
        "schema": {"type": "string"},
    },
}


def changing(*refused: int) -> dict[int | str, dict[str, Any]]:
    """Return the answers of a route that changes something, beside those of all routes."""
    return {200: {"description": "It is stored.", "headers": _HEADERS}} | responses(*refused)


def making(model: type[BaseModel], *refused: int) -> dict[int | str, dict[str, Any]]:
    """Return the answers of a route that makes a thing: 201, but 200 if that was made before."""
    made: dict[int | str, dict[str, Any]] = {
        200: {
            "description": "It was stored before, by the same request.",
            "model": model,
            "headers": _HEADERS,
        },
        201: {"description": "It is stored.", "headers": _HEADERS},
    }
    return made | responses(*refused)


async def stored(call: Call, response: Response, appended: Appended | None) -> dict[str, Any]:
    """End a call; return the fields of an answer that say where its events are."""
    if appended is None:
        return await unchanged(call, response, await call.ledger.journal.size())
    await call.answer(response, appended.size, appended)
    return {
        "offsets": list(appended.offsets),
        "size": appended.size,
        "duplicate": appended.duplicate,
    }


async def unchanged(
    call: Call, response: Response, size: int, offsets: tuple[int, ...] = ()
) -> dict[str, Any]:
    """Do the same where all was so already, at a size of the journal, by events at `offsets`."""
    await call.answer(response, size)
    return {"offsets": list(offsets), "size": size, "duplicate": True}


def dated(origin: Origin, occurred_at: datetime | None) -> Origin:
    """Return the origin of what happened at a time, None for when it is recorded."""
    if occurred_at is None:
        return origin
    return msgspec.structs.replace(origin, occurred_at=occurred_at)


def not_found(what: str) -> HTTPException:
    """Return the error for what is not there, or is somebody else's."""
    return HTTPException(404, f"there is no {what} with this id that you may act on")
