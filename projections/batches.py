"""One batch: load the rows that its events need, fold, write; and what to do if that fails.

First it is folded without any guard. Where a handler raises, what is in memory is thrown away, and
the batch is folded again under guard, which parks whom the event concerns. So it is as long as
anything of the journal is parked in the group.

What the database refuses to take shows only when it is written, or at the commit. Then the batch is
halved until it is the one event at fault, which is parked with the database's error.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence

import asyncpg
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError, StatementError
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.errors import LedgerError
from ledger.event import RecordedEvent
from projections import parking, tables
from projections.database import one_line
from projections.fold import Group
from projections.guarding import fold_guarded, lanes_of
from projections.lanes import Lane, Place, Rulings, described
from projections.projection import State

REFUSED = "cannot be written: "
"""Leads the error of what the fold could make, but the database did not take."""

_DATA_CLASSES = ("22", "23", "54")
"""SQLSTATE classes: data exceptions, violated constraints, values too large for an index."""

_NO_FAULT_OF_DATA = (
    SQLAlchemyError,
    OSError,
    MemoryError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)
"""What tells of the database, of the connection or of this machine, whatever is written."""

Attempt = Callable[[int, Mapping[Place, str] | None], Awaitable[int]]
"""Folds at most so many events in a transaction of its own, some of them counted as poisoned."""


class CannotWrite(LedgerError):
    """A row that came out of the fold cannot be brought into the form of its columns."""

    exit_code = 3

    def __init__(self, error: Exception) -> None:
        super().__init__(f"a row cannot be written: {described(error)}; mend the fold")


async def fold_batch(
    connection: AsyncConnection,
    group: Group,
    journal: tuple[int, str],
    events: Sequence[RecordedEvent],
    poisoned: Mapping[Place, str] | None = None,
    name: str | None = None,
    only: Collection[str] | None = None,
    kept: State | None = None,
) -> State | None:
    """Fold events into the tables of a group, within the caller's transaction.

    `journal` is its id and name. `poisoned` places count as raising. Parked lanes are kept under
    `name`, that of the group if None. Of the tables, `only` these are written, if given. Raises
    CannotWrite and LanesUnknown.

    Returns the state, to be `kept` for the batch that comes next if nobody else has written then;
    None after a guarded fold.
    """
    name, start, stop = name or group.name, events[0].offset, events[-1].offset + 1
    noted = poisoned or await parking.is_noted(connection, journal[0], group, start, stop, name)
    state = None if noted else await _folded(connection, group, journal, events, kept)
    is_plain = state is not None
    if state is None:
        skips = await parking.rulings(connection, journal[0], group, poisoned=False)
        rulings = Rulings(skips.skipped, poisoned or {})
        state = await _folded_guarded(connection, group, journal, events, rulings, name)
    await _write(connection, group, state, only)
    await parking.save(connection, journal[0], name, state.parking)
    return state if is_plain else None


async def _folded(
    connection: AsyncConnection,
    group: Group,
    journal: tuple[int, str],
    events: Sequence[RecordedEvent],
    kept: State | None,
) -> State | None:
    """Return what the plain fold leads to, None where it raises."""
    state = await _loaded(connection, group, journal, events, kept)
    try:
        group.fold(state, events)
    except Exception:  # noqa: BLE001 - the guarded fold meets it again, and sorts it out
        return None
    return state


async def _folded_guarded(
    connection: AsyncConnection,
    group: Group,
    journal: tuple[int, str],
    events: Sequence[RecordedEvent],
    rulings: Rulings,
    name: str,
) -> State:
    state = await _loaded(connection, group, journal, events)
    lanes = {*_lanes_of_events(group, journal[1], events), *_lanes_of_rows(state)}
    state.parking = await parking.load(connection, journal[0], name, lanes)
    fold_guarded(group, state, events, rulings)
    return state


async def _loaded(
    connection: AsyncConnection,
    group: Group,
    journal: tuple[int, str],
    events: Sequence[RecordedEvent],
    kept: State | None = None,
) -> State:
    state = group.state(*journal) if kept is None else kept
    try:
        await tables.load(connection, state, events)
    except (SQLAlchemyError, OSError):
        raise
    except Exception:
        list(_lanes_of_events(group, journal[1], events))  # says which read model is at fault
        raise
    return state


def _lanes_of_events(group: Group, journal: str, events: Sequence[RecordedEvent]) -> Iterator[Lane]:
    for event in events:
        for projection, _ in group.steps.get(event.event.kind, ()):
            yield from lanes_of(projection, journal, event)


def _lanes_of_rows(state: State) -> Iterator[Lane]:
    for table, rows in state.tables.items():
        for row in rows:
            for column, value in rows.projection.names_of(row):
                yield Lane(table, column, value)


async def _write(
    connection: AsyncConnection, group: Group, state: State, only: Collection[str] | None
) -> None:
    try:
        await tables.write(connection, group, state, only)
    except Exception as error:
        if isinstance(error, _NO_FAULT_OF_DATA) and not isinstance(error, asyncpg.DataError):
            raise
        raise CannotWrite(error) from error


async def past_refusals(
    attempt: Attempt,
    events: Sequence[RecordedEvent],
    count: int,
    group: Group,
    error: LedgerError,
) -> int:
    """Get past what the database refuses of the next `count` events; return how many are folded.

    Those that the group folds are `events`. They are tried in ever smaller batches, at last (and at
    least once more) one event as it is. If that fails too, it is parked in the one table without
    which the rest can be written, or in all. Raises what is no fault of data.
    """
    if not events:  # another projector has got past them
        return await attempt(max(count, 1), None)
    is_tried_alone = False
    while not is_tried_alone:
        count = max(1, count // 2)
        is_tried_alone = count == 1
        try:
            return await attempt(count, None)
        except LedgerError as failed:
            if not is_refusal(failed):
                raise
            error = failed
    for suspects in _suspects(group, events[0]):
        poisoned = {(table, events[0].offset): reason_of(error) for table in suspects}
        try:
            return await attempt(1, poisoned)
        except LedgerError as failed:
            if not is_refusal(failed):
                raise
    raise error


def _suspects(group: Group, event: RecordedEvent) -> Iterator[tuple[str, ...]]:
    """Yield each table that folds an event, what depends on others first; at the end all."""
    names = tuple(each.name for each, _ in group.steps.get(event.event.kind, ()))
    for name in reversed(names):
        yield (name,)
    yield names


def is_refusal(error: LedgerError) -> bool:
    """Whether an error is a fault of the data that were to be written; a lost connection is not."""
    cause = error.__cause__
    if isinstance(error, CannotWrite) or isinstance(cause, IntegrityError | DataError):
        return True
    if not isinstance(cause, DBAPIError):
        return isinstance(cause, StatementError)  # a value that its column's type cannot bind
    original = cause.orig
    state = str(getattr(original, "sqlstate", None) or "")
    is_encoding = isinstance(getattr(original, "__cause__", None), asyncpg.DataError)
    return state.startswith(_DATA_CLASSES) or is_encoding


def reason_of(error: LedgerError) -> str:
    """Return what is recorded of a refusal."""
    cause = error.__cause__
    said = one_line(cause) if isinstance(cause, DBAPIError) else described(cause or error)
    return REFUSED + said
