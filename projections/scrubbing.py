"""Scrubbing: after an erasure nothing of what was erased is left in the database's files.

What was encrypted cannot be read any more once its data key is destroyed; what the read tables hold
of it in plain can. So those with personal columns are folded afresh, by the ordinary rebuild, and
the old ones are dropped, with all that were kept before and with the snapshots. Then whatever the
database keeps beside is written anew. It can be broken off and run again at any time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from concurrent.futures import Executor
from contextlib import AsyncExitStack, asynccontextmanager
from time import monotonic
from typing import Any
from uuid import UUID

import msgspec
import sqlalchemy as sa

from ledger.domain.users import UserErased
from ledger.errors import JournalNotFound, LedgerError
from ledger.event import event_types
from ledger.journal import Journal
from ledger.journals import Journals
from ledger.settings import Settings
from ledger.stores.opening import open_store
from projections import checkpoints, rebuilding, rewriting, snapshots
from projections.bookkeeping import parked_keys, skipped_events
from projections.database import Database
from projections.fold import Group
from projections.groups import GROUPS
from projections.people import PERSONAL_COLUMNS, keys_forgotten, sees_people
from projections.rebuilding.comparing import Comparison
from projections.rebuilding.work import Options, Watch, owner_settings

WAIT_SECONDS = 60.0
POLL_SECONDS = 0.2
CHUNK_SIZE = 50_000
ERROR_WITHHELD = "withheld: people were erased, whose values it may quote"
_IGNORED = tuple(name for name in event_types() if name != UserErased.__name__)


class KeyNotDestroyed(LedgerError):
    """A user is said to be erased whose data key is still there."""

    def __init__(self, journal: str, user_id: UUID, offset: int) -> None:
        super().__init__(
            f"journal {journal!r}: user {user_id} was erased at offset {offset}, but the data key "
            f"is still there; run `ledger erase-user {user_id} --reason …` again, then this"
        )
        self.user_id = user_id


class ErasureNotFolded(LedgerError):
    """The read tables have not got to the last erasure, so they are still to change."""

    exit_code = 3

    def __init__(self, journal: str, group: str, size: int, checkpoint: int) -> None:
        super().__init__(
            f"journal {journal!r}: group {group!r} is at checkpoint {checkpoint}, and the last "
            f"erasure is at offset {size - 1}; see that a projector runs (`projections run`), or "
            "give it more time with --wait-seconds"
        )


class TablesDiffer(LedgerError):
    """The tables differ from the journal in more than what was erased; nothing was changed."""

    exit_code = 1

    def __init__(self, found: Collection[str]) -> None:
        super().__init__(
            f"the tables differ from the journal in more than what was erased: {'; '.join(found)}; "
            "nothing was changed: look into it with `replay.py verify`, and run `replay.py "
            "rebuild` if the journal is right"
        )


class Scrubbed(msgspec.Struct, frozen=True):
    """What was done: how many people are erased, and what was made afresh and dropped."""

    erased: int
    tables: tuple[str, ...] = ()
    snapshots: int = 0
    errors_withheld: int = 0
    notes: tuple[str, ...] = ()


class Erased(msgspec.Struct, frozen=True):
    """What a journal says of erasures: how many, and the size after the last one's event."""

    count: int
    size: int


class Accepting(Watch):
    """Accepts what an erasure changes and nothing else; never shows a value. Tells as `watch`."""

    def __init__(self, watch: Watch) -> None:
        """Take whom to tell what is done."""
        self._watch = watch
        self.refused: list[str] = []

    def stage(self, text: str) -> None:
        """Pass on what is done from now on."""
        self._watch.stage(text)

    def folded(self, events: int, total: int) -> None:
        """Pass on how far the folding is."""
        self._watch.folded(events, total)

    def accepts(self, compared: Sequence[Comparison]) -> bool:
        """Whether only what was erased differs."""
        self.refused = [said for each in compared for said in beyond_erasure(each)]
        return not self.refused


def beyond_erasure(compared: Comparison) -> list[str]:
    """Name what differs between two tables beside what an erasure changes, without the values."""
    rows = (("old", compared.only_old[0]), ("new", compared.only_new[0]))
    found = [
        f"{compared.table}: {count:,} rows only in the {which}" for which, count in rows if count
    ]
    return found + [
        f"{compared.table}.{each.column}: {each.rows - each.erased:,} rows, the first of all that "
        f"differ {each.key}"
        for each in compared.differing
        if each.rows > each.erased
    ]


async def scrub(
    settings: Settings,
    journals: Sequence[str] | None = None,
    *,
    options: Options | None = None,
    wait_seconds: float = WAIT_SECONDS,
    executor: Executor | None = None,
    watch: Watch | None = None,
) -> Scrubbed:
    """Remove what was erased from the files of the database; all journals share its tables.

    First every erasure of `journals` (all, if None) must be complete and folded, which is waited
    for up to `wait_seconds`. `executor` is as for `rebuild`. Raises KeyNotDestroyed,
    ErasureNotFolded, TablesDiffer, RebuildRunning and the other errors of `rebuild`, StillVisible,
    MayNotRewrite, JournalNotFound.
    """
    watch = watch or Watch()
    deadline = monotonic() + wait_seconds
    async with _opened(settings, journals) as found, Database(settings) as database:
        erased = {each.name: await _erased(each, watch) for each in found}
        count = sum(each.count for each in erased.values())
        if not count:
            return Scrubbed(0)
        for journal in found:
            await _folded(database, journal, erased[journal.name], deadline, watch)
            await keys_forgotten(journal, settings.key_cache_seconds)
    tables, notes = await _rebuild(settings, options or Options(), executor, watch)
    watch.stage("dropping snapshots and kept errors")
    owner = owner_settings(settings, Options())
    async with _opened(owner, None) as found, Database(owner) as database:
        dropped = [await _drop_snapshots(database, each) for each in found]
        withheld = [await _withhold_errors(database, each) for each in found]
    for url in dict.fromkeys([owner.database_url, settings.keys_database_url]):
        if url is not None:
            await rewriting.rewrite(owner, url, wait_seconds, watch.stage)
    return Scrubbed(count, tables, sum(dropped), sum(withheld), notes)


@asynccontextmanager
async def _opened(settings: Settings, names: Sequence[str] | None) -> AsyncIterator[list[Journal]]:
    """Open the journals of these names, all without any."""
    async with AsyncExitStack() as stack:
        store = open_store(settings)
        stack.push_async_callback(store.close)
        journals = Journals(settings, store)
        stack.push_async_callback(journals.close)
        found = await journals.all()
        if missing := sorted(set(names or ()) - {each.name for each in found}):
            raise JournalNotFound(missing[0])
        yield [each for each in found if not names or each.name in names]


async def _erased(journal: Journal, watch: Watch) -> Erased:
    """Return what there is to scrub of a journal; raises KeyNotDestroyed."""
    watch.stage(f"looking for erasures in journal {journal.name}")
    destroyed = {each.subject for each in await journal.privacy.destroyed()}
    end, size = await journal.size(), 0
    for start in range(0, end, CHUNK_SIZE):
        for each in await journal.read_but(_IGNORED, start, min(end, start + CHUNK_SIZE)):
            if isinstance(each.event, UserErased):
                if each.event.subject() not in destroyed:
                    raise KeyNotDestroyed(journal.name, each.event.user_id, each.offset)
                size = each.offset + 1
    return Erased(len(destroyed), size)


def _groups() -> list[Group]:
    return [group for group in GROUPS.values() if sees_people(group)]


async def _folded(
    database: Database, journal: Journal, erased: Erased, deadline: float, watch: Watch
) -> None:
    """Wait until the read tables have got past the last erasure; raises ErasureNotFolded."""
    for group in _groups():
        is_told = False
        while True:
            async with database.snapshot() as connection:
                checkpoint = await checkpoints.read(connection, journal.journal_id, group)
            if checkpoint >= erased.size:
                break
            if monotonic() >= deadline:
                raise ErasureNotFolded(journal.name, group.name, erased.size, checkpoint)
            if not is_told:
                watch.stage(f"waiting for group {group.name} of journal {journal.name}")
                is_told = True
            await asyncio.sleep(POLL_SECONDS)


async def _rebuild(
    settings: Settings, options: Options, executor: Executor | None, watch: Watch
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Make the tables with personal columns afresh, and drop all that are kept.

    Returns the tables, and what is not whole afterwards. Raises TablesDiffer.
    """
    accepting = Accepting(watch)
    replacing = msgspec.structs.replace(options, replace_old=True)
    outcome = await rebuilding.rebuild(
        settings,
        list(PERSONAL_COLUMNS),
        options=replacing,
        executor=executor,
        watch=accepting,
    )
    if not outcome.swapped:
        raise TablesDiffer(accepting.refused)
    watch.stage("dropping the tables that were kept")
    await rebuilding.drop_old(settings)
    return outcome.swapped, outcome.notes


async def _drop_snapshots(database: Database, journal: Journal) -> int:
    """Drop the snapshots of groups that see people; return how many there were."""
    names = [group.name for group in _groups()]
    found = await snapshots.listed(database, journal, names)
    await snapshots.drop(database, journal, found)
    return len(found)


async def _withhold_errors(database: Database, journal: Journal) -> int:
    """Take away what folds have raised, which may quote the rows they met; return how often.

    All of it, where anybody is erased: an event that names nobody can meet a row that does.
    """
    if not await journal.privacy.erasures():
        return 0
    async with snapshots.writing(database, journal) as connection:
        results: list[Any] = [
            await connection.execute(_withheld(table, journal))
            for table in (parked_keys, skipped_events)
        ]
    return sum(each.rowcount for each in results)


def _withheld(table: sa.Table, journal: Journal) -> sa.Update:
    is_own = table.c.journal_id == journal.journal_id
    is_said = table.c.error.is_not(None), table.c.error != ERROR_WITHHELD
    return sa.update(table).where(is_own, *is_said).values(error=ERROR_WITHHELD)
