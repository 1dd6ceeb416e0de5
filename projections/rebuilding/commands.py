"""The commands `replay.py rebuild`, `rollback` and `drop-old`."""

from __future__ import annotations

import os
from datetime import UTC
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ledger import console
from ledger.settings import Settings
from projections import rebuilding
from projections.building import ROWS_MAX
from projections.database import Database
from projections.groups import TABLES
from projections.rebuilding.comparing import Comparison
from projections.rebuilding.errors import InvalidTables
from projections.rebuilding.rebuild import Outcome
from projections.rebuilding.showing import Shown
from projections.rebuilding.side import SideTable
from projections.rebuilding.work import SWAP_SECONDS, Options

Names = Annotated[list[str] | None, typer.Argument(metavar="TABLE…", help="The read tables.")]
All = Annotated[bool, typer.Option("--all", help="All read tables.")]
Workers = Annotated[
    int | None,
    typer.Option(min=1, max=256, help="Processes that fold. [default: one for each processor]"),
]
RowsInMemory = Annotated[
    int, typer.Option(min=1000, help="Rows that each process holds in memory at most.")
]
SwapSeconds = Annotated[
    float, typer.Option(min=0, help="Give up if the tables cannot be locked for so long.")
]


def rebuild(
    tables: Names = None,
    every: All = False,
    workers: Workers = None,
    accept: Annotated[
        bool, typer.Option("--accept", help="Swap also where the new tables differ.")
    ] = False,
    replace_old: Annotated[
        bool, typer.Option("--replace-old", help="Drop the tables kept from the last time.")
    ] = False,
    rows_in_memory: RowsInMemory = ROWS_MAX,
    swap_seconds: SwapSeconds = SWAP_SECONDS,
    status: Annotated[
        bool, typer.Option("--status", help="Only list the tables beside the live ones.")
    ] = False,
) -> None:
    """Build tables afresh beside the live ones, compare, and swap them in under way.

    The replaced tables are kept as TABLE__old: see `rollback` and `drop-old`.
    """
    settings = console.load_settings()
    if status:
        _print_side_tables(console.run(_side_tables(settings)))
        return
    options = Options(workers or os.cpu_count() or 1, rows_in_memory, replace_old, swap_seconds)
    watch = Shown(accept=accept)
    with watch.shown():
        outcome = console.run(
            rebuilding.rebuild(settings, _named(tables, every=every), options=options, watch=watch)
        )
    if outcome.swapped:
        _print_swapped("rebuilt", outcome)
        return
    print(
        "not swapped: the live tables are as they were; run it with --accept to swap all the same"
    )
    raise typer.Exit(1)


def rollback(
    tables: Names = None,
    every: All = False,
    workers: Workers = None,
    rows_in_memory: RowsInMemory = ROWS_MAX,
    swap_seconds: SwapSeconds = SWAP_SECONDS,
) -> None:
    """Go back to the tables that the last rebuild replaced, caught up first.

    With --all, to all that are kept. This needs the program whose fold filled them. The tables that
    were live are kept instead.
    """
    options = Options(
        workers or os.cpu_count() or 1, rows_in_memory, replace_old=False, swap_seconds=swap_seconds
    )
    named = _named(tables, every=every)
    settings = console.load_settings()
    watch = Shown(accept=True)
    with watch.shown():
        outcome = console.run(
            rebuilding.rollback(settings, None if every else named, options=options, watch=watch)
        )
    if not outcome.swapped:
        print("rolled back: nothing, since nothing is kept")
        return
    _print_swapped("rolled back", outcome)


def drop_old(tables: Names = None, every: All = False) -> None:
    """Drop the tables that are kept from the last rebuild."""
    named = _named(tables, every=every)
    if not named:
        raise InvalidTables("name the tables, or give --all")
    settings = console.load_settings()
    dropped = console.run(rebuilding.drop_old(settings, None if every else named))
    print(f"dropped: {', '.join(dropped) or 'nothing, since nothing is kept'}")


def _named(tables: list[str] | None, *, every: bool) -> list[str]:
    """Return which tables are meant."""
    if every and tables:
        raise InvalidTables("name the tables or give --all, not both")
    return list(TABLES) if every else list(tables or ())


def _print_swapped(done: str, outcome: Outcome) -> None:
    differing = [each.table for each in outcome.compared if not each.is_same]
    for each in outcome.compared:
        _print_columns(each)
    for note in outcome.notes:
        print(f"note: {note}")
    compared = ""
    if outcome.compared:
        compared = f"; differing from before: {', '.join(differing) or 'none'}"
    print(
        f"{done}: {', '.join(outcome.swapped)} "
        f"({outcome.events:,} events in {outcome.seconds:.1f} s{compared})"
    )


def _print_columns(compared: Comparison) -> None:
    """Tell of columns that could not be compared, where nothing else was told of the table."""
    if compared.is_same and (compared.columns_only_old or compared.columns_only_new):
        print(compared)


async def _side_tables(settings: Settings) -> list[SideTable]:
    async with Database(settings) as database:
        return await rebuilding.side_tables(database)


def _print_side_tables(found: list[SideTable]) -> None:
    table = Table(*("table", "beside", "group", "state", "fold version", "sizes", "since"))
    for each in found:
        state = "kept" if each.role == "old" else "being made"
        sizes = ", ".join(f"{journal}: {size:,}" for journal, size in sorted(each.sizes.items()))
        since = f"{each.made_at.astimezone(UTC):%Y-%m-%d %H:%M:%SZ}"
        table.add_row(each.name, each.table, each.group, state, each.fold_version, sizes, since)
    Console().print(table)
