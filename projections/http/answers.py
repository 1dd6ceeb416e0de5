"""How reads are answered: as JSON with the size that it is at, or as a file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any

import msgspec
from starlette.background import BackgroundTask
from starlette.responses import Response, StreamingResponse

from ledger.http.problems import INVALID_REQUEST, Kind, define
from projections.checkpoints import FoldChanged
from projections.points import InvalidRequest
from projections.reading import NotCaughtUp, PointUnknown
from projections.reading.apart import ExportTooLong, ReplayTooLong
from projections.reading.paging import CursorUnknown
from projections.reading.spooling import Export, Form

define(InvalidRequest, INVALID_REQUEST)
define(PointUnknown, Kind("point-unknown", 404, "The journal has not come so far"))
define(CursorUnknown, Kind("cursor-unknown", 404, "There is no such page"))
define(
    NotCaughtUp,
    Kind("not-caught-up", 503, "The tables are behind", ("size",), retry_after_seconds=1),
)
define(ReplayTooLong, Kind("replay-too-long", 504, "The point is too far to fold in time"))
define(ExportTooLong, Kind("export-too-long", 504, "The file takes too long to write"))
define(
    FoldChanged,
    Kind(
        "tables-outdated",
        503,
        "The tables were filled by another release",
        detail="this release cannot read them before they are folded afresh: `replay.py rebuild`",
    ),
)

MEDIA_TYPES = {
    Form.CSV: "text/csv; charset=utf-8",
    Form.NDJSON: "application/x-ndjson",
    Form.JSON: "application/json",
}
CHUNK_BYTES = 1 << 16

SIZE_HEADERS = {
    "Ledger-Size": {
        "description": "The size of the journal that the answer is at.",
        "schema": {"type": "integer", "minimum": 0},
    },
    "Preference-Applied": {
        "description": "Given where `Prefer` was met: the tables had come to the journal's size.",
        "schema": {"type": "string"},
    },
}


def described(description: str, *, files: bool = False) -> dict[int | str, dict[str, Any]]:
    """Return what OpenAPI says of a good answer, which may be a file where that is asked for."""
    answer: dict[str, Any] = {"description": description, "headers": SIZE_HEADERS}
    if files:
        text = {"schema": {"type": "string"}}
        answer["content"] = {"text/csv": text, MEDIA_TYPES[Form.NDJSON]: text}
    return {200: answer}


def answer(body: object, size: int) -> Response:
    """Return JSON, and the size that it is at."""
    encoded = msgspec.json.encode(body)
    return Response(encoded, media_type="application/json", headers={"Ledger-Size": str(size)})


def attached(slug: str, form: Form, export: Export) -> Response:
    """Return all rows of a table, or all that changed between two points, as a file."""
    first = "" if export.since is None else f"{export.since.size}-"
    response = streamed(export, form)
    name = f"{slug}-{first}{export.point.size}.{form}"
    response.headers["Content-Disposition"] = f'attachment; filename="{name}"'
    return response


def streamed(export: Export, form: Form = Form.JSON) -> Response:
    """Return what has been written, chunk by chunk, and the size that it is at."""
    return StreamingResponse(
        _chunks(export.file),
        media_type=MEDIA_TYPES[form],
        headers={
            "Ledger-Size": str(export.point.size),
            "Content-Length": str(export.size_bytes),
        },
        background=BackgroundTask(export.file.close),
    )


def _chunks(file: IO[bytes]) -> Iterator[bytes]:
    while chunk := file.read(CHUNK_BYTES):
        yield chunk
