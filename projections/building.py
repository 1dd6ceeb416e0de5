"""Folding a journal into tables that nobody reads yet: what the processes of a rebuild do."""

from __future__ import annotations

import asyncio

import msgspec
import sqlalchemy as sa

from ledger.journal import Journal, open_journal
from ledger.settings import Settings
from projections import tables
from projections.bookkeeping import side_checkpoints
from projections.database import Database
from projections.groups import GROUPS
from projections.replaying import CHUNK_SIZE

ROWS_MAX = 400_000


class Part(msgspec.Struct, frozen=True):
    """A piece of a rebuild: which tables of a group are filled from a journal, and where.

    `targets` are the names of the new tables by those of the live ones; they exist, without indexes
    and empty of the journal's rows. `name` is where the part keeps account of how far it is (the
    row of `side_checkpoints` with this name and the journal's id, which exists). `rows_max` bounds
    the rows in memory.
    """

    name: str
    journal: str
    journal_id: int
    group: str
    targets: dict[str, str]
    size: int
    rows_max: int = ROWS_MAX


class Built(msgspec.Struct, frozen=True):
    """What was folded, and how many rows each live table's new one has got of the journal."""

    events: int
    rows: dict[str, int]


def build(settings: Settings, part: Part) -> Built:
    """Fold the first `part.size` events of the journal into the new tables; called in a process.

    The tables are written in transactions of their own and are of no use until this returns.
    """
    return asyncio.run(_build(settings, part))


async def _build(settings: Settings, part: Part) -> Built:
    async with open_journal(settings, part.journal) as journal, Database(settings) as database:
        return await _fold_into(journal, database, part)


async def _fold_into(journal: Journal, database: Database, part: Part) -> Built:
    group = GROUPS[part.group].only(part.targets)
    state = group.state(journal.journal_id, journal.name)
    folded = 0
    async for events in journal.read_chunks(0, part.size, chunk_size=CHUNK_SIZE):
        group.fold(state, events)
        folded += len(events)
        await _note_progress(database, part, folded)
    targets = group.at(part.targets)
    async with database.transaction() as connection:
        await tables.write(connection, targets, state, part.targets)
    return Built(folded, {table: len(state.tables[table]) for table in part.targets})


async def _note_progress(database: Database, part: Part, folded: int) -> None:
    own = (side_checkpoints.c.name == part.name, side_checkpoints.c.journal_id == part.journal_id)
    async with database.transaction() as connection:
        await connection.execute(sa.update(side_checkpoints).where(*own).values(size=folded))
