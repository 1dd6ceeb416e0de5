"""Checkpoints: the size up to which each group has folded each journal."""

from __future__ import annotations

from datetime import UTC, datetime

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.errors import LedgerError
from projections.bookkeeping import checkpoints
from projections.dialects import insert
from projections.fold import Group

_columns = checkpoints.c


class FoldChanged(LedgerError):
    """The tables of the group were filled by another version of the fold."""

    exit_code = 3

    def __init__(self, group: str, stored: str, own: str) -> None:
        super().__init__(
            f"the tables of group {group!r} were filled by version {stored} of the fold, this "
            f"program has version {own}; run the program that filled them, or empty them and their "
            "checkpoint and fold them afresh"
        )


class CheckpointAhead(LedgerError):
    """A group has folded more than the journal holds: the journal lost events, or was tampered."""

    exit_code = 3

    def __init__(self, group: str, checkpoint: int, size: int) -> None:
        super().__init__(
            f"group {group!r} is at checkpoint {checkpoint}, beyond the journal's size {size}; "
            "find out whether the journal was restored from an older copy before anything else"
        )


async def lock(connection: AsyncConnection, journal_id: int, group: Group) -> int:
    """Return the checkpoint, which nobody else can move before the transaction ends."""
    await connection.execute(
        insert(checkpoints, connection.dialect).on_conflict_do_nothing(),
        _values(journal_id, group, 0),
    )
    return await _read(connection, journal_id, group, for_update=True)


async def read(connection: AsyncConnection, journal_id: int, group: Group) -> int:
    """Return the checkpoint, 0 where nothing has been folded yet."""
    return await _read(connection, journal_id, group, for_update=False)


async def _read(
    connection: AsyncConnection, journal_id: int, group: Group, *, for_update: bool
) -> int:
    query = sa.select(_columns.size, _columns.fold_version).where(_is_of(journal_id, group))
    found = (await connection.execute(query.with_for_update() if for_update else query)).first()
    if found is None:
        return 0
    if found.fold_version != group.fold_version:
        raise FoldChanged(group.name, found.fold_version, group.fold_version)
    return int(found.size)


async def advance(connection: AsyncConnection, journal_id: int, group: Group, size: int) -> None:
    """Move the locked checkpoint to `size`."""
    update = checkpoints.update().where(_is_of(journal_id, group))
    await connection.execute(update.values(_values(journal_id, group, size)))


def _is_of(journal_id: int, group: Group) -> sa.ColumnElement[bool]:
    return sa.and_(_columns.journal_id == journal_id, _columns.group_name == group.name)


def _values(journal_id: int, group: Group, size: int) -> dict[str, object]:
    return {
        "journal_id": journal_id,
        "group_name": group.name,
        "size": size,
        "fold_version": group.fold_version,
        "updated_at": datetime.now(UTC),
    }
