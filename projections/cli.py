"""The command `projections`: run projectors and see how far they are."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Sequence
from time import monotonic
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from ledger import console
from ledger.errors import InvalidEvent, JournalNotFound
from ledger.journal import Journal, open_journal
from ledger.journals import Journals
from ledger.proof.witnessing import check_witnessed
from ledger.stores.opening import open_store
from projections import checking, leases, parking, retrying, scrubbing
from projections.checking import STEPS
from projections.database import Database
from projections.flagged import Flagged, flagged
from projections.fold import Group
from projections.groups import GROUPS, TABLES
from projections.health import PairStatus, judge, pair_statuses
from projections.lanes import Place
from projections.parking import ParkedKey, SkippedEvent
from projections.projector import BATCH_SIZE, Projector
from projections.reactor import MARK_AGE_SECONDS, Reactor
from projections.rebuilding.showing import Shown
from projections.rebuilding.work import Options
from projections.reporting import Reporter
from projections.retrying import Retried
from projections.scrubbing import WAIT_SECONDS, Scrubbed
from projections.waiting import outlast_outages
from projections.worker import Worker

EPILOG = "Exit codes: 0 done, 1 a check failed, 2 bad input or usage, 3 environment."

app = typer.Typer(
    help="Keep the read models up to date.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

WIDTH_ELSEWHERE = 160
"""Columns of tables that are printed into a file or a pipe."""

JournalsOption = Annotated[
    list[str] | None,
    typer.Option("--journal", "-j", help="Only this journal; repeatable. [default: all]"),
]
JournalOption = Annotated[
    str | None,
    typer.Option("--journal", "-j", help="The journal's name. [default: LEDGER_JOURNAL or main]"),
]


@app.command()
def run(
    once: Annotated[bool, typer.Option("--once", help="Stop at the journals' ends.")] = False,
    group: Annotated[list[str] | None, typer.Option(help="Only this group; repeatable.")] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, max=100_000, help="Events in one transaction.")
    ] = BATCH_SIZE,
    worker_id: Annotated[
        str | None, typer.Option(help="This worker's name, its own among all.")
    ] = None,
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
    for name in groups:
        print(f"{name}: {folded[name]:,} events")
    rate = sum(folded.values()) / seconds
    print(f"{seconds:.1f} s, {rate:,.0f} events/s")


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
            counts = await all_or_first_error(each.run(stopping, end) for each in projectors)
            folded.update(dict(zip(groups, counts, strict=True)))
    return folded


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
    journal: JournalOption = None,
) -> None:
    """Place closing orders and activate resting ones as marks cross their levels, until stopped.

    Any number may run; each crossed level still has one closing order.
    """
    console.run(_react(mark_age, journal, once=once))


async def _react(mark_age: float, name: str | None, *, once: bool) -> None:
    stopping, reporter = _stopped_by_signals(), Reporter()
    async with opened(name) as (journal, database):
        await check_witnessed(journal, console.load_settings())
        reactor = Reactor(
            database,
            journal,
            mark_age_seconds=mark_age,
            reacted=lambda reaction: print(reaction, flush=True),
        )
        if once:
            await reactor.run(stopping, await journal.size())
            return
        await checked(database)
        await outlast_outages(
            lambda: reactor.run(stopping), stopping, lambda error: reporter.tell("reactor", error)
        )


@app.command()
def check() -> None:
    """Try every part of the domain once, in a journal of its own, and print a line for each."""
    failed = console.run(_check())
    if failed:
        print(f"{failed} of {len(STEPS)} steps failed")
        raise typer.Exit(1)
    print(f"all {len(STEPS)} steps passed")


async def _check() -> int:
    failed = 0
    number = 0
    async for step in checking.check(console.load_settings()):
        number += 1
        failed += not step.ok
        print(
            f"{number:2} {'ok    ' if step.ok else 'FAILED'} {step.name}: {step.seen}", flush=True
        )
    return failed


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
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
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
        print(msgspec.json.encode(found).decode())
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
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    journal: JournalOption = None,
) -> None:
    """List the orders and positions with facts that did not fit, the latest change first."""
    found = console.run(_flagged(flag, journal))
    if as_json:
        print(msgspec.json.encode(found).decode())
        return
    for each in found:
        flags = ", ".join(f"{name} {count}" for name, count in sorted(each.flags.items()))
        print(f"{each.table} {each.key} {each.status}: {flags}")


async def _flagged(flag: str | None, name: str | None) -> list[Flagged]:
    async with opened(name) as (journal, database), database.snapshot() as connection:
        return await flagged(connection, journal.journal_id, flag)


@app.command("parked")
def list_parked(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    journal: JournalOption = None,
) -> None:
    """List the keys of tables that wait since an event could not be folded, the oldest first."""
    found = console.run(_parked(journal))
    if as_json:
        print(msgspec.json.encode(found).decode())
        return
    for each in found:
        print(f"{each}; since {each.parked_at:%Y-%m-%dT%H:%M:%SZ}, {each.waiting:,} events wait")


async def _parked(name: str | None) -> list[ParkedKey]:
    async with opened(name) as (journal, database), database.snapshot() as connection:
        return await parking.parked(connection, journal.journal_id)


@app.command()
def retry(
    table: Annotated[str | None, typer.Option(help="Only what is parked in this table …")] = None,
    value: Annotated[str | None, typer.Option(help="… under this value.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All that is parked.")] = False,
    journal: JournalOption = None,
) -> None:
    """Fold again what is parked, once its fold has been mended; also what only waited for it.

    Exits with 1 where something of what was to be freed is still parked.
    """
    if every == (table is not None and value is not None) or (table is None) != (value is None):
        raise InvalidEvent("give both --table and --value, or --all", field="retry")
    only = None if table is None or value is None else (table, value)
    groups = list(GROUPS.values()) if table is None else [_group_of(table)]
    if console.run(_retry(groups, only, journal)):
        raise typer.Exit(1)


def _group_of(table: str) -> Group:
    if table not in TABLES:
        raise InvalidEvent(f"{table!r} is unknown; there are {', '.join(TABLES)}", field="table")
    return TABLES[table]


async def _retry(groups: Sequence[Group], only: tuple[str, str] | None, name: str | None) -> int:
    """Retry group by group, each told once it is committed; return how many keys stay parked."""
    left = 0
    async with opened(name) as (journal, database):
        for group in groups:
            with console.folding() as advanced:
                retried = await retrying.retry(database, journal, group, only, advanced)
            _print_retried(retried)
            left += sum(only in {None, (each.table, each.value)} for each in retried.parked)
    return left


def _print_retried(retried: Retried) -> None:
    rows = sum(retried.rows.values())
    print(f"{retried.group}: {retried.freed:,} keys are free, {rows:,} rows written")
    for each in retried.parked:
        print(f"still parked: {each}")


@app.command()
def skip(
    table: Annotated[str, typer.Option(help="The table that is to do without the event.")],
    offset: Annotated[int, typer.Option(min=0, help="The offset of the event.")],
    reason: Annotated[str, typer.Option(help="Why; it is kept with the skip.")],
    actor: Annotated[str | None, typer.Option(help="Who decided so.")] = None,
    journal: JournalOption = None,
) -> None:
    """Leave a parked event out of a table for ever, and fold what has waited for it."""
    group = _group_of(table)
    if not reason.strip():
        raise InvalidEvent("must say why the event is left out", field="reason")
    skipped, retried = console.run(_skip(group, (table, offset), reason, actor, journal))
    print(skipped)
    _print_retried(retried)


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
        typer.Option(min=1, max=256, help="Processes that fold. [default: one for each processor]"),
    ] = None,
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
    _print_scrubbed(found)


def _is_confirmed() -> bool:
    question = "Kept tables and snapshots will be dropped. Go on?"
    return sys.stdin.isatty() and typer.confirm(question, err=True)


def _print_scrubbed(found: Scrubbed) -> None:
    if not found.erased:
        print("nobody is erased: nothing to scrub")
        return
    for note in found.notes:
        print(f"note: {note}")
    withheld = f", {found.errors_withheld:,} errors withheld" if found.errors_withheld else ""
    print(
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


def main() -> None:
    """Run the command line program."""
    console.main(app, "projections")
