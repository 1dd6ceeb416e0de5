"""The command `projections`: run projectors and see how far they are."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from time import monotonic
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ledger import console
from ledger.errors import InvalidEvent, JournalNotFound
from ledger.journal import Journal, open_journal
from ledger.journals import Journals
from ledger.options import JournalOption, JournalsOption, JsonLinesOption, JsonOption
from ledger.proof.witnessing import check_witnessed
from ledger.stores.opening import open_store
from projections import checking, leases, parking, retrying, scrubbing
from projections.checking import STEPS, Checked
from projections.database import Database
from projections.flagged import Flagged, flagged
from projections.fold import Group
from projections.groups import GROUPS, TABLES
from projections.health import PairStatus, judge, pair_statuses
from projections.lanes import Place
from projections.options import GroupOption, complete_table
from projections.parking import ParkedKey, SkippedEvent
from projections.projector import BATCH_SIZE, Projector
from projections.reactor import MARK_AGE_SECONDS, Reaction, Reactor
from projections.rebuilding.showing import Shown
from projections.rebuilding.work import Options
from projections.reporting import Reporter
from projections.retrying import Retried
from projections.scrubbing import WAIT_SECONDS, Scrubbed
from projections.serving.command import register as register_serve
from projections.waiting import outlast_outages
from projections.worker import Worker

app = console.Program(help="Keep the read models up to date.")

WIDTH_ELSEWHERE = 160
"""Columns of tables that are printed into a file or a pipe."""
LOOK_SECONDS = 0.2


@app.command()
def run(
    once: Annotated[bool, typer.Option("--once", help="Stop at the journals' ends.")] = False,
    group: GroupOption = None,
    batch_size: Annotated[
        int, typer.Option(min=1, max=100_000, help="Events in one transaction.")
    ] = BATCH_SIZE,
    worker_id: Annotated[
        str | None, typer.Option(help="This worker's name, its own among all.")
    ] = None,
    as_json: JsonOption = False,
    journal: JournalsOption = None,
) -> None:
    """Fold new events into the tables, until stopped (SIGINT, SIGTERM) or --once done.

    Any number may run, on any number of machines: they share the work, and take over from those
    that die. At the end it says how many events each group has passed, folded or not.
    """
    groups = _named_groups(group)
    started = monotonic()
    if once:
        folded = console.run(_run_once(groups, batch_size, journal))
    else:
        folded = console.run(_run_worker(groups, batch_size, journal, worker_id))
    seconds = monotonic() - started
    counts = {name: folded[name] for name in groups}
    words = [f"{name}: {count:,} events" for name, count in counts.items()]
    words.append(f"{seconds:.1f} s, {sum(counts.values()) / seconds:,.0f} events/s")
    console.tell({"events": counts, "seconds": seconds}, words, as_json=as_json)


def _named_groups(names: Sequence[str] | None) -> list[str]:
    unknown = sorted(set(names or ()) - set(GROUPS))
    if unknown:
        raise InvalidEvent(
            f"{unknown[0]!r} is unknown; there are {', '.join(GROUPS)}", field="group"
        )
    return list(names or GROUPS)


async def _run_once(
    groups: Sequence[str], batch_size: int, names: Sequence[str] | None
) -> Counter[str]:
    """Fold up to the journals' present ends, without leases: a checkpoint's lock is enough."""
    stopping, folded = _stopped_by_signals(), Counter[str]()
    settings = console.load_settings()
    async with opened_all(names) as journals, Database(settings) as database:
        for journal in journals:
            await check_witnessed(journal, settings, must_be_sealed=bool(names))
            end = await journal.size()
            projectors = [
                Projector(database, journal, GROUPS[group], batch_size=batch_size)
                for group in groups
            ]
            async with _progress_of(projectors, end):
                counts = await all_or_first_error(each.run(stopping, end) for each in projectors)
            folded.update(dict(zip(groups, counts, strict=True)))
    return folded


@contextlib.asynccontextmanager
async def _progress_of(projectors: Sequence[Projector], end: int) -> AsyncIterator[None]:
    """Show on a terminal how far projectors are that run meanwhile."""
    begun = sum([await each.checkpoint() for each in projectors])
    with console.progress_bar("events") as bar:
        task = bar.add_task("folding", total=end * len(projectors), completed=begun)

        async def look() -> None:
            while True:
                bar.update(task, completed=begun + sum(each.folded for each in projectors))
                await asyncio.sleep(LOOK_SECONDS)

        looking = asyncio.create_task(look())
        try:
            yield
        finally:
            looking.cancel()


async def _run_worker(
    groups: Sequence[str], batch_size: int, names: Sequence[str] | None, worker_id: str | None
) -> Counter[str]:
    worker = Worker(
        console.load_settings(),
        [GROUPS[group] for group in groups],
        names or None,
        worker_id=worker_id,
        batch_size=batch_size,
    )
    await worker.run(_stopped_by_signals())
    return worker.folded


@app.command()
def react(
    once: Annotated[bool, typer.Option("--once", help="Stop at the journal's end.")] = False,
    mark_age: Annotated[
        float, typer.Option(min=0, help="Seconds after which a mark is stale and ignored.")
    ] = MARK_AGE_SECONDS,
    as_json: JsonLinesOption = False,
    journal: JournalOption = None,
) -> None:
    """Place closing orders and activate resting ones as marks cross their levels, until stopped.

    Any number may run; each crossed level still has one closing order.
    """

    def reacted(reaction: Reaction) -> None:
        console.tell(reaction, str(reaction), as_json=as_json)
        sys.stdout.flush()

    console.run(_react(mark_age, journal, reacted, once=once))


async def _react(
    mark_age: float, name: str | None, reacted: Callable[[Reaction], None], *, once: bool
) -> None:
    stopping, reporter = _stopped_by_signals(), Reporter()
    async with opened(name) as (journal, database):
        await check_witnessed(journal, console.load_settings())
        reactor = Reactor(
            database,
            journal,
            mark_age_seconds=mark_age,
            reacted=reacted,
        )
        if once:
            await reactor.run(stopping, await journal.size())
            return
        await checked(database)
        await outlast_outages(
            lambda: reactor.run(stopping), stopping, lambda error: reporter.tell("reactor", error)
        )


@app.command()
def check(as_json: JsonOption = False) -> None:
    """Try every part of the domain once, in a journal of its own, and print a line for each."""
    steps = console.run(_check(quiet=as_json))
    failed = sum(not step.ok for step in steps)
    passed = f"all {len(STEPS)} steps passed"
    words = f"{failed} of {len(STEPS)} steps failed" if failed else passed
    console.tell({"failed": failed, "steps": steps}, words, as_json=as_json)
    if failed:
        raise typer.Exit(1)


async def _check(*, quiet: bool) -> list[Checked]:
    steps: list[Checked] = []
    async for step in checking.check(console.load_settings()):
        steps.append(step)
        if not quiet:
            how = "ok    " if step.ok else "FAILED"
            print(f"{len(steps):2} {how} {step.name}: {step.seen}", flush=True)
    return steps


def _stopped_by_signals() -> asyncio.Event:
    """Return what is set when the program is asked to stop."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):  # on Windows
            loop.add_signal_handler(number, stopping.set)
    return stopping


async def all_or_first_error(works: Iterable[Coroutine[Any, Any, int]]) -> list[int]:
    """Return the results of all; where one fails, stop the others and raise its error."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in works]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from errors
    return [task.result() for task in tasks]


@app.command()
def status(
    as_json: JsonOption = False,
    is_check: Annotated[
        bool, typer.Option("--check", help="Exit with 1, and say why, where not all is well.")
    ] = False,
    lag_seconds_max: Annotated[
        float | None, typer.Option("--max-lag", min=0, help="For --check: seconds, at most.")
    ] = None,
    journal: JournalsOption = None,
) -> None:
    """Show how far each group of each journal is, who takes care of it, and what is parked."""
    found = console.run(_status(journal))
    if as_json:
        console.tell(found, "", as_json=True)
    else:
        _print_statuses(found)
    verdict = judge(found, lag_seconds_max)
    if is_check and not verdict.ok:
        for reason in verdict.reasons:
            print(reason, file=sys.stderr)
        raise typer.Exit(1)


async def _status(names: Sequence[str] | None) -> list[PairStatus]:
    async with Database(console.load_settings()) as database:
        return await pair_statuses(database, journal_names=names or None)


def _print_statuses(found: Sequence[PairStatus]) -> None:
    table = Table()
    for name in ("journal", "group", "checkpoint", "size", "lag (events)", "lag (s)", "parked"):
        table.add_column(name, no_wrap=True)
    for name in ("lease", "worker"):
        table.add_column(name, overflow="fold")
    for each in found:
        figures = [f"{n:,}" for n in (each.checkpoint, each.size, each.lag_events)]
        lease = f"{each.lease}, epoch {each.epoch}" if each.epoch else each.lease
        stalled = ", stalled" if each.stalled else ""
        table.add_row(
            each.journal, each.group, *figures, f"{each.lag_seconds:.1f}{stalled}",
            str(each.parked), lease, each.worker_id or "",
        )  # fmt: skip
    terminal = Console()
    if not terminal.is_terminal:
        terminal.width = WIDTH_ELSEWHERE
    terminal.print(table)
    for each in found:
        for line in _remarks(each):
            print(line)


def _remarks(pair: PairStatus) -> Iterator[str]:
    """Say what does not fit into the table."""
    if pair.is_other_version:
        yield f"{pair.name}: the tables are of version {pair.fold_version} of the fold, not ours"
    for key in pair.parked_keys:
        why = key.error or f"waits for {key.waits_for}"
        yield (
            f"{pair.name}: {key.table} {key.column}={key.value} is parked from offset "
            f"{key.offset} on ({key.event_type}): {why}"
        )
    if (more := pair.parked - len(pair.parked_keys)) > 0:
        yield f"{pair.name}: and {more} more parked keys"


@app.command("flagged")
def list_flagged(
    flag: Annotated[
        str | None,
        typer.Option(help="Only this flag, or with a colon at its end all that begin so."),
    ] = None,
    as_json: JsonOption = False,
    journal: JournalOption = None,
) -> None:
    """List the orders and positions with facts that did not fit, the latest change first."""
    found = console.run(_flagged(flag, journal))
    console.tell(found, map(_flags_told, found), as_json=as_json)


def _flags_told(row: Flagged) -> str:
    flags = ", ".join(f"{name} {count}" for name, count in sorted(row.flags.items()))
    return f"{row.table} {row.key} {row.status}: {flags}"


async def _flagged(flag: str | None, name: str | None) -> list[Flagged]:
    async with opened(name) as (journal, database), database.snapshot() as connection:
        return await flagged(connection, journal.journal_id, flag)


@app.command("parked")
def list_parked(
    as_json: JsonOption = False,
    journal: JournalOption = None,
) -> None:
    """List the keys of tables that wait since an event could not be folded, the oldest first."""
    found = console.run(_parked(journal))
    lines = (
        f"{each}; since {each.parked_at:%Y-%m-%dT%H:%M:%SZ}, {each.waiting:,} events wait"
        for each in found
    )
    console.tell(found, lines, as_json=as_json)


async def _parked(name: str | None) -> list[ParkedKey]:
    async with opened(name) as (journal, database), database.snapshot() as connection:
        return await parking.parked(connection, journal.journal_id)


@app.command()
def retry(
    table: Annotated[
        str | None,
        typer.Option(help="Only what is parked in this table …", autocompletion=complete_table),
    ] = None,
    value: Annotated[str | None, typer.Option(help="… under this value.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All that is parked.")] = False,
    as_json: JsonOption = False,
    journal: JournalOption = None,
) -> None:
    """Fold again what is parked, once its fold has been mended; also what only waited for it.

    Exits with 1 where something of what was to be freed is still parked.
    """
    if every == (table is not None and value is not None) or (table is None) != (value is None):
        raise InvalidEvent("give both --table and --value, or --all", field="retry")
    only = None if table is None or value is None else (table, value)
    groups = list(GROUPS.values()) if table is None else [_group_of(table)]
    told = None if as_json else _print_retried
    retried = console.run(_retry(groups, only, journal, told))
    if as_json:
        console.tell(retried, "", as_json=True)
    if any(only in {None, (key.table, key.value)} for each in retried for key in each.parked):
        raise typer.Exit(1)


def _group_of(table: str) -> Group:
    if table not in TABLES:
        raise InvalidEvent(f"{table!r} is unknown; there are {', '.join(TABLES)}", field="table")
    return TABLES[table]


async def _retry(
    groups: Sequence[Group],
    only: tuple[str, str] | None,
    name: str | None,
    told: Callable[[Retried], None] | None,
) -> list[Retried]:
    """Retry group by group, each told once it is committed."""
    done: list[Retried] = []
    async with opened(name) as (journal, database):
        for group in groups:
            with console.folding() as advanced:
                done.append(await retrying.retry(database, journal, group, only, advanced))
            if told is not None:
                told(done[-1])
    return done


def _print_retried(retried: Retried) -> None:
    for line in _retried_told(retried):
        print(line)


def _retried_told(retried: Retried) -> Iterator[str]:
    rows = sum(retried.rows.values())
    yield f"{retried.group}: {retried.freed:,} keys are free, {rows:,} rows written"
    for each in retried.parked:
        yield f"still parked: {each}"


@app.command()
def skip(
    table: Annotated[
        str,
        typer.Option(
            help="The table that is to do without the event.", autocompletion=complete_table
        ),
    ],
    offset: Annotated[int, typer.Option(min=0, help="The offset of the event.")],
    reason: Annotated[str, typer.Option(help="Why; it is kept with the skip.")],
    actor: Annotated[str | None, typer.Option(help="Who decided so.")] = None,
    as_json: JsonOption = False,
    journal: JournalOption = None,
) -> None:
    """Leave a parked event out of a table for ever, and fold what has waited for it."""
    group = _group_of(table)
    if not reason.strip():
        raise InvalidEvent("must say why the event is left out", field="reason")
    skipped, retried = console.run(_skip(group, (table, offset), reason, actor, journal))
    answer = {"skipped": skipped, "retried": retried}
    console.tell(answer, [str(skipped), *_retried_told(retried)], as_json=as_json)


async def _skip(
    group: Group, place: Place, reason: str, actor: str | None, name: str | None
) -> tuple[SkippedEvent, Retried]:
    with console.folding() as advanced:
        async with opened(name) as (journal, database):
            return await retrying.skip(database, journal, group, place, reason, actor, advanced)


@app.command()
def scrub(
    yes: Annotated[bool, typer.Option("--yes", help="Do it without asking.")] = False,
    wait_seconds: Annotated[
        float, typer.Option(min=0, help="Wait so long for projectors, and for what others hold.")
    ] = WAIT_SECONDS,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, max=256, help="Processes that fold.", show_default="one for each processor"
        ),
    ] = None,
    as_json: JsonOption = False,
    journal: JournalsOption = None,
) -> None:
    """Remove what was erased from the database's files, while all others go on.

    Tables with personal columns are folded afresh and swapped in; the old ones, all that were kept
    and the snapshots of such tables are dropped; statistics and what else is kept are rewritten.
    With --journal the erasures of others need not be complete. It can be run again at any time.
    """
    if not yes and not _is_confirmed():
        raise InvalidEvent(
            "kept tables and snapshots will be dropped: say so with --yes", field="scrub"
        )
    watch, settings = Shown(accept=False), console.load_settings()
    options = Options(workers=workers or Options().workers)
    with watch.shown():
        found = console.run(
            scrubbing.scrub(
                settings, journal, options=options, wait_seconds=wait_seconds, watch=watch
            )
        )
    console.tell(found, _scrubbed_told(found), as_json=as_json)


def _is_confirmed() -> bool:
    question = "Kept tables and snapshots will be dropped. Go on?"
    return sys.stdin.isatty() and typer.confirm(question, err=True)


def _scrubbed_told(found: Scrubbed) -> Iterator[str]:
    if not found.erased:
        yield "nobody is erased: nothing to scrub"
        return
    for note in found.notes:
        yield f"note: {note}"
    withheld = f", {found.errors_withheld:,} errors withheld" if found.errors_withheld else ""
    yield (
        f"scrubbed: {', '.join(found.tables)} made afresh for {found.erased:,} erased, "
        f"{found.snapshots:,} snapshots dropped{withheld}"
    )


@contextlib.asynccontextmanager
async def opened(name: str | None) -> AsyncIterator[tuple[Journal, Database]]:
    """Open the journal and the read side's database."""
    settings = console.load_settings()
    async with open_journal(settings, name) as journal, Database(settings) as database:
        yield journal, database


@contextlib.asynccontextmanager
async def opened_all(names: Sequence[str] | None) -> AsyncIterator[list[Journal]]:
    """Open the journals of these names, all of the database without any."""
    settings = console.load_settings()
    async with contextlib.AsyncExitStack() as stack:
        store = open_store(settings)
        stack.push_async_callback(store.close)
        journals = Journals(settings, store)
        stack.push_async_callback(journals.close)
        found = await journals.all()
        if missing := sorted(set(names or ()) - {each.name for each in found}):
            raise JournalNotFound(missing[0])
        yield [each for each in found if not names or each.name in names]


async def checked(database: Database) -> None:
    """Raise where the read side's tables are missing or the database is away."""
    async with database.snapshot() as connection:
        await leases.live_workers(connection)


register_serve(app)


def main() -> None:
    """Run the command line program."""
    console.main(app, "projections")
