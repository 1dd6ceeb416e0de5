"""The commands `replay.py snapshot`: take, list and drop kept states."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ledger import console
from ledger.errors import LedgerError
from ledger.options import JournalOption, JsonOption
from ledger.sqltypes import time_to_text
from projections import snapshots
from projections.cli import opened
from projections.groups import GROUPS
from projections.options import GroupOption
from projections.snapshots import Snapshot

app = console.Program(
    help="Keep states, so that as-of and rebuilds need only the events after them."
)


class InvalidChoice(LedgerError):
    """What was named does not exist, or is not enough to know what is meant."""


def _checked(names: Sequence[str] | None) -> Sequence[str] | None:
    unknown = sorted(set(names or ()) - set(GROUPS))
    if unknown:
        raise InvalidChoice(f"--group: {unknown[0]!r} is not one of {', '.join(GROUPS)}")
    return names or None


@app.command("take")
def take(
    group: GroupOption = None,
    size: Annotated[
        int | None, typer.Option(min=1, help="After this many events.", show_default="all")
    ] = None,
    as_json: JsonOption = False,
    journal: JournalOption = None,
) -> None:
    """Keep the state of each group that can be kept; start at the latest one that is usable."""
    names = _checked(group) or snapshots.kept_groups()
    taken = console.run(_take(names, size, journal))
    lines = (
        f"{each.group} at size {each.size:,}: {each.rows:,} rows in {each.bytes:,} bytes"
        for each in taken
    )
    console.tell(taken, lines, as_json=as_json)


async def _take(names: Sequence[str], size: int | None, name: str | None) -> list[Snapshot]:
    async with opened(name) as (journal, database):
        end = await journal.size() if size is None else size
        with _progress(end * len(names)) as (advanced, written):
            return [
                await snapshots.take(database, journal, GROUPS[each], end, advanced, written)
                for each in names
            ]


@contextmanager
def _progress(events: int) -> Iterator[tuple[Callable[[int], None], Callable[[int], None]]]:
    """Show on standard error how many events are folded, and how many chunks are written."""
    with console.progress_bar("") as bar:
        folding = bar.add_task("events folded", total=events)
        writing = bar.add_task("chunks written", total=None)
        yield lambda count: bar.advance(folding, count), lambda count: bar.advance(writing, count)


@app.command("list")
def list_kept(
    as_json: JsonOption = False,
    journal: JournalOption = None,
) -> None:
    """List what is kept, and whether it is usable; what is stale is never used."""
    found = console.run(_list(journal))
    if as_json:
        console.tell(found, "", as_json=True)
        return
    table = Table("group", "size", "rows", "bytes", "made at", "usable")
    for each in found:
        figures = (f"{n:,}" for n in (each.size, each.rows, each.bytes))
        usable = "yes" if each.stale is None else f"no: {each.stale}"
        table.add_row(each.group, *figures, time_to_text(each.made_at), usable)
    Console().print(table)


async def _list(name: str | None) -> list[Snapshot]:
    async with opened(name) as (journal, database):
        return await snapshots.listed(database, journal)


@app.command("drop")
def drop(
    group: GroupOption = None,
    size: Annotated[
        list[int] | None, typer.Option(help="The one at this size; repeatable.")
    ] = None,
    stale: Annotated[bool, typer.Option("--stale", help="Those that are not used.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    as_json: JsonOption = False,
    journal: JournalOption = None,
) -> None:
    """Drop what is kept (of the named groups); nothing but speed is lost."""
    if bool(size) + stale + everything != 1:
        raise InvalidChoice("say what to drop: one of --size, --stale and --all")
    dropped = console.run(_drop(_checked(group), size, journal, only_stale=stale))
    lines = (f"dropped {each.group} at size {each.size:,}" for each in dropped)
    console.tell(dropped, lines, as_json=as_json)


async def _drop(
    names: Collection[str] | None,
    sizes: Collection[int] | None,
    name: str | None,
    *,
    only_stale: bool,
) -> list[Snapshot]:
    """Drop what is chosen and return it; raises InvalidChoice where a size is not there."""
    async with opened(name) as (journal, database):
        found = await snapshots.listed(database, journal, names)
        missing = sorted(set(sizes or ()) - {each.size for each in found})
        if missing:
            raise InvalidChoice(f"--size: no snapshot is at {missing[0]}; see `snapshot list`")
        chosen = [
            each
            for each in found
            if (not sizes or each.size in sizes) and (each.stale is not None or not only_stale)
        ]
        await snapshots.drop(database, journal, chosen)
        return chosen
