"""Checkpoints: the size up to which each group has folded each journal."""

from __future__ import annotations

from datetime import datetime

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.errors import LedgerError, StoreUnavailable
from projections.bookkeeping import checkpoints
from projections.dialects import insert, time_now
from projections.fold import Group
from projections.leases import Lease, LeaseLost, is_held_by

_columns = checkpoints.c


class FoldChanged(LedgerError):
    """The tables of the group were filled by another version of the fold."""

    exit_code = 3

    def __init__(self, group: str, stored: str, own: str) -> None:
        super().__init__(
            f"the tables of group {group!r} were filled by version {stored} of the fold, this "
            f"program has version {own}; run the program that filled them, or fold them afresh: "
            "`replay.py rebuild`"
        )


class CheckpointAhead(LedgerError):
    """A group has folded more than the journal holds: the journal lost events, or was tampered."""

    exit_code = 3

    def __init__(self, group: str, checkpoint: int, size: int) -> None:
        super().__init__(
            f"group {group!r} is at checkpoint {checkpoint}, beyond the journal's size {size}; "
            "find out whether the journal was restored from an older copy before anything else"
        )


class Checkpoint(msgspec.Struct, frozen=True):
    """How far a group has folded a journal, and what else tells whether somebody wrote meanwhile.

    `epoch` changes with each lease, and whenever rows were changed at one and the same size.
    """

    size: int
    epoch: int
    updated_at: datetime


class _Found(msgspec.Struct, frozen=True):
    """A row of `checkpoints`."""

    size: int
    fold_version: str
    worker_id: str | None
    epoch: int
    updated_at: datetime


async def lock(
    connection: AsyncConnection, journal_id: int, group: Group, lease: Lease | None = None
) -> Checkpoint:
    """Return the checkpoint, which nobody else can move before the transaction ends.

    Raises LeaseLost where `lease` is given and no longer its worker's. Without a lease the lock
    alone orders writers: each reads the checkpoint under it, so nothing is folded twice. Raises
    FoldChanged where another version of the fold has filled the tables.
    """
    found = await _find(connection, journal_id, group, for_update=True)
    if found is None and lease is None:
        await create(connection, journal_id, group)
        found = await _find(connection, journal_id, group, for_update=True)
    if lease is not None:
        _check_lease(found, lease)
    if found is None:
        raise StoreUnavailable(f"the checkpoint of group {group.name!r} has vanished; try again")
    return Checkpoint(_size(found, group), found.epoch, found.updated_at)


async def create(connection: AsyncConnection, journal_id: int, group: Group) -> None:
    """Make the checkpoint at size 0 where there is none.

    Its fold version is that of the group's other journals: rows of all lie in the same tables.
    """
    others = sa.select(_columns.fold_version).where(_columns.group_name == group.name).limit(1)
    version = (await connection.execute(others)).scalar() or group.fold_version
    await connection.execute(
        insert(checkpoints, connection.dialect)
        .values(
            journal_id=journal_id,
            group_name=group.name,
            size=0,
            fold_version=version,
            updated_at=time_now(connection.dialect),
        )
        .on_conflict_do_nothing()
    )


async def read(connection: AsyncConnection, journal_id: int, group: Group) -> int:
    """Return the checkpoint, 0 where nothing has been folded yet."""
    return _size(await _find(connection, journal_id, group, for_update=False), group)


async def _find(
    connection: AsyncConnection, journal_id: int, group: Group, *, for_update: bool
) -> _Found | None:
    query = sa.select(
        _columns.size,
        _columns.fold_version,
        _columns.worker_id,
        _columns.epoch,
        _columns.updated_at,
    ).where(_is_of(journal_id, group))
    row = (await connection.execute(query.with_for_update() if for_update else query)).first()
    return None if row is None else _Found(*row)


def _size(found: _Found | None, group: Group) -> int:
    if found is None:
        return 0
    if found.fold_version != group.fold_version:
        raise FoldChanged(group.name, found.fold_version, group.fold_version)
    return found.size


def _check_lease(found: _Found | None, lease: Lease) -> None:
    worker_id, epoch = (None, 0) if found is None else (found.worker_id, found.epoch)
    if (worker_id, epoch) != (lease.worker_id, lease.epoch):
        raise LeaseLost(lease, worker_id, epoch)


async def advance(
    connection: AsyncConnection,
    journal_id: int,
    group: Group,
    size: int,
    lease: Lease | None = None,
) -> datetime:
    """Move the locked checkpoint to `size`, and prolong the lease under which that is done.

    Returns the time at which that was, by the database's clock.
    """
    now = time_now(connection.dialect)
    update = checkpoints.update().where(_is_of(journal_id, group)).values(size=size, updated_at=now)
    if lease is not None:
        until = time_now(connection.dialect, lease.seconds)
        update = update.where(*is_held_by(lease)).values(lease_expires_at=until)
    updated = await connection.execute(update.returning(_columns.updated_at))
    moved_at: datetime = updated.scalar_one()
    return moved_at


async def renounce(connection: AsyncConnection, journal_id: int, group: Group) -> None:
    """Say that rows were changed at the size of the locked checkpoint; a lease on it ends."""
    now = time_now(connection.dialect)
    changed = {"epoch": _columns.epoch + 1, "worker_id": None, "lease_expires_at": now}
    update = checkpoints.update().where(_is_of(journal_id, group)).values(changed)
    await connection.execute(update)


def _is_of(journal_id: int, group: Group) -> sa.ColumnElement[bool]:
    return sa.and_(_columns.journal_id == journal_id, _columns.group_name == group.name)
