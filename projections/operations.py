"""What operators look at and do while a service runs: lag, parked keys, rebuilds, pool, sizes.

Retries and rebuilds fold much, so they run beside the service, in threads with event loops and
connections of their own.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Executor
from datetime import UTC, datetime
from typing import Any, Literal, TypeVar
from uuid import uuid4

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.errors import InvalidCommand, LedgerError
from ledger.journal import Journal, open_journal
from ledger.settings import Settings
from projections import parking, rebuilding, retrying
from projections.asides import Aside
from projections.database import Database, PoolStatistics
from projections.fold import Group
from projections.groups import TABLES
from projections.health import PairStatus, pair_statuses
from projections.parking import EVERYTHING, ParkedKey, Part, SkippedEvent
from projections.rebuilding import (
    Comparison,
    InvalidTables,
    Options,
    Outcome,
    RebuildRunning,
    Watch,
)
from projections.retrying import Retried

T = TypeVar("T")
RebuildState = Literal["running", "done", "differs", "failed", "cancelled"]
Work = Callable[[Journal, Database], Coroutine[Any, Any, T]]

KEPT_REBUILDS_MAX = 50
REASON_CHARS_MAX = 1000
REASON_PATTERN = (
    r"^[^\x00-\x1f\x7f-\x9f]*[^\x00-\x20\x7f-\xa0][^\x00-\x1f\x7f-\x9f]*$"  # not blank, one line
)
_log = logging.getLogger(__name__)


class TableSize(msgspec.Struct, frozen=True):
    """How large a read table is.

    On PostgreSQL `rows` is the estimate of its statistics, and `bytes` counts its indexes too;
    SQLite counts the rows, and tells no bytes.
    """

    table: str
    rows: int
    bytes: int | None


class RebuildSeen(msgspec.Struct, frozen=True):
    """One rebuild that this process was asked for, as it stands.

    `stage` says what is done, `folded` of `total` events are folded. It `differs` if the new tables
    were not those that are live, which was not accepted; `differences` has a line for each.
    """

    id: str
    tables: tuple[str, ...]
    actor: str
    accept: bool
    state: RebuildState
    stage: str
    folded: int
    total: int
    started_at: datetime
    ended_at: datetime | None = None
    error: str | None = None
    differences: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Operations:
    """What can be seen and done; close it before the process ends."""

    def __init__(self, settings: Settings, journal: Journal, database: Database) -> None:
        """Take what the service has open; parked keys are those of this journal."""
        self._settings = settings
        self._journal = journal
        self._database = database
        self._rebuilds: deque[_Rebuild] = deque(maxlen=KEPT_REBUILDS_MAX)
        self._works: set[Aside[Any]] = set()

    async def statuses(self) -> list[PairStatus]:
        """Return how far each group of each journal is, and who takes care of it."""
        return await pair_statuses(self._database)

    async def parked(self, part: Part = EVERYTHING) -> list[ParkedKey]:
        """Return the keys of tables that wait since an event could not be folded, oldest first."""
        async with self._database.snapshot() as connection:
            return await parking.parked(connection, self._journal.journal_id, part=part)

    async def parked_count(self) -> int:
        """Return how many there are of them."""
        async with self._database.snapshot() as connection:
            return await parking.count_parked(connection, self._journal.journal_id)

    async def retry(self, table: str, value: str, *, actor: str | None = None) -> Retried:
        """Fold again what is parked in a table under a value, and what waits for it.

        Raises InvalidCommand for an unknown table, NotParked, StillRefused, Overtaken.
        """
        group = _group_of("retry", table)

        async def work(journal: Journal, database: Database) -> Retried:
            return await retrying.retry(database, journal, group, (table, value))

        retried = await self._aside("retry", work)
        _log.warning("retried", extra={"table": table, "freed": retried.freed, "actor": actor})
        return retried

    async def skip(
        self, table: str, offset: int, reason: str, actor: str
    ) -> tuple[SkippedEvent, Retried]:
        """Leave a parked event out of a table for ever; `reason` and `actor` are kept with it.

        Raises InvalidCommand, NotParked, StillRefused, Overtaken.
        """
        group = _group_of("skip", table)
        if len(reason) > REASON_CHARS_MAX or re.fullmatch(REASON_PATTERN, reason) is None:
            why = (
                f"must say why the event is left out, in one line of {REASON_CHARS_MAX} characters"
            )
            raise InvalidCommand("skip", "reason", why)

        async def work(journal: Journal, database: Database) -> tuple[SkippedEvent, Retried]:
            return await retrying.skip(database, journal, group, (table, offset), reason, actor)

        done = await self._aside("skip", work)
        _log.warning("skipped", extra={"table": table, "offset": offset, "actor": actor})
        return done

    def start_rebuild(
        self,
        tables: Sequence[str],
        *,
        accept: bool,
        actor: str,
        replace_old: bool = False,
        executor: Executor | None = None,
    ) -> RebuildSeen:
        """Begin to rebuild tables beside the live ones; return at once.

        Differences are swapped in only with `accept`; tables that the last rebuild has kept make
        room with `replace_old`. Processes of this machine fold, unless an `executor` does. Raises
        InvalidTables, and RebuildRunning while one runs here; one of another process shows as
        `failed`.
        """
        if not tables or not set(tables) <= set(TABLES):
            raise InvalidTables(f"name one or more of {', '.join(TABLES)}")
        if any(each.state == "running" for each in self._rebuilds):
            raise RebuildRunning
        options, names = Options(replace_old=replace_old), tuple(dict.fromkeys(tables))
        made = _Rebuild(self._settings, names, options, executor, actor, accept=accept)
        self._rebuilds.append(made)
        _log.warning("rebuild started", extra={"tables": list(tables), "actor": actor})
        return made.seen()

    def rebuilds(self) -> list[RebuildSeen]:
        """Return the rebuilds that this process was asked for, the latest first."""
        return [each.seen() for each in reversed(self._rebuilds)]

    async def table_sizes(self) -> list[TableSize]:
        """Return how large each read table is."""
        async with self._database.snapshot() as connection:
            if connection.dialect.name == "sqlite":
                return [await _counted(connection, name) for name in TABLES]
            found = {row.name: row for row in await connection.execute(_SIZES)}
        return [
            TableSize(name, max(0, int(found[name].rows)), found[name].bytes)
            for name in TABLES
            if name in found
        ]

    def pool(self) -> PoolStatistics:
        """Return the state of the read side's connection pool."""
        return self._database.pool_statistics()

    async def close(self) -> None:
        """Cancel what is under way, and wait until it has left all as it was."""
        works = [*self._works, *(each.aside for each in self._rebuilds)]
        await asyncio.gather(*(each.cancel() for each in works))

    async def _aside(self, name: str, work: Work[T]) -> T:
        """Run work in a thread of its own, with connections of its own; it is always finished."""
        settings, journal_name = self._settings, self._journal.name

        async def opened() -> T:
            async with (
                open_journal(settings, journal_name) as journal,
                Database(settings) as database,
            ):
                return await work(journal, database)

        aside = Aside(name, opened)
        self._works.add(aside)
        aside.result.add_done_callback(lambda _: self._works.discard(aside))
        return await aside.wait()


class _Rebuild(Watch):
    """A rebuild at work in a thread of its own; other threads only look at it."""

    def __init__(
        self,
        settings: Settings,
        tables: tuple[str, ...],
        options: Options,
        executor: Executor | None,
        actor: str,
        *,
        accept: bool,
    ) -> None:
        self._accept = accept
        self._seen = RebuildSeen(
            uuid4().hex, tables, actor, accept, "running", "connecting", 0, 0, datetime.now(UTC)
        )

        async def work() -> Outcome:
            return await rebuilding.rebuild(
                settings, tables, options=options, executor=executor, watch=self
            )

        self.aside = Aside("rebuild", work)
        self.aside.result.add_done_callback(lambda _: self._end())

    @property
    def state(self) -> RebuildState:
        return self._seen.state

    def seen(self) -> RebuildSeen:
        return self._seen

    def stage(self, text: str) -> None:
        self._note(stage=text)

    def folded(self, events: int, total: int) -> None:
        self._note(folded=events, total=total)

    def accepts(self, compared: Sequence[Comparison]) -> bool:
        differing = tuple(str(each) for each in compared if not each.is_same)
        self._note(differences=differing)
        return self._accept

    def _note(self, **changes: Any) -> None:
        self._seen = msgspec.structs.replace(self._seen, **changes)

    def _end(self) -> None:
        error = self.aside.result.exception()
        if error is None:
            outcome = self.aside.result.result()
            state: RebuildState = "done" if outcome.swapped else "differs"
            self._finish(state, notes=outcome.notes, folded=self._seen.total)
        elif isinstance(error, asyncio.CancelledError):
            self._finish("cancelled", error="the service was stopped; live tables are as before")
        else:
            said = str(error) if isinstance(error, LedgerError) else repr(error)
            self._finish("failed", error=said)

    def _finish(self, state: RebuildState, **changes: Any) -> None:
        self._note(state=state, stage=state, ended_at=datetime.now(UTC), **changes)
        seen = self._seen
        level = logging.ERROR if state == "failed" else logging.WARNING
        extra = {"rebuild": seen.id, "state": state, "tables": list(seen.tables)}
        _log.log(level, "rebuild ended", extra={**extra, "actor": seen.actor, "error": seen.error})


_SIZES = sa.text(
    "SELECT c.relname AS name, c.reltuples AS rows, pg_total_relation_size(c.oid) AS bytes"
    " FROM pg_class c WHERE c.relkind = 'r' AND pg_table_is_visible(c.oid)"
)


async def _counted(connection: AsyncConnection, name: str) -> TableSize:
    [table] = (each.table for each in TABLES[name].projections if each.name == name)
    rows = await connection.scalar(sa.select(sa.func.count()).select_from(table))
    return TableSize(name, rows or 0, None)


def _group_of(command: str, table: str) -> Group:
    if table not in TABLES:
        raise InvalidCommand(command, "table", f"there are {', '.join(TABLES)}")
    return TABLES[table]
