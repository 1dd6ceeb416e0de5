"""The reactor: places closing orders where a mark crosses a level, and activates resting orders.

It is no projection: it reads marks as they come, looks at the live tables, and appends events of
its own. Nothing is fired by a replay or a rebuild, which only fold. It keeps no state: what it has
done is in the journal, so it may be killed at any moment and run any number of times.

Exactly once: the id of a closing order follows from its position and from the event that armed the
levels, its stream must be new, and nothing may have moved since the tables were read. A second
reactor, a second mark or a second try meets the first order.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from uuid import UUID

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.conditions import Condition, ExpectedVersion
from ledger.decider import Origin
from ledger.domain.marks import PriceMarked
from ledger.domain.orders import OrderCancelRequested, OrderEvent, OrderTriggered, order_stream
from ledger.errors import EventExists, EventIdConflict, VersionConflict
from ledger.event import Metadata, RecordedEvent
from ledger.journal import Journal
from projections import checkpoints, protection
from projections.database import Database
from projections.dialects import is_among
from projections.groups import TRADING
from projections.orders import PARTIALLY_FILLED, PENDING, Order
from projections.positions import OPEN, Position
from projections.projector import POLL_SECONDS, Projector
from projections.protection import CHANGING, PROTECTIVE, CannotProtect, Mark, Row, Tables

ACTOR = "reactor"
MARK_AGE_SECONDS = 60.0
CHUNK_SIZE = 1000

_orders, _positions = Order.__table__.c, Position.__table__.c
_is_unfinished = _orders.status.in_((PENDING, PARTIALLY_FILLED))


class Reaction(msgspec.Struct, frozen=True):
    """What the reactor did or could not do to an order or a position, and because of what."""

    what: str
    subject: UUID
    because: str

    def __str__(self) -> str:
        return f"{self.what} {self.subject}: {self.because}"


class _Moved(Exception):
    """Something has changed since the tables were read: look again."""


class Reactor:
    """Reacts to the marks of one journal.

    A mark is stale, and ignored, if it happened more than `mark_age_seconds` ago or before another
    mark of its token that is known already. `reacted` is told of everything that is done.
    """

    def __init__(
        self,
        database: Database,
        journal: Journal,
        *,
        mark_age_seconds: float = MARK_AGE_SECONDS,
        reacted: Callable[[Reaction], None] = lambda _: None,
    ) -> None:
        self._database = database
        self._journal = journal
        self._projector = Projector(database, journal, TRADING)
        self._mark_age = timedelta(seconds=mark_age_seconds)
        self._reacted = reacted
        self._size: int | None = None
        self._last_marked: dict[str, datetime] = {}
        self._reported: set[Reaction] = set()

    async def run(self, stopping: asyncio.Event, stop: int | None = None) -> None:
        """React until `stopping` is set, or to all events up to size `stop`."""
        await self._cancel_orphans(None)
        while not stopping.is_set():
            if await self.advance(stop) == 0:
                if stop is not None:
                    return
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stopping.wait(), POLL_SECONDS)

    async def advance(self, stop: int | None = None) -> int:
        """React to the next events; return how many they were."""
        if self._size is None:
            # Older marks are stale, whatever became of them.
            oldest = self._journal.now() - self._mark_age
            self._size = (await self._journal.size_at(oldest)).size
        events = await self._next(self._size, stop)
        if events:
            await self._react(self._fresh_marks(events))
            await self._cancel_orphans(_moved(events))
            self._size = events[-1].offset + 1
        return len(events)

    async def _next(self, start: int, stop: int | None) -> list[RecordedEvent]:
        end = start + CHUNK_SIZE if stop is None else min(stop, start + CHUNK_SIZE)
        async for chunk in self._journal.read_chunks(start, end, chunk_size=CHUNK_SIZE):
            return chunk
        return []

    def _fresh_marks(self, events: Iterable[RecordedEvent]) -> dict[str, list[Mark]]:
        """Return the marks by token, without those that are stale."""
        oldest = self._journal.now() - self._mark_age
        fresh: dict[str, list[Mark]] = defaultdict(list)
        for recorded in events:
            event = recorded.event
            if isinstance(event, PriceMarked):
                last = self._last_marked.get(event.token, oldest)
                if max(last, oldest) <= recorded.occurred_at:
                    fresh[event.token].append((recorded, event))
                    self._last_marked[event.token] = recorded.occurred_at
        return fresh

    async def _react(self, marks: dict[str, list[Mark]]) -> None:
        """Fire all that the marks cross; look again whenever something moved meanwhile."""
        while marks:
            tables = await self._look(marks)
            try:
                for position in tables.positions:
                    await self._protect(tables, position, marks[position.token])
                for order in tables.resting:
                    await self._activate(tables, order, marks[order.token])
            except _Moved:
                continue
            return

    async def _look(self, tokens: Iterable[str]) -> Tables:
        """Bring the tables up to the journal's end and read what marks of these tokens concern."""
        await self._projector.catch_up()
        async with self._database.snapshot() as connection:
            size = await checkpoints.read(connection, self._journal.journal_id, TRADING)
            positions = sa.select(*_positions).where(
                _positions.journal_id == self._journal.journal_id,
                _positions.status == OPEN,
                is_among(_positions.token, list(tokens), connection.dialect),
            )
            resting = sa.select(*_orders).where(
                _orders.journal_id == self._journal.journal_id,
                _is_unfinished,
                _orders.order_type.in_(PROTECTIVE),
                is_among(_orders.token, list(tokens), connection.dialect),
            )
            found = [(await connection.execute(query)).all() for query in (positions, resting)]
            return Tables(size, *found)

    async def _protect(self, tables: Tables, position: Row, marks: Sequence[Mark]) -> None:
        """Place the closing order of a position if a mark has crossed one of its levels."""
        crossed = protection.crossing(tables, position, marks)
        if crossed is None:
            return
        try:
            placed = protection.closing_order(position, crossed)
        except CannotProtect as error:
            self._report_once(Reaction("cannot protect position", position.position_id, str(error)))
            return
        if placed is not None:
            conditions = protection.closing_conditions(tables, position, placed)
            what = f"{crossed.kind.value} of position {position.position_id} placed order"
            await self._append(placed, crossed.mark.event_id, conditions, what)

    async def _activate(self, tables: Tables, order: Row, marks: Sequence[Mark]) -> None:
        """Trigger a resting order whose trigger price a mark has reached."""
        history = await self._history(order, tables.size)
        found = protection.activating(order, history, marks)
        if found is None or (order.reduce_only and not protection.may_activate(tables, order)):
            return
        recorded, mark = found
        conditions = protection.activating_conditions(tables, order, history)
        event = OrderTriggered(order_id=order.order_id, price=mark.price)
        await self._append(event, recorded.event_id, conditions, f"activated {order.order_type}")

    async def _history(self, order: Row, size: int) -> list[RecordedEvent]:
        """Return the events of an order, which must be those that its row was folded from."""
        history = await self._journal.read_stream(order_stream(order.order_id))
        if history[-1].offset >= size:
            raise _Moved
        return history

    async def _append(
        self, event: OrderEvent, because: UUID | None, conditions: Sequence[Condition], what: str
    ) -> None:
        """Append an event of the reactor's own, once; somebody else may have been faster."""
        version = next(each.version for each in conditions if isinstance(each, ExpectedVersion))
        metadata = Metadata(actor=ACTOR, causation_id=because)
        origin = Origin(command_id=event.order_id, metadata=metadata)
        new = origin.of(f"{ACTOR} {type(event).__name__} {version}", [event])
        try:
            appended = await self._journal.append(new, *conditions)
        except EventIdConflict:
            return  # another reactor has done the same because of another mark
        except VersionConflict as error:
            if error.expected == 0:
                return
            raise _Moved from error
        except EventExists as error:
            raise _Moved from error
        if not appended.duplicate:
            self._reacted(Reaction(what, event.order_id, f"because of event {because}"))

    async def _cancel_orphans(self, moved: dict[str, UUID] | None) -> None:
        """Ask to cancel the orders that were to reduce a position which is closed now.

        `moved` has the books to look at, each with the event that moved it; None means all books,
        for a reactor that died may have left something undone.
        """
        while moved is None or moved:
            await self._projector.catch_up()
            async with self._database.snapshot() as connection:
                size = await checkpoints.read(connection, self._journal.journal_id, TRADING)
                orphans = await _orphans(connection, self._journal.journal_id, moved)
            try:
                for order in orphans:
                    await self._cancel(order, size, (moved or {}).get(order.book))
            except _Moved:
                continue
            return

    async def _cancel(self, order: Row, size: int, because: UUID | None) -> None:
        history = await self._history(order, size)
        if not protection.is_being_cancelled(history):
            conditions: list[Condition] = [
                ExpectedVersion(order_stream(order.order_id), history[-1].version),
                protection.unmoved(order.book, size),
            ]
            event = OrderCancelRequested(order_id=order.order_id)
            await self._append(event, because, conditions, "position closed, asked to cancel")

    def _report_once(self, reaction: Reaction) -> None:
        if reaction not in self._reported:
            self._reported.add(reaction)
            self._reacted(reaction)


def _moved(events: Iterable[RecordedEvent]) -> dict[str, UUID]:
    """Return the books that events moved, each with the last of its events."""
    return {
        book: recorded.event_id
        for recorded in events
        if isinstance(recorded.event, CHANGING)
        for book in recorded.event.tags()
    }


async def _orphans(
    connection: AsyncConnection, journal_id: int, books: Iterable[str] | None
) -> Sequence[Row]:
    """Return the open orders that may only reduce, whose position was closed after them."""
    own = sa.and_(_positions.journal_id == _orders.journal_id, _positions.book == _orders.book)
    is_open = sa.exists().where(own, _positions.status == OPEN)
    was_closed = sa.exists().where(
        own, _positions.status != OPEN, _positions.changed_size > _orders.placed_size
    )
    query = sa.select(*_orders).where(
        _orders.journal_id == journal_id, _orders.reduce_only, _is_unfinished, ~is_open, was_closed
    )
    if books is not None:
        query = query.where(is_among(_orders.book, list(books), connection.dialect))
    return (await connection.execute(query)).all()
