"""Streams: events of a service's own, appended to one under conditions."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from fastapi import Depends, Header, Path, Request, Response
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from uuid_utils.compat import uuid7

from ledger.codec import NAME_CHARS_MAX, check_name, decode_event
from ledger.conditions import WINDOW_MAX, AtMost, Condition, ExpectedVersion, NoEvent
from ledger.domain.api_keys import ApiKeyRotated
from ledger.errors import InvalidEvent, UnknownEventType
from ledger.event import Event, NewEvent, event_types
from ledger.http import permissions, routing
from ledger.http.answering import making
from ledger.http.auth import Principal
from ledger.http.calls import Call, call
from ledger.http.errors import CommandOnly, Forbidden
from ledger.http.granting import check_granted

EVENTS_MAX = 100
CONDITIONS_MAX = 20
OFFSET_MAX = 2**62

_OF_PEOPLE = (permissions.USERS_WRITE,)
_OF_KEYS = (permissions.API_KEYS_WRITE, permissions.ACT_ANY)
_OF_ORDERS = (permissions.ORDERS_WRITE, permissions.VENUE_WRITE, permissions.ACT_ANY)
_OF_POSITIONS = (permissions.POSITIONS_WRITE, permissions.VENUE_WRITE, permissions.ACT_ANY)

RESERVED = {
    "user": _OF_PEOPLE,
    "login": _OF_PEOPLE,
    "apikey": _OF_KEYS,
    "order": _OF_ORDERS,
    "position": _OF_POSITIONS,
    "market": (permissions.MARKS_WRITE,),
}
"""Streams of the ledger's own, by the name up to the first `-`, and what appending to them takes.

Whoever appends to them goes round the commands, so all is needed that the commands for any of their
events would take. A permission or role that such an event gives must be one's own to give, too.
"""

CLOSED = frozenset({"session", "requests", "log"})
"""Streams, named in the same way, that nobody appends to here: the ledger itself alone does."""

CREDENTIALS = frozenset({"password_hash", "key_hash", "refresh_digest", "family_digest"})
"""Who stores an event with such a field says by what somebody is let in."""

DERIVED_VERSIONS = frozenset({5, 8})
"""UUIDs of these versions follow from names; so the ledger makes the ids of what it stores once."""

router = routing.router("streams")

StreamName = Annotated[str, Path(min_length=1, max_length=NAME_CHARS_MAX)]
Text = Annotated[str, Field(min_length=1, max_length=NAME_CHARS_MAX)]
Offset = Annotated[int, Field(ge=-1, le=OFFSET_MAX)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class EventGiven(_Body):
    """An event: its type, and its fields as docs/events.md has them."""

    type: Text = Field(examples=["PriceMarked"])
    data: dict[str, Any] = Field(examples=[{"token": "BTC", "price": "64250.00"}])
    event_id: UUID | None = None
    occurred_at: AwareDatetime | None = None


class VersionExpected(_Body):
    """Another stream is at this version."""

    type: Literal["expected_version"]
    stream: Text
    version: Annotated[int, Field(ge=0, le=OFFSET_MAX)]


class EventRuledOut(_Body):
    """No event of these types (of any, if there are none) comes after an offset.

    Either in a stream or with a tag.
    """

    type: Literal["no_event"]
    types: Annotated[list[Text], Field(max_length=100)] = []
    stream: Text | None = None
    tag: Text | None = None
    after: Offset = -1


class WindowKept(_Body):
    """With these events a stream holds at most `count` that are younger than the window."""

    type: Literal["at_most"]
    stream: Text
    count: Annotated[int, Field(ge=1, le=OFFSET_MAX)]
    window_seconds: Annotated[float, Field(ge=1e-6, le=WINDOW_MAX.total_seconds())]


ConditionGiven = Annotated[
    VersionExpected | EventRuledOut | WindowKept, Field(discriminator="type")
]


class EventsGiven(_Body):
    """Events that are stored together or not at all, if all conditions hold."""

    events: Annotated[list[EventGiven], Field(min_length=1, max_length=EVENTS_MAX)]
    conditions: Annotated[list[ConditionGiven], Field(max_length=CONDITIONS_MAX)] = []


class EventsStored(BaseModel):
    """Where the events are, in the order given; `duplicate` if they were there before."""

    stream: str
    offsets: list[int]
    event_ids: list[UUID]
    size: int
    duplicate: bool


class _Data(msgspec.Struct):
    data: msgspec.Raw


class _Datas(msgspec.Struct):
    events: list[_Data]


_decode_datas = msgspec.json.Decoder(_Datas).decode

Appending = Annotated[Call, Depends(call(permissions.EVENTS_WRITE))]
IfNoneMatch = Annotated[
    Literal["*"] | None, Header(description="`*`: the stream must not exist yet.")
]


@router.post(
    "/streams/{stream:path}/events",
    status_code=201,
    responses=making(EventsStored, 409, 412),
)
async def append_events(
    stream: StreamName,
    body: EventsGiven,
    by: Appending,
    request: Request,
    response: Response,
    if_none_match: IfNoneMatch = None,
) -> EventsStored:
    """Append events to a stream, all or none.

    Events without an id get one that follows from the Idempotency-Key, if there is one; given ones
    must not be of version 5 or 8. What says who is let in, or that a user is erased, is stored by
    its command only.
    """
    check_name(stream, "stream")
    events = await _decoded(body, request)
    _check_open(stream, events)
    _check_permitted(by.who, stream, events)
    new = [_new(stream, by, body, number, event) for number, event in enumerate(events)]
    if all(each.event_id for each in body.events):
        request.state.has_own_ids = True
        by = _known_by_ids(by)
    conditions = _versions(stream, by, if_none_match) + list(map(_condition, body.conditions))
    appended = await by.ledger.journal.append(new, *conditions)
    await by.answer(response, appended.size, appended)
    return EventsStored(
        stream=stream,
        offsets=list(appended.offsets),
        event_ids=[each.event_id for each in new],
        size=appended.size,
        duplicate=appended.duplicate,
    )


async def _decoded(body: EventsGiven, request: Request) -> list[Event]:
    """Return the events; they are decoded from what was sent, whose numbers are exact."""
    try:
        datas = _decode_datas(await request.body()).events
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidEvent(f"not valid JSON: {error}", field="body") from error
    events = []
    for number, (given, each) in enumerate(zip(body.events, datas, strict=True)):
        try:
            events.append(decode_event(given.type, each.data))
        except InvalidEvent as error:
            field = f"events[{number}].{error.field or 'data'}"
            raise type(error)(error.reason, field=field) from error
    return events


def _check_open(stream: str, events: Sequence[Event]) -> None:
    """Raise CommandOnly for what goes by a command only, whoever asks."""
    if stream.partition("-")[0] in CLOSED:
        raise CommandOnly(f"stream {stream[:80]!r}")
    for event in events:
        if is_command_only(event.kind):
            raise CommandOnly(event.kind.__name__)


def is_command_only(event_type: type[Event]) -> bool:
    """Whether events of a type are stored by their commands only, which check more than these."""
    is_credential = not CREDENTIALS.isdisjoint(event_type.__struct_fields__)
    return is_credential or event_type.erases or issubclass(event_type, ApiKeyRotated)


def _check_permitted(who: Principal, stream: str, events: Sequence[Event]) -> None:
    """Raise Forbidden where the commands for such events would not be open to the caller."""
    for permission in RESERVED.get(stream.partition("-")[0], ()):
        if not who.may(permission):
            raise Forbidden(permission)
    for event in events:
        check_granted(who, getattr(event, "permissions", ()), getattr(event, "roles", ()))


def _known_by_ids(by: Call) -> Call:
    """Return a call whose events are known by ids that were given, whatever its key is."""
    origin = msgspec.structs.replace(by.origin, command_id=None)
    return msgspec.structs.replace(by, origin=origin)


def _new(stream: str, by: Call, body: EventsGiven, number: int, event: Event) -> NewEvent:
    given = body.events[number]
    if given.event_id is not None and given.event_id.version in DERIVED_VERSIONS:
        reason = "must be random (version 4) or by time (7), not follow from a name (5, 8)"
        raise InvalidEvent(reason, field=f"events[{number}].event_id")
    event_id = given.event_id or by.origin.event_id("append", number) or uuid7()
    return NewEvent(event, stream, event_id, given.occurred_at, by.origin.metadata)


def _versions(stream: str, by: Call, if_none_match: str | None) -> list[Condition]:
    """Return what `If-Match` and `If-None-Match` ask for."""
    versions = [] if by.expected_version is None else [by.expected_version]
    if if_none_match is not None:
        versions.append(0)
    return [ExpectedVersion(stream, version) for version in versions]


def _condition(given: VersionExpected | EventRuledOut | WindowKept) -> Condition:
    match given:
        case VersionExpected():
            return ExpectedVersion(given.stream, given.version)
        case WindowKept():
            return AtMost(given.stream, given.count, timedelta(seconds=given.window_seconds))
        case EventRuledOut():
            return _ruled_out(given)


def _ruled_out(given: EventRuledOut) -> NoEvent:
    if (given.stream is None) == (given.tag is None):
        raise InvalidEvent("takes either a stream or a tag", field="conditions")
    types = tuple(map(_type, given.types))
    return NoEvent(types=types, stream=given.stream, tag=given.tag, after=given.after)


def _type(name: str) -> type[Event]:
    known = event_types().get(name)
    if known is None:
        raise UnknownEventType(f"{name[:80]!r} is not a known event type", field="conditions")
    return known
