"""An account of all that happens to checkpoints, kept by a trigger of the test's own.

The database itself writes it, in the transaction of each change; so it says what was committed, and
not what workers believe.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

import sqlalchemy as sa

from ledger.sqltypes import text_to_time
from projections.database import Database
from projections.leases import Pair

COLUMNS = "journal_id, group_name, old_epoch, epoch, old_worker_id, worker_id, old_size, size"
VALUES = (
    "new.journal_id, new.group_name, old.epoch, new.epoch, old.worker_id, new.worker_id,"
    " old.size, new.size"
)
POSTGRESQL = (
    """CREATE TABLE checkpoint_audit (
        number bigserial PRIMARY KEY, journal_id bigint, group_name text, old_epoch bigint,
        epoch bigint, old_worker_id text, worker_id text, old_size bigint, size bigint,
        at timestamptz NOT NULL DEFAULT clock_timestamp())""",
    f"""CREATE FUNCTION note_checkpoint() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO checkpoint_audit ({COLUMNS}) VALUES ({VALUES});
        RETURN NULL;
    END $$""",
    """CREATE TRIGGER note_checkpoint AFTER UPDATE ON checkpoints
        FOR EACH ROW EXECUTE FUNCTION note_checkpoint()""",
)
SQLITE = (
    """CREATE TABLE checkpoint_audit (
        number INTEGER PRIMARY KEY, journal_id, group_name, old_epoch, epoch, old_worker_id,
        worker_id, old_size, size,
        at TEXT DEFAULT (strftime('%Y-%m-%dT%H:%M:%f', 'now') || '000Z'))""",
    f"""CREATE TRIGGER note_checkpoint AFTER UPDATE ON checkpoints BEGIN
        INSERT INTO checkpoint_audit ({COLUMNS}) VALUES ({VALUES});
    END""",
)


class Change(NamedTuple):
    """One change of a checkpoint's row."""

    old_epoch: int
    epoch: int
    old_worker_id: str | None
    worker_id: str | None
    old_size: int
    size: int
    at: datetime


async def begin(database: Database) -> None:
    """Keep account from now on."""
    dialect = database.engine.dialect.name
    async with database.transaction() as connection:
        for statement in SQLITE if dialect == "sqlite" else POSTGRESQL:
            await connection.exec_driver_sql(statement)


async def read(database: Database) -> dict[Pair, list[Change]]:
    """Return the changes of each pair, in their order."""
    found: dict[Pair, list[Change]] = defaultdict(list)
    async with database.snapshot() as connection:
        query = sa.text(f"SELECT {COLUMNS}, at FROM checkpoint_audit ORDER BY number")
        for row in await connection.execute(query):
            at = text_to_time(row.at) if isinstance(row.at, str) else row.at
            found[row.journal_id, row.group_name].append(Change._make([*row[2:8], at]))
    return found


def assert_one_writer(changes: Sequence[Change]) -> None:
    """Hold that a checkpoint only ever went on, moved by the worker of the present epoch."""
    size, epoch, holder = 0, 0, None
    for change in changes:
        assert change.old_size == size, change
        assert change.size >= size, change
        assert change.old_epoch == epoch, change
        assert change.epoch in {epoch, epoch + 1}, change
        if change.epoch == epoch + 1:
            assert change.worker_id is not None, change
            holder = change.worker_id
        if change.size > size:
            assert (change.epoch, change.worker_id) == (epoch, holder), change
        size, epoch = change.size, change.epoch


def longest_without_owner(
    changes: Sequence[Change], ends: Mapping[str, datetime], until: datetime
) -> timedelta:
    """Return for how long at most a pair that had an owner had none.

    An owner's time ends when its worker does (`ends` by name) or it gives the lease back; from then
    on there is none until somebody claims the next epoch, or `until`.
    """
    claims = [change for change in changes if change.epoch > change.old_epoch]
    given_back = {change.epoch: change.at for change in changes if change.worker_id is None}
    longest = timedelta(0)
    for number, claim in enumerate(claims):
        following = claims[number + 1].at if number + 1 < len(claims) else until
        last_seen = [given_back.get(claim.epoch, until), ends.get(str(claim.worker_id), until)]
        # A claim may be committed just after its worker was killed.
        longest = max(longest, following - max(claim.at, min(last_seen)))
    return longest
