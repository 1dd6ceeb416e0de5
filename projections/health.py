"""How far the read models are, and whether they are well: for people, and for health checks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, Literal

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.errors import JournalNotFound, StoreUnavailable
from ledger.schema import events, journals
from projections.bookkeeping import checkpoints, parked_keys, workers
from projections.database import Database
from projections.dialects import time_now
from projections.fold import Group
from projections.groups import GROUPS

STALLED_AFTER_LEASES = 3
PARKED_SHOWN_MAX = 100
LeaseState = Literal["held", "stale", "free"]


class ParkedKey(msgspec.Struct, frozen=True):
    """A key of a read table that waits for help: because of its own event, or of another key."""

    table: str
    column: str
    value: str
    offset: int
    event_type: str
    error: str | None
    waits_for: str | None
    waiting: int


class PairStatus(msgspec.Struct, frozen=True):
    """How far a group of one journal is, and who takes care of it.

    `lag_seconds` is the age of the first event that it lacks. The lease is `held`, `stale` (named,
    but over: its worker is dead or out of reach) or `free`. It is `stalled` if events have waited
    and the checkpoint has stood still for several leases. It is `ownerless` if it has been free for
    longer than a lease though workers live, or though events have waited so long.
    `is_other_version` says that the tables are of another version of the fold than this program
    has. Of many parked keys only the first are listed, but `parked` counts them all.
    """

    group: str
    checkpoint: int
    size: int
    lag_events: int
    lag_seconds: float
    journal: str
    worker_id: str | None
    epoch: int
    lease: LeaseState
    stalled: bool
    ownerless: bool
    fold_version: str | None
    is_other_version: bool
    parked: int
    parked_keys: tuple[ParkedKey, ...]
    moved_at: datetime | None = None
    """When the checkpoint moved last."""

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return f"{self.group} of journal {self.journal}"


class ProjectionsHealth(msgspec.Struct, frozen=True):
    """The verdict: whether all is well, why it is not, and what was seen."""

    ok: bool
    reasons: tuple[str, ...]
    pairs: tuple[PairStatus, ...]


async def health(
    database: Database,
    *,
    groups: Collection[Group] = tuple(GROUPS.values()),
    journal_names: Sequence[str] | None = None,
    lag_seconds_max: float | None = None,
) -> ProjectionsHealth:
    """Say whether the read models are well; this never raises because of the database.

    `lag_seconds_max` is how far they may be behind; without it they only must not stand still.
    """
    try:
        pairs = await pair_statuses(database, groups=groups, journal_names=journal_names)
    except (StoreUnavailable, JournalNotFound) as error:
        return ProjectionsHealth(ok=False, reasons=(str(error),), pairs=())
    return judge(pairs, lag_seconds_max)


def judge(pairs: Sequence[PairStatus], lag_seconds_max: float | None = None) -> ProjectionsHealth:
    """Give the verdict on what was seen."""
    reasons = [f"{each.name} {reason}" for each in pairs for reason in _faults(each)]
    if lag_seconds_max is not None:
        late = (each for each in pairs if each.lag_seconds > lag_seconds_max)
        reasons += [f"{each.name} is {each.lag_seconds:.1f} s behind" for each in late]
    return ProjectionsHealth(ok=not reasons, reasons=tuple(reasons), pairs=tuple(pairs))


def _faults(pair: PairStatus) -> list[str]:
    found = []
    if pair.lag_events < 0:
        found.append(f"is at checkpoint {pair.checkpoint}, beyond the journal's size {pair.size}")
    if pair.is_other_version:
        found.append(f"has tables of version {pair.fold_version} of the fold, not this program's")
    if pair.stalled:
        found.append(f"is stalled at checkpoint {pair.checkpoint}, {pair.lag_seconds:.1f} s behind")
    if pair.ownerless:
        found.append("has no owner, for longer than a lease")
    if pair.lease == "stale":
        found.append(f"is left by worker {pair.worker_id}, whose lease is over")
    if pair.parked:
        found.append(f"has {pair.parked} parked keys")
    return found


async def pair_statuses(
    database: Database,
    *,
    groups: Collection[Group] = tuple(GROUPS.values()),
    journal_names: Sequence[str] | None = None,
) -> list[PairStatus]:
    """Return how far each group of each journal is, all at one moment.

    Raises JournalNotFound for a name that no journal has.
    """
    async with database.snapshot() as connection:
        await _check_names(connection, journal_names)
        parked = await _parked(connection)
        counts = await _parked_counts(connection)
        found = []
        for group in groups:
            for row in await connection.execute(_query(connection, group, journal_names)):
                pair = (row.journal_id, group.name)
                lease_seconds = database.settings.lease_seconds
                found.append(_status(row, group, lease_seconds, counts.get(pair, 0), parked[pair]))
    return sorted(found, key=lambda each: (each.journal, list(GROUPS).index(each.group)))


async def _check_names(connection: AsyncConnection, names: Sequence[str] | None) -> None:
    known = set((await connection.execute(sa.select(journals.c.name))).scalars())
    if missing := sorted(set(names or ()) - known):
        raise JournalNotFound(missing[0])


def _query(
    connection: AsyncConnection, group: Group, names: Sequence[str] | None
) -> sa.Select[Any]:
    """Return the query for one group: its checkpoint in each journal, and what it lacks first."""
    own = sa.and_(
        checkpoints.c.journal_id == journals.c.journal_id, checkpoints.c.group_name == group.name
    )
    # A subquery, so that there is one look by index for each journal whatever the planner thinks.
    lacking_since = (
        sa.select(events.c.recorded_at)
        .where(
            events.c.journal_id == journals.c.journal_id,
            events.c.offset == sa.func.coalesce(checkpoints.c.size, 0),
        )
        .scalar_subquery()
    )
    now = time_now(connection.dialect)
    query = sa.select(
        journals.c.journal_id,
        journals.c.name,
        journals.c.size,
        sa.func.coalesce(checkpoints.c.size, 0).label("checkpoint"),
        checkpoints.c.fold_version,
        checkpoints.c.updated_at,
        checkpoints.c.worker_id,
        sa.func.coalesce(checkpoints.c.epoch, 0).label("epoch"),
        checkpoints.c.lease_expires_at,
        # Since when a pair without an owner has none.
        sa.func.coalesce(
            checkpoints.c.lease_expires_at, checkpoints.c.updated_at, journals.c.created_at
        ).label("free_since"),
        sa.exists().where(workers.c.expires_at > now).label("some_live"),
        lacking_since.label("lacking_since"),
        now.label("now"),
    ).select_from(journals.outerjoin(checkpoints, own))
    return query if names is None else query.where(journals.c.name.in_(names))


def _status(
    row: sa.Row[Any],
    group: Group,
    lease_seconds: float,
    parked: int,
    shown: Sequence[ParkedKey],
) -> PairStatus:
    limit_seconds = STALLED_AFTER_LEASES * lease_seconds
    lag_seconds = _age(row.lacking_since, row.now)
    is_wanted = row.some_live or lag_seconds > lease_seconds
    is_free_long = row.worker_id is None and _age(row.free_since, row.now) > lease_seconds
    stands_still = row.updated_at is None or _age(row.updated_at, row.now) > limit_seconds
    return PairStatus(
        group=group.name,
        checkpoint=row.checkpoint,
        size=row.size,
        lag_events=row.size - row.checkpoint,
        lag_seconds=lag_seconds,
        journal=row.name,
        worker_id=row.worker_id,
        epoch=row.epoch,
        lease=_lease_state(row),
        stalled=stands_still and lag_seconds > limit_seconds,
        ownerless=is_free_long and is_wanted,
        fold_version=row.fold_version,
        is_other_version=row.fold_version not in {None, group.fold_version},
        parked=parked,
        parked_keys=tuple(shown),
        moved_at=row.updated_at,
    )


def _age(moment: datetime | None, now: datetime) -> float:
    """Return the age in seconds, 0 of what is not there."""
    return 0.0 if moment is None else max(0.0, (now - moment).total_seconds())


def _lease_state(row: sa.Row[Any]) -> LeaseState:
    if row.worker_id is None:
        return "free"
    return "held" if row.lease_expires_at > row.now else "stale"


async def _parked(connection: AsyncConnection) -> dict[tuple[int, str], list[ParkedKey]]:
    """Return the first parked keys of each pair, those with an error of their own before others."""
    own = parked_keys.c
    place = sa.func.row_number().over(
        partition_by=(own.journal_id, own.group_name),
        order_by=(own.error.is_(None), own.offset, own.table_name, own.column_name, own.value),
    )
    ranked = sa.select(parked_keys, place.label("place")).subquery()
    query = sa.select(ranked).where(ranked.c.place <= PARKED_SHOWN_MAX).order_by(ranked.c.place)
    found: dict[tuple[int, str], list[ParkedKey]] = defaultdict(list)
    for row in await connection.execute(query):
        key = ParkedKey(
            row.table_name,
            row.column_name,
            row.value,
            row.offset,
            row.event_type,
            row.error,
            row.waits_for,
            row.waiting,
        )
        found[row.journal_id, row.group_name].append(key)
    return found


async def _parked_counts(connection: AsyncConnection) -> dict[tuple[int, str], int]:
    own = parked_keys.c
    query = sa.select(own.journal_id, own.group_name, sa.func.count())
    counts = await connection.execute(query.group_by(own.journal_id, own.group_name))
    return {(journal_id, group): count for journal_id, group, count in counts}
