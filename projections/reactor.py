"""The reactor: places closing orders where a mark crosses a level, and activates resting orders.

It is no projection: it reads marks as they come, looks at the live tables, and appends events of
its own. Nothing is fired by a replay or a rebuild, which only fold. It keeps no state: what it has
done is in the journal, so it may be killed at any moment and run any number of times.

Exactly once: the id of a closing order follows from its position and from the event that armed the
levels, its stream must be new, and nothing may have moved since the tables were read. A second
reactor, a second mark or a second try meets the first order. What did move is looked at again, and
keeps nothing else waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.conditions import Condition, ExpectedVersion
from ledger.deciding import Origin
from ledger.domain.marks import PriceMarked
from ledger.domain.orders import (
    OrderCancelRequested,
    OrderEvent,
    OrderReplaceRequested,
    OrderTriggered,
    order_stream,
)
from ledger.errors import EventExists, EventIdConflict, VersionConflict
from ledger.event import Amount, Metadata, RecordedEvent
from ledger.journal import Journal
from projections import checkpoints, parking, protection
from projections.database import Database
from projections.dialects import is_among
from projections.groups import TRADING
from projections.lanes import Lane, Parking
from projections.orders import PARTIALLY_FILLED, PENDING, Order, orders
from projections.positions import OPEN, Position, positions
from projections.projection import Projection
from projections.projector import POLL_SECONDS, Projector
from projections.protection import (
    CHANGING,
    PROTECTIVE,
    CannotProtect,
    Crossing,
    Mark,
    Row,
    Tables,
)

ACTOR = "reactor"
MARK_AGE_SECONDS = 60.0
CHUNK_SIZE = 1000
PASSES_MAX = 20
"""How often the reactor looks again at what keeps moving before it takes in what is new."""
PAUSE_SECONDS = 0.005

_orders, _positions = Order.__table__.c, Position.__table__.c
_is_unfinished = _orders.status.in_((PENDING, PARTIALLY_FILLED))


Reduced = tuple[Row, Row | None, int | None]
"""An order that may only reduce, the open position of its book, the size at which one closed."""


class Reaction(msgspec.Struct, frozen=True):
    """What the reactor did or could not do to an order or a position, and because of what."""

    what: str
    subject: UUID
    because: str

    def __str__(self) -> str:
        return f"{self.what} {self.subject}: {self.because}"


class _Moved(Exception):
    """Something has changed since the tables were read: look again."""


class Firing(msgspec.Struct, frozen=True):
    """A position or a resting order that a mark concerns; `crossed` is given for a position."""

    mark: Mark
    row: Row
    crossed: Crossing | None = None

    @property
    def key(self) -> str | None:
        """The book in which only one thing may happen before the tables are read again."""
        is_alone = self.crossed is not None or self.row.reduce_only
        return self.row.book if is_alone else None


class Reactor:
    """Reacts to the marks of one journal.

    A mark is stale, and ignored, if it happened more than `mark_age_seconds` ago or before another
    mark of its token that is known already; none counts as later than it was recorded. `reacted` is
    told of everything that is done.
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
        self._marks: dict[str, list[Mark]] = {}
        self._moved: dict[str, UUID] = {}
        self._reported: set[Reaction] = set()

    async def run(self, stopping: asyncio.Event, stop: int | None = None) -> None:
        """React until `stopping` is set, or to all events up to size `stop`."""
        self._moved = await self._settle(None)
        while not stopping.is_set():
            if not await self.advance(stop):
                if stop is not None:
                    return
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stopping.wait(), POLL_SECONDS)

    async def advance(self, stop: int | None = None) -> bool:
        """React to the next events; return whether there is more to do.

        Where this raises, nothing is lost: the next call takes in the same events again.
        """
        if self._size is None:
            # Older marks are stale, whatever became of them.
            oldest = self._journal.now() - self._mark_age
            self._size = (await self._journal.size_at(oldest)).size
        events = await self._next(self._size, stop)
        last_marked = dict(self._last_marked)
        marks = self._fresh_marks(events, last_marked)
        self._marks = await self._react(marks)
        self._moved = await self._settle(self._moved | _moved(events))
        self._last_marked = last_marked
        self._size += len(events)
        return bool(events or self._marks or self._moved)

    async def _next(self, start: int, stop: int | None) -> list[RecordedEvent]:
        end = start + CHUNK_SIZE if stop is None else min(stop, start + CHUNK_SIZE)
        async for chunk in self._journal.read_chunks(start, end, chunk_size=CHUNK_SIZE):
            return chunk
        return []

    def _fresh_marks(
        self, events: Iterable[RecordedEvent], last_marked: dict[str, datetime]
    ) -> dict[str, list[Mark]]:
        """Return the marks by token that are not stale, those that are still undone first."""
        oldest = self._journal.now() - self._mark_age
        fresh: dict[str, list[Mark]] = defaultdict(list)
        for token, marks in self._marks.items():
            fresh[token] = [mark for mark in marks if _time_of(mark[0]) >= oldest]
            for recorded, _ in marks[: len(marks) - len(fresh[token])]:
                because = f"what it concerns in {token} kept moving until it was stale"
                self._report_once(Reaction("gave up on mark", recorded.event_id, because))
        for recorded in events:
            event, at = recorded.event, _time_of(recorded)
            if not isinstance(event, PriceMarked):
                continue
            if max(last_marked.get(event.token, oldest), oldest) <= at:
                fresh[event.token].append((recorded, event))
                last_marked[event.token] = at
        return {token: marks for token, marks in fresh.items() if marks}

    async def _react(self, marks: dict[str, list[Mark]]) -> dict[str, list[Mark]]:
        """Fire all that the marks cross, in their order; return the marks of what kept moving."""
        for _ in range(PASSES_MAX):
            if not marks:
                break
            tables = await self._look(marks)
            undone = await self._fire(tables, marks)
            marks = {token: marks[token] for token in undone}
            if marks:
                await asyncio.sleep(PAUSE_SECONDS)
        return marks

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
            return await self._without_parked(connection, Tables(size, *found))

    async def _without_parked(self, connection: AsyncConnection, tables: Tables) -> Tables:
        """Leave out rows that wait for a poisoned event, and positions that such orders close."""
        rows: list[tuple[Projection[Any], Row]] = [(positions, e) for e in tables.positions]
        rows += [(orders, each) for each in tables.resting]
        parked = await self._parked(connection, parking.lanes_of_rows(rows))
        if not parked:
            return tables
        resting = [each for each in tables.resting if not self._is_parked(parked, orders, each)]
        kept = {each.order_id for each in resting}
        doubtful = {each.book for each in tables.resting if each.order_id not in kept}
        open_positions = [
            each
            for each in tables.positions
            if not self._is_parked(parked, positions, each) and each.book not in doubtful
        ]
        return Tables(tables.size, open_positions, resting)

    async def _parked(self, connection: AsyncConnection, lanes: Collection[Lane]) -> Parking:
        return await parking.load(connection, self._journal.journal_id, TRADING.name, lanes)

    def _is_parked(self, parked: Parking, projection: Projection[Any], row: Row) -> bool:
        """Whether a row is parked; if it is, that is reported once."""
        lane = parked.lane_of(projection.name, projection.names_of(row))
        if lane is not None:
            because = f"{lane} {parked.lanes[lane]}"
            subject = getattr(row, projection.key)
            self._report_once(Reaction(f"left alone in {projection.name}:", subject, because))
        return lane is not None

    async def _fire(self, tables: Tables, marks: dict[str, list[Mark]]) -> set[str]:
        """Fire once in each book; return the tokens that have to be looked at again."""
        firings, undone = await self._firings(tables, marks)
        done: set[str | None] = set()
        for firing in sorted(firings, key=lambda each: each.mark[0].offset):
            if firing.key is not None and firing.key in done:
                undone.add(firing.row.token)
                continue
            try:
                await self._fire_one(tables, firing)
            except _Moved:
                undone.add(firing.row.token)
            done.add(firing.key)
        return undone

    async def _firings(
        self, tables: Tables, marks: dict[str, list[Mark]]
    ) -> tuple[list[Firing], set[str]]:
        """Return what the marks cross, and the tokens of orders that have moved since."""
        found, moved = [], set[str]()
        for position in tables.positions:
            crossed = protection.crossing(tables, position, marks[position.token])
            if crossed is not None:
                found.append(Firing(crossed.mark, position, crossed))
        for order in tables.resting:
            if order.reduce_only and not protection.may_activate(tables, order):
                continue
            try:
                history = await self._history(order, tables.size)
            except _Moved:
                moved.add(order.token)
                continue
            mark = protection.activating(order, history, marks[order.token])
            if mark is not None:
                found.append(Firing(mark, order))
        return found, moved

    async def _fire_one(self, tables: Tables, firing: Firing) -> None:
        if firing.crossed is None:
            await self._activate(tables, firing.row, firing.mark)
        else:
            await self._protect(tables, firing.row, firing.crossed)

    async def _protect(self, tables: Tables, position: Row, crossed: Crossing) -> None:
        """Place the closing order of a position of which a mark has crossed a level."""
        try:
            placed = protection.closing_order(tables, position, crossed)
        except CannotProtect as error:
            self._report_once(Reaction("cannot protect position", position.position_id, str(error)))
            return
        if placed is not None:
            conditions = protection.closing_conditions(tables, position, placed)
            what = f"{crossed.kind.value} of position {position.position_id} placed order"
            await self._append(placed, crossed.mark[0].event_id, conditions, what)

    async def _activate(self, tables: Tables, order: Row, found: Mark) -> None:
        """Trigger a resting order whose trigger price a mark has reached."""
        history = await self._history(order, tables.size)
        conditions = protection.activating_conditions(tables, order, history)
        recorded, mark = found
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

    async def _settle(self, moved: dict[str, UUID] | None) -> dict[str, UUID]:
        """Let no order reduce what is gone: ask to cancel it, or to make it smaller.

        `moved` has the books to look at, each with the event that moved it; None means all books,
        for a reactor that died may have left something undone. Returns those that kept moving.
        """
        for _ in range(PASSES_MAX):
            if moved is not None and not moved:
                break
            await self._projector.catch_up()
            async with self._database.snapshot() as connection:
                size = await checkpoints.read(connection, self._journal.journal_id, TRADING)
                pairs = await _reducing(connection, self._journal.journal_id, moved)
                pairs = await self._pairs_without_parked(connection, pairs)
            moved = await self._settle_each(pairs, size, moved or {})
        return moved or {}

    async def _pairs_without_parked(
        self, connection: AsyncConnection, pairs: list[Reduced]
    ) -> list[Reduced]:
        lanes = parking.lanes_of_rows((orders, order) for order, _, _ in pairs)
        lanes |= parking.lanes_of_rows((positions, each) for _, each, _ in pairs if each)
        lanes |= {Lane(positions.name, "book", order.book) for order, _, _ in pairs}
        parked = await self._parked(connection, lanes)
        return [each for each in pairs if not parked or self._is_free(parked, *each)]

    def _is_free(
        self, parked: Parking, order: Row, position: Row | None, _closed_size: int | None
    ) -> bool:
        """Whether neither an order nor what it is to reduce is parked."""
        if self._is_parked(parked, orders, order):
            return False
        if position is not None and self._is_parked(parked, positions, position):
            return False
        return Lane(positions.name, "book", order.book) not in parked.lanes

    async def _settle_each(
        self, pairs: Iterable[Reduced], size: int, moved: dict[str, UUID]
    ) -> dict[str, UUID]:
        undone: dict[str, UUID] = {}
        for order, position, closed_size in pairs:
            because = moved.get(order.book)
            try:
                if protection.is_orphan(order, position, closed_size):
                    await self._cancel(order, size, because)
                elif (quantity := protection.excess(order, position)) is not None:
                    await self._reduce(order, size, quantity, because)
            except _Moved:
                undone[order.book] = because or order.order_id
        return undone

    async def _cancel(self, order: Row, size: int, because: UUID | None) -> None:
        history = await self._history(order, size)
        if not protection.is_being_cancelled(history):
            event = OrderCancelRequested(order_id=order.order_id)
            await self._request(event, order, history, size, because)

    async def _reduce(self, order: Row, size: int, quantity: Amount, because: UUID | None) -> None:
        history = await self._history(order, size)
        if quantity <= order.exact_filled_quantity:
            await self._cancel(order, size, because)
        elif not protection.is_being_replaced(history, quantity):
            event = OrderReplaceRequested(order_id=order.order_id, quantity=quantity)
            await self._request(event, order, history, size, because)

    async def _request(
        self,
        event: OrderCancelRequested | OrderReplaceRequested,
        order: Row,
        history: Sequence[RecordedEvent],
        size: int,
        because: UUID | None,
    ) -> None:
        conditions: list[Condition] = [
            ExpectedVersion(order_stream(order.order_id), history[-1].version),
            protection.unmoved(order.book, size),
        ]
        verb = "cancel" if isinstance(event, OrderCancelRequested) else "reduce"
        await self._append(event, because, conditions, f"its position changed, asked to {verb}")

    def _report_once(self, reaction: Reaction) -> None:
        if reaction not in self._reported:
            self._reported.add(reaction)
            self._reacted(reaction)


def _time_of(recorded: RecordedEvent) -> datetime:
    """Return when a mark happened; a venue's clock may run ahead, but not ours."""
    return min(recorded.occurred_at, recorded.recorded_at)


def _moved(events: Iterable[RecordedEvent]) -> dict[str, UUID]:
    """Return the books that events moved, each with the last of its events."""
    return {
        book: recorded.event_id
        for recorded in events
        if isinstance(recorded.event, CHANGING)
        for book in recorded.event.tags()
    }


async def _reducing(
    connection: AsyncConnection, journal_id: int, books: Iterable[str] | None
) -> list[Reduced]:
    """Return unfinished orders that may only reduce, with what is or was there to be reduced.

    That is the open position of the order's book, and the size at which the last one closed.
    """
    orders = sa.select(*_orders).where(
        _orders.journal_id == journal_id, _orders.reduce_only, _is_unfinished
    )
    if books is not None:
        orders = orders.where(is_among(_orders.book, list(books), connection.dialect))
    found = (await connection.execute(orders)).all()
    named = is_among(_positions.book, {order.book for order in found}, connection.dialect)
    own = sa.and_(_positions.journal_id == journal_id, named)
    open_positions = sa.select(*_positions).where(own, _positions.status == OPEN)
    last_closed = sa.select(_positions.book, sa.func.max(_positions.closed_size)).where(own)
    open_by_book = {each.book: each for each in await connection.execute(open_positions)}
    closed = await connection.execute(last_closed.group_by(_positions.book))
    closed_sizes = {each[0]: each[1] for each in closed}
    return [(each, open_by_book.get(each.book), closed_sizes.get(each.book)) for each in found]
