"""One row from its own streams: the events that a row follows from, without reading all others.

Which they are follows from what the folds look at. An event names its stream, and the tags by which
others find it; both have an index. Starting with the key, streams and tags are read until nothing
more is found that the row may depend on. Their fold then gives the very row that the fold of all
events gives; it is the same fold.

Some rows cannot be found so: postings and the audit log have keys that lead to no stream, and a
position whose id is derived is found by its book, for which the live table is asked. What is found
is checked; where nothing is found, all events have to be folded.

All is read through a lens: keys that have been used a hundred thousand times are asked for too. So
ids are text on the way, and those of the row that is shown are made what they are elsewhere.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator
from decimal import localcontext
from functools import lru_cache
from typing import Any
from uuid import UUID

import msgspec
import sqlalchemy as sa

from ledger.domain.api_keys import api_key_stream, api_key_use_stream
from ledger.domain.marks import market_stream
from ledger.domain.orders import Execution, OrderPlaced, order_stream, position_tag
from ledger.domain.positions import (
    PositionEvent,
    closing_order_id,
    cycle_id,
    id_of_nothing,
    is_derived,
    position_stream,
)
from ledger.domain.users import UNCHECKED, LoginFailed, UserRegistered, user_stream
from ledger.event import Event, RecordedEvent, event_types
from ledger.journal import Journal
from ledger.lens import Lens
from projections import parking
from projections.database import Database
from projections.fold import Group
from projections.groups import TABLES
from projections.numbers import CONTEXT
from projections.points import InvalidRequest
from projections.projection import Projection, State

PASSES_MAX = 1000


class NotFromStreams(Exception):
    """Only a fold of all events can tell; the message says why."""


class Gathered:
    """Events of one journal below a size, read stream by stream and tag by tag, each once.

    All ids are text, as a lens has them, also where types say UUID.
    """

    def __init__(
        self,
        journal: Journal,
        database: Database | None,
        size: int,
        lens: Lens,
        most: int | None = None,
    ) -> None:
        """Take whose events, below which size, and how many of one stream are `most`."""
        self.journal = journal
        self.size = size
        self._most = most
        self._database = database
        self._lens = lens
        self._events: dict[int, RecordedEvent] = {}
        self._streams: dict[str, list[RecordedEvent]] = {}
        self._tags: dict[str, tuple[int, list[RecordedEvent]]] = {}

    @property
    def events(self) -> list[RecordedEvent]:
        """All that was read, in order."""
        return [self._events[offset] for offset in sorted(self._events)]

    def __len__(self) -> int:
        return len(self._events)

    async def stream(self, name: str) -> list[RecordedEvent]:
        """Return the events of a stream; raises NotFromStreams where they are too many."""
        if name not in self._streams:
            limit = None if self._most is None else self._most + 1
            found = await self.journal.read_stream_lens(
                self._lens, name, stop=self.size, limit=limit
            )
            if self._most is not None and len(found) > self._most:
                raise NotFromStreams(f"a stream has more than {self._most:,} events")
            self._take(found)
            self._streams[name] = found
        return self._streams[name]

    async def tag(self, name: str, stop: int | None = None) -> list[RecordedEvent]:
        """Return the events that carry a tag, at least those below `stop`."""
        stop = self.size if stop is None else stop
        done, found = self._tags.get(name, (0, []))
        if done < stop:
            new = await self.journal.read_tagged_lens(self._lens, name, done - 1, stop=stop)
            self._tags[name] = stop, (found := found + new)
            self._take(new)
        return found

    async def registration(self, user_id: UUID) -> None:
        """Take in the event by which a user is there, which is all that others look at."""
        name = user_stream(user_id)
        if name in self._streams:
            return
        # Nearly always it is the first one of the stream, which may be long.
        first = await self.journal.read_stream_lens(self._lens, name, stop=self.size, limit=1)
        if first and isinstance(first[0].event, UserRegistered):
            self._take(first)
            return
        await self.stream(name)

    async def book(self, position_id: UUID) -> str:
        """Return the book of a position; raises NotFromStreams where nobody knows it."""
        if not is_derived(position_id):
            return f"position:{position_id}"
        for event in await self.stream(position_stream(position_id)):
            named = event.event.book if isinstance(event.event, PositionEvent) else None
            if named is not None and await self._opens(named, position_id):
                return named
        book = await self._live_book(position_id)
        if book is None or not await self._opens(book, position_id):
            raise NotFromStreams(f"the live table does not tell the book of position {position_id}")
        return book

    async def _opens(self, book: str, position_id: UUID) -> bool:
        """Whether a position is one of a book's, now or later: the id follows from its opening."""
        if str(position_id) == str(id_of_nothing(book)):
            return True
        name = self.journal.name
        if any(_opened(name, event) == position_id for event in await self.tag(book)):
            return True
        later = await self.journal.read_tagged_lens(self._lens, book, self.size - 1)
        return any(_opened(name, event) == position_id for event in later)

    async def _live_book(self, position_id: UUID) -> str | None:
        """Return what the live table says."""
        if self._database is None:
            return None
        column, key = _table("positions").c, UUID(str(position_id))
        query = sa.select(column.book).where(
            column.journal_id == self.journal.journal_id, column.position_id == key
        )
        async with self._database.snapshot() as connection:
            book: str | None = (await connection.execute(query)).scalar()
        return book

    def _take(self, events: Iterable[RecordedEvent]) -> None:
        self._events.update((each.offset, each) for each in events)


def _table(name: str) -> sa.Table:
    return projection_of(name).table


def _opened(journal: str, recorded: RecordedEvent) -> UUID | None:
    """Return the derived id of the position that a fill would open."""
    event = recorded.event
    if not isinstance(event, Execution):
        return None
    return cycle_id(journal, recorded.event_id, event, is_first=False)


def projection_of(table: str) -> Projection[Any]:
    """Return the projection of a table that exists."""
    return next(each for each in TABLES[table].projections if each.name == table)


def key_of(table: str, text: str) -> Any:
    """Return a key as rows have it; raises InvalidRequest."""
    projection = projection_of(table)
    if not isinstance(projection.table.c[projection.key].type, sa.Uuid):
        return text
    try:
        return UUID(text)
    except ValueError as error:
        raise InvalidRequest(f"{text!r} is not a {projection.key}: those are UUIDs") from error


async def gather(
    journal: Journal,
    database: Database | None,
    table: str,
    key: Any,
    size: int,
    *,
    envelope: bool = False,
    most: int | None = None,
) -> list[RecordedEvent]:
    """Return the events that a row follows from, of the first `size`, in order, through a lens.

    Their fold gives the row as it was after each of them. With `envelope` they have metadata and
    body; with `most` no stream has more of them. Raises NotFromStreams.
    """
    find = _FINDERS.get(table)
    if find is None:
        raise NotFromStreams(f"the key of {table} leads to no stream")
    group = TABLES[table].only([table])
    if database is not None:
        await _check_unpoisoned(journal, database, group, size)
    lens = _lens_of(tuple(event_types().values()), envelope)
    gathered = Gathered(journal, database, size, lens, most)
    await find(gathered, str(key))
    return gathered.events


@lru_cache(maxsize=4)
def _lens_of(types: tuple[type[Event], ...], envelope: bool) -> Lens:
    return Lens(types, envelope=envelope)


async def _check_unpoisoned(journal: Journal, database: Database, group: Group, size: int) -> None:
    async with database.snapshot() as connection:
        noted = await parking.is_noted(connection, journal.journal_id, group, 0, size, group.name)
    if noted:
        raise NotFromStreams("events are skipped or parked")


def fold_events(
    group: Group,
    journal: Journal,
    events: Iterable[RecordedEvent],
    watch: Callable[[State, RecordedEvent], None] | None = None,
) -> State:
    """Fold gathered events, with ids as text; raises NotFromStreams where a handler raises."""
    state = group.state(journal.journal_id, journal.name, str)
    if watch is None:
        _fold(group, state, events)
        return state
    for event in events:
        _fold(group, state, [event])
        watch(state, event)
    return state


def _fold(group: Group, state: State, events: Iterable[RecordedEvent]) -> None:
    offset = -1

    def noted() -> Iterator[RecordedEvent]:
        nonlocal offset
        for event in events:
            offset = event.offset
            yield event

    try:
        group.fold(state, noted())
    except MemoryError:
        raise
    except Exception as error:
        raise NotFromStreams(f"the event at offset {offset} cannot be folded") from error


async def _find_user(gathered: Gathered, user_id: UUID) -> None:
    await gathered.stream(user_stream(user_id))
    refused = LoginFailed(username="", user_id=user_id, reason=min(UNCHECKED))
    await gathered.stream(refused.stream())


async def _find_api_key(gathered: Gathered, key_id: UUID) -> None:
    for event in await gathered.stream(api_key_stream(key_id)):
        await _find_owner(gathered, event.event)
    await gathered.stream(api_key_use_stream(key_id))


async def _find_owner(gathered: Gathered, event: Event) -> None:
    user_id = getattr(event, "user_id", None)
    if user_id is not None:
        await gathered.registration(user_id)


async def _find_order(gathered: Gathered, order_id: UUID) -> None:
    """Find the order's own events, and which cycle of which book each of its fills has moved."""
    for recorded in await gathered.stream(order_stream(order_id)):
        event, stop = recorded.event, recorded.offset + 1
        await _find_owner(gathered, event)
        if isinstance(event, OrderPlaced) and event.position_id is not None:
            await gathered.tag(await gathered.book(event.position_id), stop)
        if isinstance(event, Execution) and event.user_id is not None:
            await gathered.tag(position_tag(event.user_id, event.token, event.position_id), stop)


async def _find_position(gathered: Gathered, position_id: UUID) -> None:
    """Find the events of the position's book, and the orders that open it or are to close it."""
    await gathered.stream(position_stream(position_id))
    book = await gathered.book(position_id)
    fills = [each.event for each in await gathered.tag(book) if isinstance(each.event, Execution)]
    for user_id in {each.user_id for each in fills if each.user_id is not None}:
        await gathered.registration(user_id)
    for _ in range(PASSES_MAX):
        known, traced = len(gathered), _trace(gathered, position_id)
        for order_id in traced.orders:
            await gathered.stream(order_stream(order_id))
        if len(gathered) == known:
            break
    else:
        raise NotFromStreams(f"position {position_id} is armed too often")


class _Traced:
    """Which orders a position has to do with: the one of the fill that opens it, closing ones."""

    def __init__(self, position_id: UUID) -> None:
        self.orders: dict[UUID, None] = {}
        self.is_there = False
        self._position_id = position_id
        self._armed: int | None = None

    def __call__(self, state: State, recorded: RecordedEvent) -> None:
        """Look at the position after an event."""
        row = state.look_up("positions", self._position_id)
        if row is None:
            return
        if not self.is_there:
            self.is_there = True
            opening = getattr(recorded.event, "order_id", None)
            if opening is not None:
                self.orders[opening] = None
        if row.armed_size is not None and row.armed_size != self._armed:
            self._armed = row.armed_size
            self.orders[closing_order_id(row.position_id, row.armed_size)] = None


def _trace(gathered: Gathered, position_id: UUID) -> _Traced:
    traced = _Traced(position_id)
    group = TABLES["positions"].only(["positions"])
    fold_events(group, gathered.journal, gathered.events, traced)
    return traced


async def _find_mark(gathered: Gathered, token: str) -> None:
    await gathered.stream(market_stream(token))


async def _find_book(gathered: Gathered, book: str) -> None:
    await gathered.tag(book)


_FINDERS: dict[str, Callable[[Gathered, Any], Awaitable[None]]] = {
    "users": _find_user,
    "api_keys": _find_api_key,
    "orders": _find_order,
    "positions": _find_position,
    "marks": _find_mark,
    "book_balances": _find_book,
}


def row_of(state: State, table: str, key: Any) -> Any:
    """Return the row with a key as it is shown, None if there is none."""
    rows = state.tables[table]
    row = rows.get(state.as_id(key))
    if row is None:
        return None
    with localcontext(CONTEXT):
        return _with_ids(rows.projection, rows.projection.finish(row))


def _with_ids(projection: Projection[Any], row: Any) -> Any:
    """Return a row, a copy where its ids are text, with the ids made what they are elsewhere."""
    texts = ((name, getattr(row, name)) for name in _id_columns(projection))
    ids = {name: UUID(text) for name, text in texts if isinstance(text, str)}
    return msgspec.structs.replace(row, **ids) if ids else row


@lru_cache(maxsize=32)
def _id_columns(projection: Projection[Any]) -> tuple[str, ...]:
    return tuple(each.name for each in projection.table.columns if isinstance(each.type, sa.Uuid))
