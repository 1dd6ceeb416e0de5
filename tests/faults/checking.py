"""The one check after each fault: nothing lost, nothing twice, nothing half, all verified."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.event import RecordedEvent
from ledger.journal import Journal
from projections.bookkeeping import side_checkpoints
from projections.database import Database
from projections.groups import GROUPS
from projections.rebuilding import side
from projections.verification import verify
from tests.faults.account import Account
from tests.ledger.support import assert_sound, read_all

RAW = "_raw"
SHAPE = {
    "postgresql": """
        SELECT 'table', relname, relname FROM pg_class
            WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
        UNION ALL SELECT 'index', tablename, indexname FROM pg_indexes WHERE schemaname = 'public'
        UNION ALL SELECT 'constraint', relname, conname FROM pg_constraint
            JOIN pg_class c ON c.oid = conrelid
            WHERE connamespace = 'public'::regnamespace AND contype IN ('c', 'f', 'p', 'u')
        UNION ALL SELECT 'trigger', relname, tgname FROM pg_trigger
            JOIN pg_class c ON c.oid = tgrelid WHERE NOT tgisinternal
        ORDER BY 1, 2, 3""",
    "sqlite": """
        SELECT type, tbl_name, name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'
        ORDER BY 1, 2, 3""",
}
UNVALIDATED = """SELECT CAST(CAST(conrelid AS regclass) AS text), quote_ident(conname)
    FROM pg_constraint WHERE contype = 'f' AND NOT convalidated"""
Part = tuple[str, str, str]


class Broken(AssertionError):
    """What must hold does not; the message says what, and what was found."""


class Checker:
    """Checks one database again and again, and that nothing which was once there goes away."""

    def __init__(self, account: Account) -> None:
        """Take the account of what was tried and acknowledged."""
        self.events = 0
        self.acknowledged = 0
        self._account = account
        self._seen: list[UUID] = []
        self._checkpoints: dict[str, int] = {}
        self._shape: list[Part] | None = None

    async def check(self, journal: Journal, database: Database) -> None:
        """Raise Broken where anything is not as it must be."""
        acknowledged = self._account.acknowledged.read()
        events = await read_all(journal)
        hold_sound(events)
        self._hold_kept(events)
        offsets = {each.event_id: each.offset for each in events}
        hold_acknowledged(acknowledged, offsets)
        hold_whole(self._account.tries(), offsets)
        await self._hold_verified(journal, database)
        async with database.snapshot() as connection:
            await self._hold_shape(connection)
        async with database.transaction() as connection:
            await hold_references(connection)
        self.events, self.acknowledged = len(events), len(acknowledged)

    def _hold_kept(self, events: Sequence[RecordedEvent]) -> None:
        """Hold that what was read once is still there, at the same place."""
        ids = [each.event_id for each in events]
        if ids[: len(self._seen)] != self._seen:
            raise Broken("the journal does not begin with what it held before")
        self._seen = ids

    async def _hold_verified(self, journal: Journal, database: Database) -> None:
        found = await verify(database, journal, GROUPS.values())
        if not found.is_verified or found.skipped:
            raise Broken("not verified: " + "; ".join(map(str, [*found.first, *found.parked])))
        for group, size in found.sizes.items():
            if size < self._checkpoints.get(group, 0):
                raise Broken(f"checkpoint of {group} went back to {size} from {self._checkpoints}")
        self._checkpoints = found.sizes

    async def _hold_shape(self, connection: AsyncConnection) -> None:
        """Hold that tables are whole, and that those beside them are known to the next rebuild."""
        rows = await connection.execute(sa.text(SHAPE[connection.dialect.name]))
        parts = [(str(row[0]), str(row[1]), str(row[2])) for row in rows]
        known = {each.name for each in await side.listed(connection)}
        beside = {table for _, table, _ in parts if side.is_side_table(table)}
        if stray := {each for each in beside if each.removesuffix(RAW) not in known}:
            raise Broken(f"nobody would remove {', '.join(sorted(stray))}")
        live = [part for part in parts if part[1] not in beside]
        self._shape = self._shape or live
        if live != self._shape:
            raise Broken(f"tables have changed: {sorted(set(live) ^ set(self._shape))}")


def hold_sound(events: Sequence[RecordedEvent]) -> None:
    """Hold that offsets and versions have no gaps, ids are there once, and time never runs back."""
    try:
        assert_sound(events)
    except AssertionError as error:
        raise Broken(f"the journal is not sound: {error}") from error


def hold_acknowledged(acknowledged: dict[UUID, int], offsets: dict[UUID, int]) -> None:
    """Hold that each acknowledged event is where it was said to be."""
    for event_id, offset in acknowledged.items():
        if offsets.get(event_id) != offset:
            found = offsets.get(event_id, "nowhere")
            raise Broken(f"event {event_id} was acknowledged at {offset} and is at {found}")


def hold_whole(tries: Sequence[Sequence[UUID]], offsets: dict[UUID, int]) -> None:
    """Hold that of each append all or nothing is there, in order, and nothing else at all."""
    for ids in tries:
        found = [offsets[each] for each in ids if each in offsets]
        if found and found != list(range(found[0], found[0] + len(ids))):
            raise Broken(f"of an append of {len(ids)} events there are those at {found}")
    if strangers := offsets.keys() - {each for ids in tries for each in ids}:
        raise Broken(f"nobody has appended {sorted(map(str, strangers))}")


async def hold_references(connection: AsyncConnection) -> None:
    """Hold that foreign keys hold, also those that a killed swap has not checked yet."""
    if connection.dialect.name == "sqlite":
        await _hold_sqlite(connection)
        return
    async with connection.begin_nested() as again:
        for table, name in (await connection.execute(sa.text(UNVALIDATED))).all():
            await connection.exec_driver_sql(f"ALTER TABLE {table} VALIDATE CONSTRAINT {name}")
        await again.rollback()


async def _hold_sqlite(connection: AsyncConnection) -> None:
    found = (await connection.exec_driver_sql("PRAGMA integrity_check")).scalars().all()
    if list(found) != ["ok"]:
        raise Broken(f"the file is not sound: {found}")
    dangling = (await connection.exec_driver_sql("PRAGMA foreign_key_check")).all()
    if dangling := [row for row in dangling if not side.is_side_table(row[0])]:
        raise Broken(f"foreign keys do not hold: {dangling}")


async def hold_cleared(database: Database) -> None:
    """Hold that a rebuild that went through has left nothing behind but what it keeps."""
    async with database.transaction() as connection:
        rows = await connection.execute(sa.text(SHAPE[connection.dialect.name]))
        beside = {row[1] for row in rows if row[0] == "table" and side.is_side_table(row[1])}
        kept = {each.name for each in await side.listed(connection, side.OLD)}
        accounts = set((await connection.execute(sa.select(side_checkpoints.c.name))).scalars())
        if beside != kept or not accounts <= kept:
            raise Broken(f"left behind: tables {beside - kept}, accounts {accounts - kept}")
        is_postgres = connection.dialect.name == "postgresql"
        if is_postgres and (left := (await connection.execute(sa.text(UNVALIDATED))).all()):
            raise Broken(f"foreign keys were never checked: {left}")
