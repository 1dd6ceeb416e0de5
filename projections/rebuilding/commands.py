"""The commands `replay.py rebuild`, `rollback` and `drop-old`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ledger import console
from ledger.options import JsonOption
from ledger.settings import Settings
from projections import rebuilding
from projections.building import ROWS_MAX
from projections.database import Database
from projections.groups import TABLES
from projections.options import TablesArgument
from projections.rebuilding.comparing import Comparison
from projections.rebuilding.errors import InvalidTables
from projections.rebuilding.rebuild import Outcome
from projections.rebuilding.showing import Shown
from projections.rebuilding.side import SideTable
from projections.rebuilding.work import SWAP_SECONDS, Options

All = Annotated[bool, typer.Option("--all", help="All read tables.")]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1, max=256, help="Processes that fold.", show_default="one for each processor"
    ),
]
RowsInMemory = Annotated[
    int, typer.Option(min=1000, help="Rows that each process holds in memory at most.")
]
SwapSeconds = Annotated[
    float, typer.Option(min=0, help="Give up if the tables cannot be locked for so long.")
]


def rebuild(
    tables: TablesArgument = None,
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
    as_json: JsonOption = False,
) -> None:
    """Build tables afresh beside the live ones, compare, and swap them in under way.

    The replaced tables are kept as TABLE__old: see `rollback` and `drop-old`.
    """
    settings = console.load_settings()
    if status:
        _tell_side_tables(console.run(_side_tables(settings)), as_json=as_json)
        return
    options = Options(workers or os.cpu_count() or 1, rows_in_memory, replace_old, swap_seconds)
    watch = Shown(accept=accept, quiet=as_json)
    with watch.shown():
        outcome = console.run(
            rebuilding.rebuild(settings, _named(tables, every=every), options=options, watch=watch)
        )
    console.tell(outcome, _outcome_told("rebuilt", outcome), as_json=as_json)
    if not outcome.swapped:
        raise typer.Exit(1)


def rollback(
    tables: TablesArgument = None,
    every: All = False,
    workers: Workers = None,
    rows_in_memory: RowsInMemory = ROWS_MAX,
    swap_seconds: SwapSeconds = SWAP_SECONDS,
    as_json: JsonOption = False,
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
    watch = Shown(accept=True, quiet=as_json)
    with watch.shown():
        outcome = console.run(
            rebuilding.rollback(settings, None if every else named, options=options, watch=watch)
        )
    nothing = ["rolled back: nothing, since nothing is kept"]
    words = _outcome_told("rolled back", outcome) if outcome.swapped else nothing
    console.tell(outcome, words, as_json=as_json)


def drop_old(
    tables: TablesArgument = None, every: All = False, as_json: JsonOption = False
) -> None:
    """Drop the tables that are kept from the last rebuild."""
    named = _named(tables, every=every)
    if not named:
        raise InvalidTables("name the tables, or give --all")
    settings = console.load_settings()
    dropped = console.run(rebuilding.drop_old(settings, None if every else named))
    words = f"dropped: {', '.join(dropped) or 'nothing, since nothing is kept'}"
    console.tell({"dropped": dropped}, words, as_json=as_json)


def _named(tables: list[str] | None, *, every: bool) -> list[str]:
    """Return which tables are meant."""
    if every and tables:
        raise InvalidTables("name the tables or give --all, not both")
    return list(TABLES) if every else list(tables or ())


def _outcome_told(done: str, outcome: Outcome) -> Iterator[str]:
    if not outcome.swapped:
        yield (
            "not swapped: the live tables are as they were; "
            "run it with --accept to swap all the same"
        )
        return
    differing = [each.table for each in outcome.compared if not each.is_same]
    yield from (str(each) for each in outcome.compared if _has_columns_untold(each))
    for note in outcome.notes:
        yield f"note: {note}"
    compared = ""
    if outcome.compared:
        compared = f"; differing from before: {', '.join(differing) or 'none'}"
    yield (
        f"{done}: {', '.join(outcome.swapped)} "
        f"({outcome.events:,} events in {outcome.seconds:.1f} s{compared})"
    )


def _has_columns_untold(compared: Comparison) -> bool:
    """Whether columns could not be compared, and nothing else was told of the table."""
    return compared.is_same and bool(compared.columns_only_old or compared.columns_only_new)


async def _side_tables(settings: Settings) -> list[SideTable]:
    async with Database(settings) as database:
        return await rebuilding.side_tables(database)


def _tell_side_tables(found: list[SideTable], *, as_json: bool) -> None:
    if as_json:
        console.tell(found, "", as_json=True)
        return
    table = Table(*("table", "beside", "group", "state", "fold version", "sizes", "since"))
    for each in found:
        state = "kept" if each.role == "old" else "being made"
        sizes = ", ".join(f"{journal}: {size:,}" for journal, size in sorted(each.sizes.items()))
        since = f"{each.made_at.astimezone(UTC):%Y-%m-%d %H:%M:%SZ}"
        table.add_row(each.name, each.table, each.group, state, each.fold_version, sizes, since)
    Console().print(table)
