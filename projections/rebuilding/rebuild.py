"""Rebuilding read tables beside the live ones, and going back to those that were kept."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from time import monotonic

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.errors import LedgerError
from ledger.journal import Journal
from ledger.settings import Settings
from projections.bookkeeping import parked_keys, side_checkpoints
from projections.building import Built, Part
from projections.checkpoints import CheckpointAhead
from projections.database import Database
from projections.groups import TABLES
from projections.rebuilding import side
from projections.rebuilding.comparing import Comparison, compare, differences
from projections.rebuilding.errors import (
    InvalidTables,
    KeptFoldUnknown,
    KeptTableExists,
    KeptTableMissing,
    PartlySwapped,
)
from projections.rebuilding.following import (
    Follower,
    live_fold_version,
    live_sizes,
    skipped,
)
from projections.rebuilding.locks import alone
from projections.rebuilding.plan import Plan, Share, plans
from projections.rebuilding.pool import build_all, processes
from projections.rebuilding.shape import Shape, Swap
from projections.rebuilding.shape_postgres import PostgresShape
from projections.rebuilding.shape_sqlite import SqliteShape
from projections.rebuilding.side import SideTable, kept_name
from projections.rebuilding.swapping import swap
from projections.rebuilding.work import Options, Watch, Work, opened
from projections.slicing import is_whole


class Outcome(msgspec.Struct, frozen=True):
    """What a rebuild or rollback did: which tables were swapped, and what it saw.

    `swapped` is empty where differences were not accepted; the live tables are then as they were.
    `notes` say what is not whole afterwards and needs somebody's attention.
    """

    swapped: tuple[str, ...]
    events: int
    seconds: float
    compared: tuple[Comparison, ...] = ()
    notes: tuple[str, ...] = ()


async def rebuild(
    settings: Settings,
    tables: Sequence[str],
    *,
    options: Options | None = None,
    executor: Executor | None = None,
    watch: Watch | None = None,
) -> Outcome:
    """Build the tables afresh in the declared shape and swap them in, while all others go on.

    The parts are folded by `executor`, processes of this machine by default; what it is given and
    gives back can be pickled. `watch` is told what is done, and asked whether differences from the
    live tables are accepted. Raises InvalidTables, RebuildRunning, KeptTableExists, DependsOnTable,
    BuildFailed, CannotCatchUp and CannotSwap; the live tables are then as they were. Groups are
    swapped one after the other: PartlySwapped says that only a later one has failed.
    """
    options, watch = options or Options(), watch or Watch()
    started = monotonic()
    concerned = plans(tables, side.new_token())
    async with _alone(settings, options, watch) as (work, shape, mended):
        await _check(work, shape, concerned)
        await _make(work, shape, concerned)
        try:
            events = await _build(work, shape, concerned, executor)
            for plan in concerned:
                watch.stage(f"building indexes of {', '.join(plan.names)}")
                await shape.finish(plan)
            compared, notes, swapped = await _replace(work, shape, concerned)
        finally:
            await _drop_leftovers(work, shape)
    told = tuple(dict.fromkeys([*notes, *mended]))
    return Outcome(swapped, events, monotonic() - started, tuple(compared), told)


NAME_CHARS_MAX = 100


@contextlib.asynccontextmanager
async def _alone(
    settings: Settings, options: Options, watch: Watch
) -> AsyncIterator[tuple[Work, Shape, list[str]]]:
    """Connect, be the only one, and clear away what a killed rebuild has left.

    The last of what it yields says what could not be mended.
    """
    async with opened(settings, options, watch) as work, alone(work.database):
        shape: Shape = SqliteShape(work) if work.is_sqlite else PostgresShape(work)
        await _drop_leftovers(work, shape)
        yield work, shape, await shape.mend(list(TABLES))


async def _drop_leftovers(work: Work, shape: Shape) -> None:
    """Drop all tables that were made to become live, and all account of them."""
    async with _writing(work) as connection:
        await _give_lanes_back(connection)
        left = [each.name for each in await side.listed(connection, side.NEW)]
        await shape.drop(connection, left)
        await side.forget(connection, left)
        await side.forget_progress(connection)
        new = parked_keys.c.group_name.like(f"%\\_\\_{side.NEW}\\_%", escape="\\")
        await connection.execute(sa.delete(parked_keys).where(new))


async def _give_lanes_back(connection: AsyncConnection) -> None:
    """Let kept tables have the lanes again that a rollback took and did not come to swap."""
    c = parked_keys.c
    found = await side.listed(connection)
    for role in (side.NEW, side.OLD):  # those of tables folded aside are of no use to anybody
        for each in found:
            own = c.group_name == side.beside(each.group, side.BACK), c.table_name == each.table
            if each.role == role == side.NEW:
                await connection.execute(sa.delete(parked_keys).where(*own))
            elif each.role == role:
                moved = sa.update(parked_keys).where(*own).values(group_name=each.name)
                await connection.execute(moved)


@contextlib.asynccontextmanager
async def _writing(work: Work) -> AsyncIterator[AsyncConnection]:
    async with work.store.write_turn(), work.database.transaction() as connection:
        yield connection


async def _check(work: Work, shape: Shape, concerned: Sequence[Plan]) -> None:
    """Raise what would keep the tables from being swapped, before any work is done."""
    async with work.database.transaction() as connection:
        kept = {each.name for each in await side.listed(connection, side.OLD)}
        for plan in concerned:
            for table in plan.asked:
                if kept_name(table) in kept and not work.options.replace_old:
                    raise KeptTableExists(kept_name(table))
            await shape.refuse_obstacles(connection, plan.asked)


async def _make(work: Work, shape: Shape, concerned: Sequence[Plan]) -> None:
    async with _writing(work) as connection:
        for plan in concerned:
            values = {"group_name": plan.group.name, "role": side.NEW}
            version = plan.group.fold_version
            await side.record(connection, plan.names, fold_version=version, **values)
            await shape.make(connection, plan)


async def _build(
    work: Work, shape: Shape, concerned: Sequence[Plan], executor: Executor | None
) -> int:
    """Fold all parts of all journals into the new tables; return the number of events."""
    parts: list[Part] = []
    async with _writing(work) as connection:
        for plan in concerned:
            plan.skipped = await skipped(connection, plan)
            sizes = await _target_sizes(work, connection, plan)
            for journal_id, size in sizes.items():
                await side.set_size(connection, plan.names.values(), journal_id, size)
            parts += await _parts(work, plan, sizes)
        await _begin_account(connection, parts)
    work.watch.stage("folding")
    parts = await _fold_sliced(work, shape, concerned, parts, executor)
    async with _writing(work) as connection:
        for plan in concerned:
            await _take_lanes(connection, plan, [p for p in parts if p.group == plan.group.name])
        await side.forget_progress(connection)
    return sum({(part.group, part.journal_id): part.size for part in parts}.values())


async def _target_sizes(work: Work, connection: AsyncConnection, plan: Plan) -> dict[int, int]:
    """Return up to which size each journal is folded at first.

    A group that is swapped as a whole may leave its live tables behind; otherwise the new ones must
    meet them. Raises CheckpointAhead where these are beyond the journal's end.
    """
    live = await live_sizes(connection, plan.group.name)
    sizes = {each.journal_id: await each.size() for each in await work.journals()}
    for journal_id, size in sizes.items():
        if live.get(journal_id, 0) > size:
            raise CheckpointAhead(plan.group.name, live[journal_id], size)
    return sizes if plan.is_whole else {each: live.get(each, 0) for each in sizes}


async def _parts(
    work: Work, plan: Plan, sizes: Mapping[int, int], *, sliced: bool = True
) -> list[Part]:
    """Return one part for each journal and each set of tables that are filled together.

    Long journals are cut into slices, where there are several workers for each: a slice reads what
    the others read, so with two workers one piece takes no longer.
    """
    options = work.options
    count = sum(size >= options.sliced_size_min for size in sizes.values())
    slices = options.workers // (2 * max(1, count)) if sliced and not plan.skipped else 1
    return [
        _part(work, plan, journal, sizes[journal.journal_id], share)
        for journal in await work.journals()
        if (size := sizes.get(journal.journal_id))
        for whole in plan.parts
        for share in plan.cut(whole, slices if size >= options.sliced_size_min else 1)
    ]


def _part(work: Work, plan: Plan, journal: Journal, size: int, share: Share) -> Part:
    number = "" if share.slice is None else f" {share.slice.number}"
    what = f"{side.beside(plan.group.name, plan.token)}{number} {'+'.join(sorted(share.tables))}"
    return Part(
        name=what[:NAME_CHARS_MAX],
        journal=journal.name,
        journal_id=journal.journal_id,
        group=plan.group.name,
        targets={name: plan.names[name] for name in plan.names if name in share.tables},
        types=share.types,
        size=size,
        rows_max=work.options.rows_max,
        slice=share.slice,
    )


async def _begin_account(connection: AsyncConnection, parts: Sequence[Part]) -> None:
    rows = [{"name": part.name, "journal_id": part.journal_id, "size": 0} for part in parts]
    if rows:
        await connection.execute(sa.insert(side_checkpoints), rows)


async def _fold_sliced(
    work: Work,
    shape: Shape,
    concerned: Sequence[Plan],
    parts: Sequence[Part],
    executor: Executor | None,
) -> list[Part]:
    """Fold the parts; groups that do not go in slices once more, in one piece.

    Returns the parts that have made the rows.
    """
    entangled = await _fold(work, parts, executor)
    good = [part for part in parts if part.group not in entangled]
    again: list[Part] = []
    for plan in concerned:
        if plan.group.name in entangled:
            spoilt = [part for part in parts if part.group == plan.group.name]
            again += await _begin_again(work, shape, plan, spoilt)
    if again:
        which = ", ".join(sorted(entangled))
        work.watch.stage(f"folding {which} again in one piece, since rows of users are linked")
        await _fold(work, again, executor)
    return good + again


async def _begin_again(work: Work, shape: Shape, plan: Plan, spoilt: Sequence[Part]) -> list[Part]:
    """Make the tables of a plan anew, and return the parts that fill them in one piece."""
    sizes = {part.journal_id: part.size for part in spoilt}
    parts = await _parts(work, plan, sizes, sliced=False)
    names = [part.name for part in spoilt]
    async with _writing(work) as connection:
        await connection.execute(sa.delete(parked_keys).where(parked_keys.c.group_name.in_(names)))
        own = side_checkpoints.c.name.in_(names)
        await connection.execute(sa.delete(side_checkpoints).where(own))
        await shape.drop(connection, list(plan.names.values()))
        await shape.make(connection, plan)
        await _begin_account(connection, parts)
    return parts


async def _fold(work: Work, parts: Sequence[Part], executor: Executor | None) -> set[str]:
    """Fold the parts, those that take longest first; return the groups that are entangled."""
    ordered = sorted(parts, key=lambda part: (-part.size, part.slice is None))
    if executor is not None:
        return _entangled(ordered, await build_all(work, ordered, executor))
    if not ordered:
        return set()
    with processes(min(work.options.workers, len(ordered))) as pool:
        return _entangled(ordered, await build_all(work, ordered, pool))


def _entangled(parts: Sequence[Part], built: Sequence[Built]) -> set[str]:
    """Return the groups of which an event was folded by no slice, or by several."""
    slices: dict[tuple[str, int, str], list[Built]] = {}
    for part, done in zip(parts, built, strict=True):
        if part.slice is not None:
            key = part.group, part.journal_id, part.slice.of
            slices.setdefault(key, []).append(done)
    return {
        group
        for (group, *_), found in slices.items()
        if any(each.is_entangled for each in found) or not is_whole(each.claims for each in found)
    }


async def _take_lanes(connection: AsyncConnection, plan: Plan, parts: Sequence[Part]) -> None:
    """Gather what the parts have parked in their own tables under the name of the new tables."""
    c = parked_keys.c
    for part in parts:
        own = c.group_name == part.name, c.journal_id == part.journal_id
        targets = c.table_name.in_(part.targets)
        moved = sa.update(parked_keys).where(*own, targets).values(group_name=plan.lanes)
        await connection.execute(moved)
        await connection.execute(sa.delete(parked_keys).where(*own))


async def _replace(
    work: Work, shape: Shape, concerned: Sequence[Plan]
) -> tuple[list[Comparison], list[str], tuple[str, ...]]:
    """Compare all, ask once, and swap group by group."""
    followers = {plan.group.name: Follower(work, plan, plan.names) for plan in concerned}
    compared: list[Comparison] = []
    for plan in concerned:
        work.watch.stage(f"catching up and comparing {', '.join(plan.asked)}")
        compared += await compare(work, plan, followers[plan.group.name], shape)
    if differences(compared) and not work.watch.accepts(compared):
        return compared, [], ()
    notes: list[str] = []
    swapped: list[str] = []
    for plan in concerned:
        with _partly(swapped):
            notes += await _version_notes(work, plan, plan.names)
            notes += await _swap_in(work, shape, plan, followers[plan.group.name])
        swapped += plan.asked
    return compared, notes, tuple(swapped)


async def _swap_in(work: Work, shape: Shape, plan: Plan, follower: Follower) -> list[str]:
    work.watch.stage(f"swapping {', '.join(plan.asked)}")
    moved = Swap(
        tuple(each for each in plan.closure.projections if each.name in plan.asked),
        {table: plan.names[table] for table in plan.asked},
        plan.token,
        await _kept(work, plan.asked),
    )
    return await swap(work, plan, follower, shape, moved)


@contextlib.contextmanager
def _partly(swapped: Sequence[str]) -> Iterator[None]:
    """Let an error say what was swapped before."""
    try:
        yield
    except LedgerError as error:
        if not swapped:
            raise
        raise PartlySwapped(swapped, error) from error


async def _version_notes(work: Work, plan: Plan, looked_at: Collection[str]) -> list[str]:
    """Say which tables of the group go over to another version of the fold with their old rows."""
    async with work.database.transaction() as connection:
        live = await live_fold_version(connection, plan.group)
    own = plan.group.fold_version
    left = [each.name for each in plan.group.projections if each.name not in looked_at]
    if live == own or not left:
        return []
    return [
        f"group {plan.group.name!r} goes from version {live} of its fold to {own}: "
        f"{', '.join(left)} keep the rows that version {live} made, and were not compared; rebuild "
        "them as well if their folds differ"
    ]


async def _kept(work: Work, tables: Sequence[str]) -> tuple[str, ...]:
    async with work.database.transaction() as connection:
        kept = {each.name for each in await side.listed(connection, side.OLD)}
    return tuple(name for name in map(kept_name, tables) if name in kept)


async def rollback(
    settings: Settings,
    tables: Sequence[str] | None,
    *,
    options: Options | None = None,
    executor: Executor | None = None,
    watch: Watch | None = None,
) -> Outcome:
    """Go back to the tables that the last rebuild replaced; those that were live are kept.

    All that are kept are meant if `tables` is None. First they are caught up, by this program's
    fold, which must be the one that filled them. The tables that it looks up are folded aside, to
    the size at which the kept ones are. Raises KeptTableMissing, KeptFoldUnknown, InvalidTables
    where others must go back with them, and the errors of `rebuild`.
    """
    options, watch = options or Options(), watch or Watch()
    started = monotonic()
    notes: list[str] = []
    swapped: list[str] = []
    events = 0
    async with _alone(settings, options, watch) as (work, shape, mended):
        named = await _all_kept(work) if tables is None else tables
        nothing = tables is None and not named
        concerned = [] if nothing else plans(named, side.new_token(), makes_asked=False)
        for plan in concerned:
            await _check_kept(work, shape, plan)
        try:
            for plan in concerned:
                with _partly(swapped):
                    notes += await _version_notes(work, plan, plan.asked)
                    if plan.names:
                        events += await _make_scratch(work, shape, plan, executor)
                    notes += await _go_back(work, shape, plan)
                swapped += plan.asked
        finally:
            await _drop_leftovers(work, shape)
    told = tuple(dict.fromkeys([*notes, *mended]))
    return Outcome(tuple(swapped), events, monotonic() - started, notes=told)


async def _all_kept(work: Work) -> list[str]:
    async with work.database.transaction() as connection:
        return [each.table for each in await side.listed(connection, side.OLD)]


async def _check_kept(work: Work, shape: Shape, plan: Plan) -> None:
    """Raise where a kept table is missing, or is not one that this program could fill."""
    async with work.database.transaction() as connection:
        kept = {each.table: each for each in await side.listed(connection, side.OLD)}
        live = await live_fold_version(connection, plan.group)
        plan.skipped = await skipped(connection, plan)
        for table in plan.asked:
            if table not in kept:
                raise KeptTableMissing(table)
            await _check_fold(connection, shape, plan, kept[table])
            _check_others(plan, kept[table], kept.values(), live)
        if len({tuple(sorted(kept[table].sizes.items())) for table in plan.asked}) > 1:
            raise InvalidTables(
                f"the tables kept beside {', '.join(plan.asked)} are of different sizes; roll them "
                "back one at a time"
            )
        await shape.refuse_obstacles(connection, plan.asked)


async def _check_fold(
    connection: AsyncConnection, shape: Shape, plan: Plan, kept: SideTable
) -> None:
    own = plan.group.fold_version
    if kept.fold_version != own:
        raise KeptFoldUnknown(kept.name, plan.group.name, kept.fold_version, own)
    [projection] = (each for each in plan.group.projections if each.name == kept.table)
    columns = await shape.columns(connection, kept.name)
    unfilled = set(await shape.unfilled(connection, kept.name)) - set(projection.columns)
    missing = [name for name in projection.columns if name not in columns]
    if missing or unfilled:
        which = ", ".join(missing or sorted(unfilled))
        raise InvalidTables(
            f"{kept.name} does not have the columns that this program fills ({which}); run "
            "`rollback` with the release that filled it, or rebuild"
        )


def _check_others(plan: Plan, kept: SideTable, all_kept: Iterable[SideTable], live: str) -> None:
    """Raise where the kept table would not be of the version that the rest of its group has then.

    The group has one version of the fold. It is noted of a kept table as that of its group: where
    others had been swapped to another version before, without this one, that may be wrong.
    """
    others = [e for e in all_kept if e.group == kept.group and e.table not in plan.asked]
    since = [each.table for each in others if each.made_at >= kept.made_at]
    if since and live != plan.group.fold_version:
        raise InvalidTables(
            f"{', '.join(since)} went over from version {kept.fold_version} of the fold as well or "
            f"later: roll back {', '.join([*plan.asked, *since])} together, or rebuild"
        )
    before = [e for e in others if e.made_at < kept.made_at and e.fold_version != kept.fold_version]
    if before:
        raise InvalidTables(
            f"{kept.name} may hold rows of version {before[0].fold_version} of the fold: when "
            f"{before[0].table} went over to another, {kept.table} did not; rebuild it instead"
        )


async def _make_scratch(work: Work, shape: Shape, plan: Plan, executor: Executor | None) -> int:
    """Fold what is looked up aside, to the size of the kept tables; return the events folded."""
    await _make(work, shape, [plan])
    async with _writing(work) as connection:
        sizes = await side.read_sizes(connection, kept_name(plan.asked[0]))
        for journal_id, size in sizes.items():
            await side.set_size(connection, plan.names.values(), journal_id, size)
        parts = await _parts(work, plan, sizes)
        await _begin_account(connection, parts)
    work.watch.stage(f"folding what {', '.join(plan.asked)} looks up")
    parts = await _fold_sliced(work, shape, [plan], parts, executor)
    async with _writing(work) as connection:
        await _take_lanes(connection, plan, parts)
        await side.forget_progress(connection)
    await shape.finish(plan)
    return max((part.size for part in parts), default=0)


async def _go_back(work: Work, shape: Shape, plan: Plan) -> list[str]:
    """Catch the kept tables up and swap them in; return what is not whole afterwards."""
    kept = {table: kept_name(table) for table in plan.asked}
    await _take_kept_lanes(work, plan, kept)
    follower = Follower(work, plan, {**plan.names, **kept})
    work.watch.stage(f"catching up and swapping {', '.join(kept.values())}")
    projections = tuple(each for each in plan.closure.projections if each.name in plan.asked)
    return await swap(work, plan, follower, shape, Swap(projections, kept, side.OLD))


async def _take_kept_lanes(work: Work, plan: Plan, kept: Mapping[str, str]) -> None:
    """Gather what is parked of the kept tables; should this end early, they get it back."""
    c = parked_keys.c
    async with _writing(work) as connection:
        for table, name in kept.items():
            own = c.group_name == name, c.table_name == table
            await connection.execute(
                sa.update(parked_keys).where(*own).values(group_name=plan.lanes)
            )


async def drop_old(settings: Settings, tables: Sequence[str] | None = None) -> list[str]:
    """Drop the tables that are kept (beside these, if given); return their names.

    Raises KeptTableMissing where one of `tables` has none.
    """
    async with (
        _alone(settings, Options(), Watch()) as (work, shape, _),
        _writing(work) as connection,
    ):
        kept = {each.table: each for each in await side.listed(connection, side.OLD)}
        for table in tables or ():
            if table not in kept:
                raise KeptTableMissing(table)
        dropped = [each for table, each in kept.items() if tables is None or table in tables]
        names = [each.name for each in dropped]
        await shape.drop(connection, names)
        await side.forget(connection, names)
        for each in dropped:
            own = parked_keys.c.group_name == each.name, parked_keys.c.table_name == each.table
            await connection.execute(sa.delete(parked_keys).where(*own))
    return names


async def side_tables(database: Database) -> list[SideTable]:
    """Return the tables beside the live ones: such as a rebuild is making, and such as are kept."""
    async with database.snapshot() as connection:
        return await side.listed(connection)
