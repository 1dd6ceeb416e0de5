"""Events: pages of them, one at a time, of one stream, or as they come."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from fastapi import Depends, Header, HTTPException, Path, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field

from ledger.codec import NAME_CHARS_MAX
from ledger.event import RecordedEvent, event_types
from ledger.http import routing, sse
from ledger.http.auth import Principal, ledger_of, require
from ledger.http.following import Follower, Wanted
from ledger.http.permissions import EVENTS_READ
from ledger.http.problems import responses
from ledger.http.showing import shown
from ledger.settings import Settings

OFFSET_MAX = 2**62
TYPES_MAX = 100

router = routing.router("events")

Reader = Annotated[Principal, Depends(require(EVENTS_READ))]
Offset = Annotated[int, Path(ge=0, le=OFFSET_MAX)]
After = Annotated[
    int, Query(ge=-1, le=OFFSET_MAX, description="Only events behind this offset; -1 for all.")
]
Limit = Annotated[
    int, Query(ge=1, le=10_000, description="At most so many, within the service's limit.")
]
NAME = r"^[^\x00]+$"
Name = Annotated[str, Field(min_length=1, max_length=NAME_CHARS_MAX, pattern=NAME)]


class EventShown(BaseModel):
    """A recorded event; `data` has the fields of its type, as docs/events.md describes them."""

    offset: int
    stream: str
    version: int
    event_id: str = Field(json_schema_extra={"format": "uuid"})
    type: str
    schema_version: int
    recorded_at: str = Field(json_schema_extra={"format": "date-time"})
    occurred_at: str = Field(json_schema_extra={"format": "date-time"})
    data: dict[str, Any]
    metadata: dict[str, Any] = {}
    erased: list[str] = Field([], description="Personal fields that are null: they were erased.")


class EventsPage(BaseModel):
    """Some events in order. `next` is the `after` that goes on behind them; `size` the journal's.

    There may be more events if `next` is below `size` - 1, also where a page is not full.
    """

    events: list[EventShown]
    next: int
    size: int


class StreamPage(BaseModel):
    """Some events of a stream, by version; `next` goes on, null at the stream's present end."""

    stream: str
    events: list[EventShown]
    next: int | None


_SIZE = {
    "Ledger-Size": {
        "description": "The journal's size when it was read.",
        "schema": {"type": "integer", "minimum": 0},
    }
}
_ETAG = {
    "ETag": {
        "description": "The stream's version, as `If-Match` takes it; given at its end.",
        "schema": {"type": "string"},
    }
}
_STREAMED = {sse.MEDIA_TYPE: {"schema": {"type": "string"}}}


@router.get(
    "/events",
    response_model=EventsPage,
    responses=responses(404)
    | {200: {"description": "A page, or a stream.", "content": _STREAMED, "headers": _SIZE}},
)
async def read_events(
    request: Request,
    who: Reader,
    after: After = -1,
    limit: Limit = 100,
    type: Annotated[list[Name], Query(max_length=TYPES_MAX)] = [],  # noqa: A002, B006
    stream: Annotated[Name | None, Query()] = None,
    tag: Annotated[Name | None, Query()] = None,
    accept: Annotated[str, Header(include_in_schema=False)] = "",
    last_event_id: Annotated[
        str,
        Header(
            alias="Last-Event-ID",
            pattern=r"^[0-9]{0,18}$",
            description="With a stream: it goes on behind this offset.",
        ),
    ] = "",
) -> Response:
    """Return a page of events, or with `Accept: text/event-stream` all that come, as they come.

    Of a stream each event's id is its offset, so a browser that connects again misses nothing and
    sees nothing twice.
    """
    if unknown := sorted(set(type) - set(event_types())):
        raise HTTPException(404, f"there is no event type {unknown[0][:100]!r}")
    wanted = Wanted(frozenset(type), stream, tag)
    journal = ledger_of(request).journal
    if sse.MEDIA_TYPE in accept:
        start = int(last_event_id) if last_event_id else after
        return sse.respond(request, who, Follower(journal, wanted, start))
    follower = Follower(journal, wanted, after)
    events = await follower.more(min(limit, _page_max(request)))
    size = follower.size
    return answer({"events": list(map(shown, events)), "next": follower.offset, "size": size}, size)


@router.get(
    "/events/{offset}",
    response_model=EventShown,
    responses=responses(404) | {200: {"description": "The event.", "headers": _SIZE}},
)
async def read_event(request: Request, offset: Offset, _who: Reader) -> Response:
    """Return the event at an offset."""
    journal = ledger_of(request).journal
    found = [each async for each in journal.read(offset, offset + 1)]
    if not found:
        raise HTTPException(404, f"there is no event at offset {offset}")
    return answer(shown(found[0]), await journal.size())


@router.get(
    "/streams/{stream:path}/events",
    tags=["streams"],
    response_model=StreamPage,
    responses={200: {"description": "Some events of the stream.", "headers": _SIZE | _ETAG}},
)
async def read_stream(
    request: Request,
    _who: Reader,
    stream: Annotated[str, Path(min_length=1, max_length=NAME_CHARS_MAX, pattern=NAME)],
    after_version: Annotated[int, Query(ge=0, le=OFFSET_MAX)] = 0,
    limit: Limit = 100,
) -> Response:
    """Return events of a stream, in order; none where there is no such stream."""
    journal, count = ledger_of(request).journal, min(limit, _page_max(request))
    size = await journal.size()
    events = await journal.read_stream(stream, after_version, limit=count)
    version = events[-1].version if events else after_version
    is_end = len(events) < count
    body = {
        "stream": stream,
        "events": list(map(shown, events)),
        "next": None if is_end else version,
    }
    found = answer(body, _size_after(size, events))
    if is_end and (events or after_version == 0):
        found.headers["ETag"] = f'"{version}"'
    return found


def _size_after(size: int, events: list[RecordedEvent]) -> int:
    return max(size, events[-1].offset + 1) if events else size


def _page_max(request: Request) -> int:
    settings: Settings = request.app.state.settings
    return settings.http_page_rows_max


def answer(body: object, size: int) -> Response:
    """Return JSON, with the journal's size that it was read at."""
    encoded = msgspec.json.encode(body)
    return Response(encoded, media_type="application/json", headers={"Ledger-Size": str(size)})
