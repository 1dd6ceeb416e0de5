"""The command `projections`: run projectors and see how far they are."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from datetime import UTC, datetime
from time import monotonic
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from ledger import console
from ledger.errors import InvalidEvent
from ledger.journal import Journal, open_journal
from projections import checking
from projections.checking import STEPS
from projections.database import Database
from projections.flagged import Flagged, flagged
from projections.groups import GROUPS
from projections.projector import BATCH_SIZE, Projector
from projections.reactor import MARK_AGE_SECONDS, Reactor

EPILOG = "Exit codes: 0 done, 1 a check failed, 2 bad input or usage, 3 environment."

app = typer.Typer(
    help="Keep the read models up to date.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

JournalOption = Annotated[
    str | None,
    typer.Option("--journal", "-j", help="The journal's name. [default: LEDGER_JOURNAL or main]"),
]


class GroupStatus(msgspec.Struct, frozen=True):
    """How far a group is: `lag_seconds` is the age of the first event that it lacks."""

    group: str
    checkpoint: int
    size: int
    lag_events: int
    lag_seconds: float


@app.command()
def run(
    once: Annotated[bool, typer.Option("--once", help="Stop at the journal's end.")] = False,
    group: Annotated[list[str] | None, typer.Option(help="Only this group; repeatable.")] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, max=100_000, help="Events in one transaction.")
    ] = BATCH_SIZE,
    journal: JournalOption = None,
) -> None:
    """Fold new events into the tables, until stopped (SIGINT, SIGTERM) or --once done."""
    groups = _named_groups(group)
    started = monotonic()
    folded = console.run(_run(groups, batch_size, journal, once=once))
    seconds = monotonic() - started
    for name, events in folded.items():
        print(f"{name}: {events:,} events")
    rate = sum(folded.values()) / seconds
    print(f"{seconds:.1f} s, {rate:,.0f} events/s")


def _named_groups(names: Sequence[str] | None) -> list[str]:
    unknown = sorted(set(names or ()) - set(GROUPS))
    if unknown:
        raise InvalidEvent(
            f"{unknown[0]!r} is unknown; there are {', '.join(GROUPS)}", field="group"
        )
    return list(names or GROUPS)


async def _run(
    groups: Sequence[str], batch_size: int, name: str | None, *, once: bool
) -> dict[str, int]:
    """Run one projector for each group; return how many events each has folded."""
    stopping = _stopped_by_signals()
    async with opened(name) as (journal, database):
        projectors = {
            group: Projector(database, journal, GROUPS[group], batch_size=batch_size)
            for group in groups
        }
        end = await journal.size() if once else None
        works = [each.run(stopping, end) for each in projectors.values()]
        return dict(zip(projectors, await all_or_first_error(works), strict=True))


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
    stopping = _stopped_by_signals()
    async with opened(name) as (journal, database):
        reactor = Reactor(
            database,
            journal,
            mark_age_seconds=mark_age,
            reacted=lambda reaction: print(reaction, flush=True),
        )
        await reactor.run(stopping, await journal.size() if once else None)


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
    journal: JournalOption = None,
) -> None:
    """Show each group's checkpoint and how far it is behind the journal."""
    found = console.run(_status(journal))
    if as_json:
        print(msgspec.json.encode(found).decode())
        return
    table = Table(*("group", "checkpoint", "size", "lag (events)", "lag (s)"))
    for each in found:
        figures = (each.checkpoint, each.size, each.lag_events)
        table.add_row(each.group, *(f"{n:,}" for n in figures), f"{each.lag_seconds:.1f}")
    Console().print(table)


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


async def _status(name: str | None) -> list[GroupStatus]:
    async with opened(name) as (journal, database):
        return [await _group_status(journal, database, group) for group in GROUPS]


async def _group_status(journal: Journal, database: Database, group: str) -> GroupStatus:
    checkpoint = await Projector(database, journal, GROUPS[group]).checkpoint()
    size = await journal.size()
    lag_seconds = 0.0
    async for event in journal.read(checkpoint, checkpoint + 1):
        lag_seconds = max(0.0, (datetime.now(UTC) - event.recorded_at).total_seconds())
    return GroupStatus(group, checkpoint, size, size - checkpoint, lag_seconds)


@contextlib.asynccontextmanager
async def opened(name: str | None) -> AsyncIterator[tuple[Journal, Database]]:
    """Open the journal and the read side's database."""
    settings = console.load_settings()
    async with open_journal(settings, name) as journal, Database(settings) as database:
        yield journal, database


def main() -> None:
    """Run the command line program."""
    console.main(app, "projections")
