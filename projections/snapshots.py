"""Kept states of groups: what a fold of the first N events has led to, so that the rest is enough.

A snapshot is good for one fold of one history. It is bound to three hashes: of the fold, of the
events that are left out of it, and of the last event that is in it; and, where the fold sees
personal data, to how many people were erased. Where one of them is another by now the snapshot is
ignored; so it is where a chunk of it is missing or damaged.

What is kept are the rows as the fold has them in memory, before derived columns are set, of all
tables but those that go with an append-only one. They stand in their order, on which look-ups
depend.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import sha256
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.errors import LedgerError
from ledger.journal import Journal
from projections import parking
from projections.bookkeeping import snapshot_chunks, snapshots
from projections.database import Database
from projections.dialects import insert
from projections.fold import Group
from projections.fold_hash import fold_hash
from projections.groups import GROUPS
from projections.people import keys_forgotten, sees_people
from projections.projection import Rows, State, itself
from projections.replaying import fold_prefix
from projections.snapshot_format import FORMAT, AsId, Damaged, pack, unpack

UNFINISHED = ""
"""Stands for the hash of a snapshot that is not whole yet."""

_HASH_CHARS = 28


class SnapshotRefused(LedgerError):
    """No snapshot can be taken of what was asked for; nothing that could be used was stored."""


class Snapshot(msgspec.Struct, frozen=True):
    """A kept state: how many rows in how many bytes, and why it is not used (None: it is)."""

    group: str
    size: int
    rows: int
    bytes: int
    made_at: datetime
    stale: str | None = None


class Key(msgspec.Struct, frozen=True):
    """Where a snapshot lies."""

    journal_id: int
    group: str
    size: int

    def is_of(self, table: sa.Table) -> sa.ColumnElement[bool]:
        """Return the condition for its rows in one of the two tables."""
        column = table.c
        return sa.and_(
            column.journal_id == self.journal_id,
            column.group_name == self.group,
            column.size == self.size,
        )

    def values(self) -> dict[str, object]:
        """Return its columns."""
        return {"journal_id": self.journal_id, "group_name": self.group, "size": self.size}

    def bound(self, binding: str) -> str:
        """Name the snapshot and what it is good for: what its checksums cover."""
        return f"{self.journal_id} {self.group} {self.size} {binding}"


class Binding(msgspec.Struct, frozen=True):
    """What a snapshot is good for: hashes of the fold, of what it leaves out, of its last event.

    `erasures` counts the people that are erased; it is None where the fold sees nothing of people.
    """

    fold: str
    left_out: str
    last_event: str
    erasures: int | None

    def __str__(self) -> str:
        bound = f"{self.fold}.{self.left_out}.{self.last_event}"
        return bound if self.erasures is None else f"{bound}.{self.erasures}"

    def differs(self, stored: str) -> str | None:
        """Return why a snapshot that was stored with this text is not used, None if it is."""
        if stored == UNFINISHED:
            return "unfinished: it is being taken, or that was broken off"
        fold, _, rest = stored.partition(".")
        left_out, _, rest = rest.partition(".")
        last_event, _, erasures = rest.partition(".")
        if fold != self.fold:
            return "the fold has changed"
        if left_out != self.left_out:
            return "other events are skipped or parked now"
        if last_event != self.last_event:
            return "its last event is another now"
        is_before = self.erasures is not None and erasures != str(self.erasures)
        return "it is from before an erasure" if is_before else None


def is_kept(part: Group) -> bool:
    """Whether snapshots hold all tables of this part of a group."""
    return not any(each.append_only for each in part.projections)


@lru_cache(maxsize=32)
def kept_part(group: Group) -> Group:
    """Return the part of a group that snapshots hold; it may have no tables."""
    names = [each.name for each in group.projections if is_kept(group.only([each.name]))]
    return group.only(names)


def kept_groups() -> list[str]:
    """Name the groups of which snapshots can be taken."""
    return [name for name, group in GROUPS.items() if kept_part(group).projections]


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr)


async def load(
    database: Database,
    journal: Journal,
    part: Group,
    size_max: int,
    *,
    rows_max: int | None = None,
    as_id: AsId = itself,
    report: Callable[[str], None] = _to_stderr,
) -> tuple[State, int] | None:
    """Return the state of a part of a group at the latest usable snapshot, and its size, or None.

    It is as if folded from the first `size` events, at most `size_max`: all rows count as changed.
    Snapshots of more than `rows_max` rows (of all tables) are passed over. `as_id` is as for
    `Group.state`. A damaged snapshot is told to `report` in one line,
    and an older one taken.
    """
    whole = GROUPS.get(part.name)
    if whole is None or whole.fold_version != part.fold_version or not is_kept(part):
        return None
    async with database.snapshot() as connection:
        for found in await _stored(connection, journal, part.name, size_max):
            binding = await binding_of(connection, journal, kept_part(whole), found.size)
            is_fitting = rows_max is None or found.rows <= rows_max
            if binding is not None and binding.differs(found.fold_hash) is None and is_fitting:
                try:
                    state = await _read(connection, journal, part, found, as_id)
                except Damaged as error:
                    report(f"ignored the snapshot of {part.name} at size {found.size}: {error}")
                else:
                    return state, int(found.size)
    return None


class Beginning:
    """Where `fold_prefix` begins: at the latest usable snapshot, else before the first event.

    `sizes` names the groups that began at a snapshot, and its size.
    """

    def __init__(self, database: Database) -> None:
        self.sizes: dict[str, int] = {}
        self._database = database

    async def __call__(self, journal: Journal, part: Group, size: int) -> tuple[State, int]:
        """Return the state to go on from, and its size."""
        found = await load(self._database, journal, part, size)
        if found is None:
            return part.state(journal.journal_id, journal.name), 0
        self.sizes[part.name] = found[1]
        return found


async def _stored(
    connection: AsyncConnection, journal: Journal, group: str, size_max: int
) -> Sequence[sa.Row[Any]]:
    """Return the snapshots of a group up to a size, the latest first."""
    column = snapshots.c
    query = sa.select(snapshots).where(
        column.journal_id == journal.journal_id,
        column.group_name == group,
        column.size <= size_max,
    )
    return (await connection.execute(query.order_by(column.size.desc()))).all()


async def binding_of(
    connection: AsyncConnection, journal: Journal, part: Group, size: int
) -> Binding | None:
    """Return what a snapshot at `size` must be bound to, None where the journal is shorter."""
    events = await journal.store.read(journal.journal_id, size - 1, size)
    if not events:
        return None
    bound = (
        f"{FORMAT} {fold_hash(part)}".encode(),
        msgspec.json.encode(await _left_out(connection, journal, part, size)),
        msgspec.json.encode(events),
    )
    fold, left_out, last_event = (sha256(each).hexdigest()[:_HASH_CHARS] for each in bound)
    erasures = await journal.privacy.erasures() if sees_people(part) else None
    return Binding(fold, left_out, last_event, erasures)


async def _left_out(
    connection: AsyncConnection, journal: Journal, part: Group, size: int
) -> list[tuple[str, int]]:
    """Return which of the first `size` events are skipped or parked in which of the tables."""
    ruled = await parking.rulings(connection, journal.journal_id, part)
    places = {*ruled.skipped, *ruled.poisoned}
    return sorted((table, offset) for table, offset in places if offset < size)


async def _read(
    connection: AsyncConnection,
    journal: Journal,
    part: Group,
    found: sa.Row[Any],
    as_id: AsId,
) -> State:
    """Return the state that a snapshot holds; raises Damaged."""
    state = part.state(journal.journal_id, journal.name, as_id)
    key = Key(journal.journal_id, part.name, found.size)
    for table, rows in state.tables.items():
        number, is_last = 0, False
        while not is_last:
            body = await _body(connection, key, table, number)
            name = key.bound(found.fold_hash)
            chunk, is_last = unpack(rows.projection, body, name, number, as_id)
            take_in(rows, chunk)
            number += 1
        put_meant_last(rows)
    return state


async def _body(connection: AsyncConnection, key: Key, table: str, number: int) -> bytes | None:
    column = snapshot_chunks.c
    query = sa.select(column.body).where(
        key.is_of(snapshot_chunks), column.table_name == table, column.number == number
    )
    found: bytes | None = (await connection.execute(query)).scalar()
    return found


def take_in(rows: Rows[Any], chunk: Iterable[Any]) -> None:
    """Take rows in as the fold of the events before has left them: all of them changed."""
    for row in chunk:
        rows.put(row)
        rows.changed[getattr(row, rows.projection.key)] = row


def put_meant_last(rows: Rows[Any]) -> None:
    """Let the rows that an alias means be found by it, also where others were made after them."""
    aliases = [alias for alias in rows.projection.aliases if alias.where]
    for row in [row for row in rows if any(alias.is_meant(row) for alias in aliases)]:
        rows.put(row)


async def take(
    database: Database,
    journal: Journal,
    group: Group,
    size: int | None = None,
    advanced: Callable[[int], None] = lambda _: None,
    written: Callable[[int], None] = lambda _: None,
) -> Snapshot:
    """Keep the state of a group at `size`, by default at the journal's end; return what is kept.

    It begins at the latest usable snapshot, and leaves one that is at this size as it is. Right
    after an erasure it waits until this process has forgotten all data keys that it had before.
    `advanced` is told how many events were folded, `written` how many chunks were stored. Raises
    SnapshotRefused.
    """
    part, size = await _checked(journal, group, size)
    if sees_people(part):
        await keys_forgotten(journal, database.settings.key_cache_seconds)
    async with database.snapshot() as connection:
        binding = await binding_of(connection, journal, part, size)
        rulings = await parking.rulings(connection, journal.journal_id, part)
    begin = Beginning(database)
    state = await fold_prefix(journal, part, size, advanced, begin, rulings)
    for lane in state.parking.lanes:
        raise SnapshotRefused(
            f"{lane} is parked at size {size}; mend the fold and run `projections retry`, or skip "
            "the event, then take the snapshot"
        )
    if begin.sizes.get(part.name) != size:
        taking = Taking(database, journal, part, size)
        await taking.write(state, str(binding), written)
    [kept] = [each for each in await listed(database, journal, [part.name]) if each.size == size]
    return kept


async def _checked(journal: Journal, group: Group, size: int | None) -> tuple[Group, int]:
    """Return what of the group is to be kept, and at which size; raises SnapshotRefused."""
    part, end = kept_part(group), await journal.size()
    if not part.projections:
        raise SnapshotRefused(
            f"no table of group {group.name!r} can be kept, as each goes with an append-only one; "
            f"snapshots can be taken of {', '.join(kept_groups())}"
        )
    wanted = end if size is None else size
    if not 0 < wanted <= end:
        raise SnapshotRefused(f"journal {journal.name!r} holds {end} events, so none at {wanted}")
    return part, wanted


class Taking:
    """Writes one snapshot, chunk by chunk, so that nobody waits for all of it to be written.

    It counts only when it has its hash, which comes last.
    """

    def __init__(self, database: Database, journal: Journal, part: Group, size: int) -> None:
        self._database = database
        self._journal = journal
        self._part = part
        self._key = Key(journal.journal_id, part.name, size)
        self._made_at = datetime.now(UTC)

    async def write(self, state: State, binding: str, written: Callable[[int], None]) -> None:
        """Write all rows of the state; raises SnapshotRefused, and Inexact."""
        await self.begin(binding)
        for table, rows in state.tables.items():
            chunks = pack(rows.projection, rows, self._key.bound(binding))
            for number, body in enumerate(chunks):
                await self.put(table, number, body)
                written(1)
        await self.finish(binding, sum(map(len, state.tables.values())))

    async def begin(self, binding: str) -> None:
        """Take the place, also from who is at it; raises SnapshotRefused as `finish` does.

        What was folded before an erasure must not be written after a scrub, not even unfinished.
        """
        made = {"fold_hash": UNFINISHED, "rows": 0, "made_at": self._made_at}
        async with writing(self._database, self._journal) as connection:
            # First, since it locks the snapshot: who was at it can put nothing more in.
            statement = insert(snapshots, connection.dialect).values(self._key.values() | made)
            key = list(snapshots.primary_key)
            await connection.execute(statement.on_conflict_do_update(index_elements=key, set_=made))
            old_chunks = sa.delete(snapshot_chunks).where(self._key.is_of(snapshot_chunks))
            await connection.execute(old_chunks)
            if not await self._is_right(connection, binding):
                raise self._outdated()

    async def put(self, table: str, number: int, body: bytes) -> None:
        """Store a chunk; raises SnapshotRefused where the place was taken."""
        chunk = {"table_name": table, "number": number, "body": body}
        async with writing(self._database, self._journal) as connection:
            await self._check_is_own(connection)
            await connection.execute(sa.insert(snapshot_chunks).values(self._key.values() | chunk))

    async def finish(self, binding: str, rows: int) -> None:
        """Make the snapshot count; raises SnapshotRefused where it would not be usable."""
        async with writing(self._database, self._journal) as connection:
            await self._check_is_own(connection)
            is_right = await self._is_right(connection, binding)
            if is_right:
                done = sa.update(snapshots).where(self._key.is_of(snapshots))
                await connection.execute(done.values(fold_hash=binding, rows=rows))
            else:
                await _delete(connection, self._key)
        if not is_right:
            raise self._outdated()

    async def _is_right(self, connection: AsyncConnection, binding: str) -> bool:
        now = await binding_of(connection, self._journal, self._part, self._key.size)
        return str(now) == binding

    def _outdated(self) -> SnapshotRefused:
        return SnapshotRefused(
            f"events of {self._part.name!r} were skipped or parked while its snapshot was "
            "taken, or people erased; take it again"
        )

    async def _check_is_own(self, connection: AsyncConnection) -> None:
        """Lock the snapshot against being dropped, or taken by somebody else, until the commit."""
        query = sa.select(snapshots.c.made_at).where(self._key.is_of(snapshots)).with_for_update()
        if (await connection.execute(query)).scalar() != self._made_at:
            raise SnapshotRefused(
                f"the snapshot of {self._key.group!r} at size {self._key.size} was dropped, or "
                "begun by somebody else, while it was taken; take it again if it is still wanted"
            )


@asynccontextmanager
async def writing(database: Database, journal: Journal) -> AsyncIterator[AsyncConnection]:
    """Give a connection in a transaction that commits at the end, when it is our turn to write."""
    async with journal.store.write_turn(), database.transaction() as connection:
        yield connection


async def _delete(connection: AsyncConnection, key: Key) -> None:
    for table in (snapshots, snapshot_chunks):
        await connection.execute(sa.delete(table).where(key.is_of(table)))


async def listed(
    database: Database, journal: Journal, groups: Collection[str] | None = None
) -> list[Snapshot]:
    """Return the snapshots of a journal (of these groups), each with the reason if it is stale."""
    async with database.snapshot() as connection:
        found = (await connection.execute(_listing(journal.journal_id))).all()
        return [
            Snapshot(
                group=each.group_name,
                size=each.size,
                rows=each.rows,
                bytes=each.bytes,
                made_at=each.made_at,
                stale=await _stale(connection, journal, each),
            )
            for each in found
            if groups is None or each.group_name in groups
        ]


def _listing(journal_id: int) -> sa.Select[Any]:
    own, chunk = snapshots.c, snapshot_chunks.c
    of_it = (chunk[name] == own[name] for name in ("journal_id", "group_name", "size"))
    length = sa.func.coalesce(sa.func.sum(sa.func.length(chunk.body)), 0)
    in_all = sa.select(length).where(*of_it).scalar_subquery().label("bytes")
    query = sa.select(snapshots, in_all).where(own.journal_id == journal_id)
    return query.order_by(own.group_name, own.size)


async def _stale(connection: AsyncConnection, journal: Journal, found: sa.Row[Any]) -> str | None:
    """Return why a snapshot is not used, None if it is."""
    whole = GROUPS.get(found.group_name)
    if whole is None:
        return "there is no such group"
    binding = await binding_of(connection, journal, kept_part(whole), found.size)
    if binding is None:
        return "the journal is shorter"
    return binding.differs(found.fold_hash)


async def drop(database: Database, journal: Journal, dropped: Iterable[Snapshot]) -> None:
    """Drop snapshots; nothing but speed is lost."""
    for each in dropped:
        async with writing(database, journal) as connection:
            await _delete(connection, Key(journal.journal_id, each.group, each.size))
