"""The swap: new tables take the places of the live ones, together with their checkpoints."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from time import monotonic

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.errors import LedgerError
from projections import batches
from projections.bookkeeping import checkpoints, parked_keys
from projections.checkpoints import renounce
from projections.rebuilding import side
from projections.rebuilding.errors import CannotSwap
from projections.rebuilding.following import (
    Follower,
    live_fold_version,
    live_sizes,
    lock_checkpoints,
    skipped,
)
from projections.rebuilding.plan import Plan
from projections.rebuilding.shape import Shape, Swap
from projections.rebuilding.side import kept_name
from projections.rebuilding.work import Work

PATIENCE_SECONDS = 0.1
PATIENCE_SECONDS_MAX = 0.8
"""So long others may wait for a swap that waits for the tables itself: at first, in the end."""


class _Moved(LedgerError):
    """A journal was folded for the first time while the swap waited for the tables."""


async def swap(work: Work, plan: Plan, follower: Follower, shape: Shape, moved: Swap) -> list[str]:
    """Swap in the tables that were asked for; return what is not whole afterwards.

    Everybody is excluded only for the moment of the swap itself. Where locks are not to be had at
    once, others go first and it is tried again: readers never queue behind a swap for long. Raises
    CannotSwap when that takes too long, and names who holds the tables.
    """
    deadline = monotonic() + work.options.swap_seconds
    patience_seconds = PATIENCE_SECONDS
    while True:
        await follower.catch_up()
        try:
            await _attempt(work, plan, follower, shape, moved, patience_seconds)
            break
        except LedgerError as error:
            await _check_worth_another(plan, shape, error, deadline)
        await asyncio.sleep(patience_seconds)
        patience_seconds = min(PATIENCE_SECONDS_MAX, patience_seconds * 2)
    return await _settle(shape, plan)


async def _settle(shape: Shape, plan: Plan) -> list[str]:
    """Check what was left unchecked; the tables are swapped by now, whatever comes of it."""
    try:
        return await shape.settle(plan.asked)
    except LedgerError as error:
        return [f"foreign keys are still to be checked ({error}); the next rebuild will do it"]


async def _check_worth_another(
    plan: Plan, shape: Shape, error: LedgerError, deadline: float
) -> None:
    """Raise unless the swap failed only because of others, and there is time left."""
    again = isinstance(error, _Moved) or shape.may_try_again(error) or batches.is_refusal(error)
    if again and monotonic() < deadline:
        return
    if not again:
        if _is_refused(error):
            raise CannotSwap(plan.asked, str(error)) from error
        raise error
    if batches.is_refusal(error):
        raise CannotSwap(plan.asked, str(error)) from error
    holders = await shape.lock_holders(plan.asked)
    held = f"they are used by {'; '.join(holders)}" if holders else "somebody always uses them"
    raise CannotSwap(plan.asked, f"{held}; end that, or try again") from error


def _is_refused(error: LedgerError) -> bool:
    """Whether the database said that something cannot be done."""
    return getattr(getattr(error.__cause__, "orig", None), "sqlstate", None) is not None


async def _attempt(
    work: Work,
    plan: Plan,
    follower: Follower,
    shape: Shape,
    moved: Swap,
    patience_seconds: float,
) -> None:
    async with shape.swapping() as connection:
        live = await lock_checkpoints(connection, plan.group, await work.journals())
        if await skipped(connection, plan) != plan.skipped:
            raise CannotSwap(plan.asked, "an event was skipped meanwhile; run it again")
        sizes = await follower.fold_to(connection, live)
        version = await live_fold_version(connection, plan.group)
        await shape.swap(connection, moved, patience_seconds)
        # A journal that was new until now may have been folded before the tables were locked.
        if await live_sizes(connection, plan.group.name) != live:
            raise _Moved(f"group {plan.group.name!r} has moved")
        await _move_checkpoints(connection, plan, live, sizes)
        await _move_lanes(connection, plan)
        await _account(connection, plan, moved, live, version)


async def _move_checkpoints(
    connection: AsyncConnection, plan: Plan, live: Mapping[int, int], sizes: Mapping[int, int]
) -> None:
    """Give the checkpoints to this fold; sizes never go back."""
    for journal_id, size in live.items():
        own = checkpoints.c.journal_id == journal_id, checkpoints.c.group_name == plan.group.name
        moved = max(size, sizes.get(journal_id, 0)) if plan.is_whole else size
        values = {"size": moved, "fold_version": plan.group.fold_version}
        await connection.execute(
            sa.update(checkpoints).where(*own).values(**values, updated_at=datetime.now(UTC))
        )
        await renounce(connection, journal_id, plan.group)


async def _move_lanes(connection: AsyncConnection, plan: Plan) -> None:
    """Let what is parked follow its tables: to those that are kept, and from those that were."""
    c = parked_keys.c
    for table in plan.asked:
        for name, other in ((plan.group.name, kept_name(table)), (plan.lanes, plan.group.name)):
            there = c.group_name == other, c.table_name == table
            await connection.execute(sa.delete(parked_keys).where(*there))
            own = c.group_name == name, c.table_name == table
            await connection.execute(sa.update(parked_keys).where(*own).values(group_name=other))
    await connection.execute(sa.delete(parked_keys).where(c.group_name == plan.lanes))


async def _account(
    connection: AsyncConnection,
    plan: Plan,
    moved: Swap,
    live: Mapping[int, int],
    version: str,
) -> None:
    """Keep account of the tables that are kept, and of those that are live now no more."""
    kept = {table: kept_name(table) for table in plan.asked}
    await side.forget(connection, [*moved.incoming.values(), *kept.values()])
    values = {"group_name": plan.group.name, "role": side.OLD, "fold_version": version}
    await side.record(connection, kept, **values)
    for journal_id, size in live.items():
        await side.set_size(connection, kept.values(), journal_id, size)
