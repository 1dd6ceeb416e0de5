"""From what callers hand over to what stores write: everything is checked before it is queued."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from functools import cache
from uuid import UUID

from ledger.codec import check_name, encode_event, encode_metadata
from ledger.conditions import AtMost, Condition, ExpectedVersion, NoEvent
from ledger.errors import InvalidEvent, TooManyEvents
from ledger.event import Event, NewEvent, utc
from ledger.schema import CLAIM, RELEASE, TAG
from ledger.stores import PreparedAppend, PreparedEvent

APPEND_EVENTS_MAX = 1000

CLOCKS_APART_MAX = timedelta(seconds=5)
"""So much may the clock of whoever dates an event be ahead of the journal's."""


def prepare(events: Sequence[NewEvent], conditions: Sequence[Condition]) -> PreparedAppend:
    """Check and encode an append; InvalidEvent where any part of it cannot be stored."""
    if not 0 < len(events) <= APPEND_EVENTS_MAX:
        raise InvalidEvent(f"an append has 1 to {APPEND_EVENTS_MAX} events, not {len(events)}")
    prepared = tuple(map(_prepare_event, events))
    if len(prepared) > 1:
        _check_together(prepared)
    for condition in conditions:
        _check_condition(condition)
        if isinstance(condition, AtMost):
            _check_window(prepared, condition)
    return PreparedAppend(prepared, _in_order(conditions, prepared))


def _check_condition(condition: Condition) -> None:
    """Refuse a condition that a database could not even look up."""
    if isinstance(condition, NoEvent):
        number = condition.after
        where = condition.stream if condition.tag is None else condition.tag
    else:
        number = condition.version if isinstance(condition, ExpectedVersion) else condition.count
        where = condition.stream
    check_name(where or "", "condition")
    if not -(2**63) <= number < 2**63:
        raise InvalidEvent(f"{number} is out of range", field="condition")


def _in_order(
    conditions: Sequence[Condition], events: Sequence[PreparedEvent]
) -> tuple[Condition, ...]:
    """Put the versions expected of the append's own streams first, in the order of its events.

    The first condition that does not hold is reported, and PostgreSQL looks at these first.
    """
    if len(conditions) < 2:
        return tuple(conditions)
    expected: dict[str, Condition] = {}
    for condition in conditions:
        if isinstance(condition, ExpectedVersion):
            expected.setdefault(condition.stream, condition)
    streams = dict.fromkeys(event.stream for event in events)
    first = [expected[stream] for stream in streams if stream in expected]
    return (*first, *(one for one in conditions if not any(one is own for own in first)))


def _check_window(events: Sequence[PreparedEvent], window: AtMost) -> None:
    """Refuse an append that alone is more than its window may hold."""
    if sum(event.stream == window.stream for event in events) > window.count:
        raise TooManyEvents(window.stream, window.count, window.window.total_seconds())


def _prepare_event(new: NewEvent) -> PreparedEvent:
    event = new.event
    if event.retired:
        reason = f"{type(event).__name__} is retired: it is still read, but no longer appended"
        raise InvalidEvent(reason, field="type")
    if not isinstance(new.event_id, UUID):
        raise InvalidEvent(f"must be a UUID, not {type(new.event_id).__name__}", field="event_id")
    return PreparedEvent(
        event_id=new.event_id,
        stream=_stream_of(new),
        type=type(event).__name__,
        schema_version=event.schema_version,
        occurred_at=_occurred_at(new),
        metadata=encode_metadata(new.metadata),
        body=encode_event(event),
        tags=_tags_of(event),
    )


def _stream_of(new: NewEvent) -> str:
    """Return the stream, which must be the one that the event itself names."""
    own = new.event.stream()
    stream = new.stream or own
    if not stream:
        raise InvalidEvent(f"{type(new.event).__name__} needs a stream", field="stream")
    if own is not None and stream != own:
        raise InvalidEvent(
            f"{stream!r} does not fit the data, which belongs to {own!r}", field="stream"
        )
    check_name(stream, "stream")
    return stream


def _occurred_at(new: NewEvent) -> datetime | None:
    """Return the time in UTC."""
    if new.occurred_at is None:
        return None
    try:
        return utc(new.occurred_at)
    except ValueError as error:
        raise InvalidEvent(str(error), field="occurred_at") from error


def check_past(append: PreparedAppend, clock: Callable[[], datetime]) -> None:
    """Refuse what has not happened yet, but for the little by which clocks may differ."""
    dated = [each.occurred_at for each in append.events if each.occurred_at is not None]
    if dated and max(dated) > (now := clock()) + CLOCKS_APART_MAX:
        raise InvalidEvent(
            f"{max(dated).isoformat()} lies in the future: the clock here says "
            f"{now.isoformat()}; set the clock right, or leave it out for the time of recording",
            field="occurred_at",
        )


def _tags_of(event: Event) -> tuple[tuple[str, int], ...]:
    """Return the event's tags with their kinds, each once."""
    if not _has_tags(type(event)):
        return ()
    tags = dict.fromkeys(_all_tags(event))
    for tag, _ in tags:
        check_name(tag, "tag")
    return tuple(tags)


@cache
def _has_tags(event_type: type[Event]) -> bool:
    """Tell whether a type declares any tags; asking each event would be slower."""
    own = (event_type.tags, event_type.claims, event_type.releases)
    return own != (Event.tags, Event.claims, Event.releases)


def _all_tags(event: Event) -> Iterator[tuple[str, int]]:
    for kind, tags in ((TAG, event.tags()), (CLAIM, event.claims()), (RELEASE, event.releases())):
        for tag in tags:
            yield tag, kind


def _check_together(events: Sequence[PreparedEvent]) -> None:
    """Refuse appends that contradict themselves."""
    if len({event.event_id for event in events}) < len(events):
        raise InvalidEvent("two events of one append have the same id", field="event_id")
    holders: dict[str, str] = {}
    for event in events:
        for tag, kind in event.tags:
            if kind == CLAIM and holders.setdefault(tag, event.stream) != event.stream:
                raise InvalidEvent(f"two streams of one append claim {tag!r}", field="tag")
