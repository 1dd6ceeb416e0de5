"""Leases: which worker projects which pair of group and journal, and which workers are alive.

A lease is a worker's name, an epoch and an end in the pair's row of `checkpoints`. Each claim
raises the epoch, and a batch checks it under the row's lock in the transaction that moves the
checkpoint; so whoever lost the lease writes nothing, however late it notices. The end only says
when others may claim: all times are the database's, so workers' clocks do not matter. Where that
clock steps back, a lease with an end far ahead counts as ended, and its worker sets it anew.

A retry, a skip or a swap changes rows without a lease. It raises the epoch under the same lock and
ends the lease (it is *renounced*), so that nobody goes on with rows that are no longer so.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.errors import LedgerError
from projections.bookkeeping import checkpoints, workers
from projections.dialects import insert, time_now

Pair = tuple[int, str]
"""A journal's id and a group's name."""

FORGOTTEN_AFTER_LEASES = 100
ABANDONED_AFTER = 1 / 3
"""What has been free for this part of a lease, all who had room for it have left alone."""
FAR_AHEAD_LEASES = 10
"""A lease that ends later than this was given before the database's clock stepped back."""
_columns = checkpoints.c

# A driver sends a statement that is new to it in two parts, and the server waits for the second one
# as in the middle of a statement: no timeout ends that, nor the sending of rows that nobody takes.
_END_FROZEN = sa.text("""
    SELECT pg_terminate_backend(a.pid) FROM pg_stat_activity AS a
    WHERE a.datname = current_database() AND a.usename = current_user
        AND a.pid <> pg_backend_pid() AND a.state = 'active'
        AND a.state_change < clock_timestamp() - make_interval(secs => CASE a.wait_event
            WHEN 'ClientRead' THEN CAST(:silent AS float8)
            WHEN 'ClientWrite' THEN CAST(:unread AS float8) END)
        AND EXISTS (SELECT FROM pg_locks AS l WHERE l.pid = a.pid AND l.granted
            AND l.locktype = 'relation' AND l.mode <> 'AccessShareLock'
            AND l.relation IN (to_regclass('checkpoints'), to_regclass('workers')))
        AND NOT EXISTS (SELECT FROM pg_stat_progress_copy AS c WHERE c.pid = a.pid)""")


class Lease(msgspec.Struct, frozen=True):
    """A worker's right to move the checkpoint of a pair, as long as the pair has its epoch."""

    journal_id: int
    group: str
    worker_id: str
    epoch: int
    seconds: float

    @property
    def pair(self) -> Pair:
        """What it is for."""
        return self.journal_id, self.group


class PairSeen(msgspec.Struct, frozen=True):
    """A pair as its row says: who has it and how long nobody had.

    `is_free` is True where nobody has it or the lease has ended, `is_abandoned` where that has been
    so for a good part of what a lease lasts.
    """

    journal_id: int
    group: str
    fold_version: str
    worker_id: str | None
    epoch: int
    is_free: bool
    is_abandoned: bool

    @property
    def pair(self) -> Pair:
        """What it is about."""
        return self.journal_id, self.group


class LeaseLost(LedgerError):
    """The pair is another worker's by now, or free; nothing of the batch was written."""

    exit_code = 3

    def __init__(self, lease: Lease, worker_id: str | None, epoch: int) -> None:
        pair = f"group {lease.group!r} of journal {lease.journal_id} (epoch {lease.epoch})"
        if worker_id is None:
            text = (
                f"the lease of worker {lease.worker_id} on {pair} was ended, since rows were "
                f"changed by a retry, skip or swap (epoch {epoch}); the pair is claimed anew"
            )
        else:
            text = (
                f"worker {lease.worker_id} has lost the lease on {pair} to {worker_id} (epoch "
                f"{epoch}); it was not heard of for longer than LEDGER_LEASE_SECONDS"
            )
        super().__init__(text)


class WorkerReplaced(LedgerError):
    """Another process has registered under this worker's name."""

    exit_code = 3

    def __init__(self, worker_id: str) -> None:
        super().__init__(
            f"another worker has registered as {worker_id!r}; give each its own --worker-id"
        )


class ProgramFrozen(LedgerError):
    """The server has ended sessions whose program stood still with others' rows locked."""

    exit_code = 3

    def __init__(self, count: int) -> None:
        super().__init__(
            f"ended {count} session(s) of a program that has the checkpoints or workers locked and "
            "does not answer; find out what has stopped it (a paused machine, a debugger, SIGSTOP)"
        )


async def bound(connection: AsyncConnection, seconds: float, lock_seconds: float = 0) -> None:
    """Let the server end this transaction when its client falls silent for so long.

    A client that is frozen while it holds a row's lock would hold it for ever otherwise; for one
    that is frozen in the middle of a statement there is `end_frozen`. `lock_seconds` bounds each
    wait for a lock; 0 leaves that to the statement's time. SQLite cannot do this; there other
    processes report the one that does not let go of its turn.
    """
    if connection.dialect.name == "sqlite":
        return
    wanted = {"idle_in_transaction_session_timeout": seconds, "lock_timeout": lock_seconds}
    settings = {name: f"{value * 1000:.0f}" for name, value in wanted.items() if value}
    local = [sa.func.set_config(name, value, sa.true()) for name, value in settings.items()]
    await connection.execute(sa.select(*local))


async def end_frozen(connection: AsyncConnection, seconds: float, answer_seconds: float) -> int:
    """End this role's sessions that lock checkpoints or workers and wait for a silent client.

    That is one that has begun a statement and not gone on with it for `seconds`, or takes no rows
    for `answer_seconds`, longer than any statement may last. Returns how many there were. On SQLite
    nobody can do this.
    """
    if connection.dialect.name == "sqlite":
        return 0
    values = {"silent": seconds, "unread": answer_seconds}
    ended = await connection.execute(_END_FROZEN, values)
    return sum(ended.scalars())


async def register(connection: AsyncConnection, worker_id: str, seconds: float) -> datetime:
    """Count among the live workers for so long; return when that began.

    Whoever was registered under that name is replaced, and will notice.
    """
    statement = insert(workers, connection.dialect).values(
        worker_id=worker_id,
        started_at=time_now(connection.dialect),
        expires_at=time_now(connection.dialect, seconds),
    )
    taken = statement.excluded
    done = await connection.execute(
        statement.on_conflict_do_update(
            index_elements=["worker_id"],
            set_={"started_at": taken.started_at, "expires_at": taken.expires_at},
        ).returning(workers.c.started_at)
    )
    started_at: datetime = done.scalar_one()
    return started_at


async def keep_alive(
    connection: AsyncConnection, worker_id: str, started_at: datetime, seconds: float
) -> None:
    """Count among the live workers for so long again; WorkerReplaced where another is it now."""
    statement = insert(workers, connection.dialect).values(
        worker_id=worker_id,
        started_at=started_at,
        expires_at=time_now(connection.dialect, seconds),
    )
    done = await connection.execute(
        statement.on_conflict_do_update(
            index_elements=["worker_id"],
            set_={"expires_at": statement.excluded.expires_at},
            where=workers.c.started_at == statement.excluded.started_at,
        )
    )
    if done.rowcount == 0:
        raise WorkerReplaced(worker_id)


async def unregister(connection: AsyncConnection, worker_id: str, started_at: datetime) -> None:
    """Count no more among the live workers."""
    own = sa.and_(workers.c.worker_id == worker_id, workers.c.started_at == started_at)
    await connection.execute(workers.delete().where(own))


async def forget_dead(connection: AsyncConnection, seconds: float) -> None:
    """Remove the names of workers that died long ago, but of none whose row is locked."""
    long_ago = time_now(connection.dialect, -FORGOTTEN_AFTER_LEASES * seconds)
    dead = sa.select(workers.c.worker_id).where(workers.c.expires_at < long_ago)
    unlocked = dead.with_for_update(skip_locked=True)
    await connection.execute(workers.delete().where(workers.c.worker_id.in_(unlocked)))


async def live_workers(connection: AsyncConnection) -> list[str]:
    """Return the names of the workers that were heard of within a lease, sorted."""
    alive = workers.c.expires_at > time_now(connection.dialect)
    names = await connection.execute(sa.select(workers.c.worker_id).where(alive))
    return sorted(names.scalars())


async def look(connection: AsyncConnection, seconds: float) -> list[PairSeen]:
    """Return all pairs that there are."""
    is_free, is_far_ahead = (
        _is_free(connection.dialect, seconds),
        _is_far_ahead(connection.dialect, seconds),
    )
    before = time_now(connection.dialect, -seconds * ABANDONED_AFTER)
    last_held = sa.func.coalesce(_columns.lease_expires_at, _columns.updated_at)
    query = sa.select(
        _columns.journal_id,
        _columns.group_name,
        _columns.fold_version,
        _columns.worker_id,
        _columns.epoch,
        is_free,
        sa.and_(is_free, sa.or_(last_held <= before, sa.func.coalesce(is_far_ahead, sa.false()))),
    )
    return [PairSeen(*row) for row in await connection.execute(query)]


def _is_free(dialect: sa.Dialect, seconds: float) -> sa.ColumnElement[bool]:
    is_over = _columns.lease_expires_at <= time_now(dialect)
    return sa.or_(_columns.worker_id.is_(None), is_over, _is_far_ahead(dialect, seconds))


def _is_far_ahead(dialect: sa.Dialect, seconds: float) -> sa.ColumnElement[bool]:
    return _columns.lease_expires_at > time_now(dialect, FAR_AHEAD_LEASES * seconds)


async def claim(
    connection: AsyncConnection, seen: PairSeen, worker_id: str, seconds: float
) -> Lease | None:
    """Take a pair that nobody has, or that this worker's name has; None if it is taken by now.

    Whoever has the row locked is alive, so a locked one is left alone.
    """
    is_free = _is_free(connection.dialect, seconds)
    query = sa.select(_columns.epoch).where(
        *_of(seen.pair),
        _columns.fold_version == seen.fold_version,
        sa.or_(is_free, _columns.worker_id == worker_id),
    )
    found = await connection.execute(query.with_for_update(skip_locked=True))
    if (epoch := found.scalar_one_or_none()) is None:
        return None
    lease = Lease(seen.journal_id, seen.group, worker_id, epoch + 1, seconds)
    until = time_now(connection.dialect, seconds)
    await connection.execute(
        checkpoints.update()
        .where(*_of(lease.pair))
        .values(worker_id=worker_id, epoch=lease.epoch, lease_expires_at=until)
    )
    return lease


async def renew(connection: AsyncConnection, leases: Collection[Lease]) -> None:
    """Prolong those leases of one worker that run out soon; one that was lost stays so.

    One that ends later than any should, since the clock stepped back, is set anew as well.
    A batch that is under way has its row locked, and prolongs its lease itself.
    """
    if not leases:
        return
    seconds = max(each.seconds for each in leases)
    worker_id = next(iter(leases)).worker_id
    soon, late = (time_now(connection.dialect, seconds * part) for part in (2 / 3, 2))
    query = sa.select(_columns.journal_id, _columns.group_name, _columns.epoch).where(
        _columns.worker_id == worker_id,
        sa.or_(_columns.lease_expires_at < soon, _columns.lease_expires_at > late),
    )
    rows = (await connection.execute(query.with_for_update(skip_locked=True))).all()
    held = {(each.pair, each.epoch) for each in leases}
    for journal_id, group, epoch in rows:
        if ((journal_id, group), epoch) in held:
            until = time_now(connection.dialect, seconds)
            update = checkpoints.update().where(*_of((journal_id, group)))
            await connection.execute(update.values(lease_expires_at=until))


async def give_back(connection: AsyncConnection, lease: Lease) -> None:
    """Let others claim the pair at once."""
    await connection.execute(
        checkpoints.update()
        .where(*_of(lease.pair), *is_held_by(lease))
        .values(worker_id=None, lease_expires_at=time_now(connection.dialect))
    )


def is_held_by(lease: Lease) -> Sequence[sa.ColumnElement[bool]]:
    """Return the conditions that the lease is still its worker's."""
    return _columns.worker_id == lease.worker_id, _columns.epoch == lease.epoch


def _of(pair: Pair) -> Sequence[sa.ColumnElement[bool]]:
    return _columns.journal_id == pair[0], _columns.group_name == pair[1]
