"""The auditor's door: any table as of any point, and proof that the live tables are right."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from typing import Annotated, Any

import msgspec
import typer

from ledger import console
from ledger.errors import LedgerError
from ledger.journal import Journal
from ledger.sqltypes import time_to_text
from projections import parking, snapshot_cli
from projections.cli import JournalOption, opened
from projections.database import Database
from projections.fold import Group
from projections.groups import GROUPS, POSTINGS, TABLES, TRADING
from projections.lanes import Rulings
from projections.model import ReadModel, values_of
from projections.parking import SkippedEvent
from projections.projection import Projection, State
from projections.rebuilding import commands
from projections.rendering import as_text, plain, plain_row
from projections.replaying import fold_prefix, from_the_start
from projections.snapshots import Beginning
from projections.trial_balance import TrialBalance, folded_balance, live_balance
from projections.verification import SHOWN_MAX, Verified
from projections.verification import verify as verify_tables

EPILOG = "Exit codes: 0 done, 1 differences found, 2 bad input or usage, 3 environment."

app = typer.Typer(
    help="See tables as they stood at any point, verify the live ones, and rebuild them.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(snapshot_cli.app, name="snapshot")


class InvalidRequest(LedgerError):
    """What was asked for does not exist."""


class Format(StrEnum):
    """How rows are printed."""

    TABLE = "table"
    JSON = "json"


class Point(msgspec.Struct, frozen=True):
    """A point in a journal: a size, and the time that was asked for if it was found by time.

    It is provisional while events of that very time may still be recorded. `snapshots` are the
    sizes of those that a fold to this point began at, by the names of their groups. `notes` say
    what is left out of the tables, and what waits.
    """

    size: int
    recorded_at: datetime | None = None
    provisional: bool = False
    snapshots: dict[str, int] = {}
    notes: list[str] = []

    def __str__(self) -> str:
        found = f"size {self.size}"
        if self.recorded_at is not None:
            found += f", recorded at or before {time_to_text(self.recorded_at)}"
        if self.provisional:
            found += " (provisional)"
        begun = (f"; {group} from its snapshot at {n}" for group, n in self.snapshots.items())
        return found + "".join(begun)


class Condition(msgspec.Struct, frozen=True):
    """A column and the text of the value that it must have."""

    column: str
    text: str

    def holds(self, row: ReadModel) -> bool:
        """Whether the row's column has the value; amounts compare as numbers."""
        value = getattr(row, self.column)
        if isinstance(value, Decimal):
            return value == _amount(self)
        wanted = self.text.lower() if isinstance(value, bool) else self.text
        return as_text(value) == wanted


Tables = dict[str, list[ReadModel]]


@app.command("as-of")
def as_of(
    size: Annotated[int | None, typer.Option(help="After this many events.", min=0)] = None,
    recorded: Annotated[
        str | None, typer.Option(help="At this time, such as 2026-11-23T14:38:00Z.")
    ] = None,
    table: Annotated[list[str] | None, typer.Option(help="Only this table; repeatable.")] = None,
    where: Annotated[
        list[str] | None, typer.Option(help="Only rows with COLUMN=VALUE; repeatable.")
    ] = None,
    output: Annotated[Format, typer.Option("--format", help="How to print.")] = Format.TABLE,
    no_snapshots: Annotated[
        bool, typer.Option("--no-snapshots", help="Fold from the first event in any case.")
    ] = False,
    journal: JournalOption = None,
) -> None:
    """Show tables as they stood at a point of the journal, folded from it.

    The fold begins at the latest usable snapshot, and says so, if all tables are kept in it.
    """
    if (size is None) == (recorded is None):
        raise InvalidRequest("give either --size or --recorded")
    moment = None if recorded is None else _parsed_time(recorded)
    projections = _named_tables(table)
    conditions = [_parsed_condition(each, projections) for each in where or ()]
    name, point, rows = console.run(
        _as_of(size, moment, projections, conditions, journal, from_start=no_snapshots)
    )
    _print_json(name, point, rows) if output is Format.JSON else _print_tables(name, point, rows)


def _parsed_time(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise InvalidRequest(f"--recorded: {text!r} is not an ISO 8601 time") from error
    if moment.utcoffset() is None:
        raise InvalidRequest(f"--recorded: {text!r} has no time zone; add Z or an offset")
    return moment


def _named_tables(names: Sequence[str] | None) -> list[Projection[Any]]:
    unknown = sorted(set(names or ()) - set(TABLES))
    if unknown:
        raise InvalidRequest(f"--table: {unknown[0]!r} is not one of {', '.join(TABLES)}")
    every = (each for group in GROUPS.values() for each in group.projections)
    return [each for each in every if not names or each.name in names]


def _parsed_condition(text: str, projections: Iterable[Projection[Any]]) -> Condition:
    column, equals, value = text.partition("=")
    for projection in projections:
        if not equals or column not in projection.columns:
            raise InvalidRequest(
                f"--where: {text!r} is not COLUMN=VALUE with a column of {projection.name}: "
                + ", ".join(projection.columns)
            )
    return Condition(column, value)


def _amount(condition: Condition) -> Decimal:
    try:
        return Decimal(condition.text)
    except InvalidOperation as error:
        raise InvalidRequest(f"--where: {condition.text!r} is not an amount") from error


async def _as_of(
    size: int | None,
    moment: datetime | None,
    projections: Sequence[Projection[Any]],
    conditions: Sequence[Condition],
    name: str | None,
    *,
    from_start: bool,
) -> tuple[str, Point, Tables]:
    """Fold what is asked for; return the journal's name, the point and the rows of each table."""
    rows: Tables = {}
    notes: list[str] = []
    async with opened(name) as (journal, database):
        point, begin = await _point(journal, size, moment), Beginning(database)
        parts = _parts(projections)
        with console.folding(point.size * len(parts)) as advanced:
            for part in parts:
                how = from_the_start if from_start else begin
                decided, skips = await _decided(database, journal, part, point.size)
                state = await fold_prefix(journal, part, point.size, advanced, how, decided)
                notes += [*map(str, skips), *_waiting(state)]
                for each in part.projections:
                    if each in projections:
                        rows[each.name] = _matching(part.finished(state, each.name), conditions)
    point = msgspec.structs.replace(point, snapshots=begin.sizes, notes=notes)
    return journal.name, point, rows


async def _decided(
    database: Database, journal: Journal, group: Group, size: int
) -> tuple[Rulings, list[SkippedEvent]]:
    """Return what was decided about single events, and which of the first `size` are skipped."""
    async with database.snapshot() as connection:
        rulings = await parking.rulings(connection, journal.journal_id, group)
        return rulings, await parking.skipped(connection, journal.journal_id, group, size)


def _waiting(state: State) -> Iterator[str]:
    """Say what is parked in a state, the first of it in words."""
    lanes = state.parking.lanes
    for lane, parked in list(lanes.items())[:SHOWN_MAX]:
        yield f"{lane} {parked}"
    if len(lanes) > SHOWN_MAX:
        yield f"and {len(lanes) - SHOWN_MAX:,} more parked keys"


def _parts(projections: Sequence[Projection[Any]]) -> list[Group]:
    """Return the smallest parts of groups whose folds give these tables."""
    names = [each.name for each in projections]
    groups = {TABLES[name].name: TABLES[name] for name in names}
    return [
        group.only([name for name in names if TABLES[name] is group]) for group in groups.values()
    ]


def _matching(rows: Iterable[ReadModel], conditions: Sequence[Condition]) -> list[ReadModel]:
    return [row for row in rows if all(condition.holds(row) for condition in conditions)]


async def _point(journal: Journal, size: int | None, moment: datetime | None) -> Point:
    if moment is not None:
        found = await journal.size_at(moment)
        return Point(found.size, moment, found.provisional)
    end = await journal.size()
    if size is None or size > end:
        raise InvalidRequest(f"--size: journal {journal.name!r} holds only {end} events")
    return Point(size)


def _print_json(journal: str, point: Point, rows: Tables) -> None:
    answer = _described(journal, point)
    answer["tables"] = {name: [plain_row(row) for row in found] for name, found in rows.items()}
    print(json.dumps(answer))


def _described(journal: str, point: Point) -> dict[str, Any]:
    """Return the point for JSON."""
    answer: dict[str, Any] = {"journal": journal, "size": point.size}
    if point.recorded_at is not None:
        answer |= {
            "recorded_at": time_to_text(point.recorded_at),
            "provisional": point.provisional,
        }
    also = {"snapshots": point.snapshots, "notes": point.notes}
    return answer | {name: value for name, value in also.items() if value}


def _print_tables(journal: str, point: Point, rows: Tables) -> None:
    print(f"journal {journal} as of {point}")
    for note in point.notes:
        print(f"note: {note}")
    for name, found in rows.items():
        print(f"\n{name}: {len(found)} rows")
        shown = [_shown(row) for row in found]
        columns = [c for c in (shown[0] if shown else ()) if any(row[c] != "-" for row in shown)]
        _print_aligned([columns, *([row[column] for column in columns] for row in shown)])


def _print_aligned(lines: Sequence[Sequence[str]]) -> None:
    """Print a table whose first line names the columns; nothing if there is nothing below it."""
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    for line in lines if len(lines) > 1 else ():
        print("  ".join(map(str.ljust, line, widths)).rstrip())


def _shown(row: ReadModel) -> dict[str, str]:
    """Return the columns that people read, as text."""
    values = values_of(row).items()
    return {
        name: as_text(value)
        for name, value in values
        if name != "journal_id" and not name.startswith("exact_")
    }


@app.command()
def verify(journal: JournalOption = None) -> None:
    """Fold the journal afresh and compare every row and column with the live tables."""
    result = console.run(_verify(journal))
    for difference in result.first:
        print(difference)
    compared = f"{result.events:,} events, {result.rows:,} rows in {result.tables} tables"
    if len(set(result.sizes.values())) > 1:
        each = ", ".join(f"{group} {size:,}" for group, size in result.sizes.items())
        compared += f" (events of each group: {each})"
    _print_poisoned(result)
    if result.differences:
        print(f"{result.differences:,} differences, compared: {compared}")
    elif result.parked:
        print(f"not verified: {len(result.parked):,} parked keys, else as it should be: {compared}")
    elif result.skipped:
        print(f"verified, but for {len(result.skipped):,} skipped events: {compared}")
    else:
        print(f"verified: {compared}")
    if not result.is_verified:
        raise typer.Exit(1)


def _print_poisoned(result: Verified) -> None:
    for skipped in result.skipped:
        print(f"left out: {skipped}")
    for key in result.parked[:SHOWN_MAX]:
        print(f"not verified: {key}")
    if len(result.parked) > SHOWN_MAX:
        print(f"not verified: {len(result.parked) - SHOWN_MAX:,} more parked keys")


async def _verify(name: str | None) -> Verified:
    async with opened(name) as (journal, database):
        with console.folding(None) as advanced:
            return await verify_tables(database, journal, GROUPS.values(), advanced)


@app.command("trial-balance")
def trial_balance(
    size: Annotated[int | None, typer.Option(help="After this many events.", min=0)] = None,
    recorded: Annotated[
        str | None, typer.Option(help="At this time, such as 2026-11-23T14:38:00Z.")
    ] = None,
    live: Annotated[bool, typer.Option("--live", help="Of the tables, not of a fold.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    journal: JournalOption = None,
) -> None:
    """Add up all postings (of the whole journal by default) and hold them against positions."""
    if (size is not None) + (recorded is not None) + live > 1:
        raise InvalidRequest("give one of --size, --recorded and --live")
    moment = None if recorded is None else _parsed_time(recorded)
    name, point, found = console.run(_trial_balance(size, moment, journal, of_tables=live))
    if as_json:
        _print_balance_json(name, point, found)
    else:
        _print_balance(name, point, found)
    if found.faults:
        raise typer.Exit(1)


async def _trial_balance(
    size: int | None, moment: datetime | None, name: str | None, *, of_tables: bool
) -> tuple[str, Point, TrialBalance]:
    """Return the journal's name, the point and the balance."""
    async with opened(name) as (journal, database):
        if of_tables:
            found = await live_balance(database, journal)
            return journal.name, Point(found.size), found
        if size is None and moment is None:
            size = await journal.size()
        point = await _point(journal, size, moment)
        trading, _ = await _decided(database, journal, TRADING, point.size)
        booked, _ = await _decided(database, journal, POSTINGS, point.size)
        with console.folding(point.size * 2) as advanced:
            found = await folded_balance(journal, point.size, advanced, (trading, booked))
        return journal.name, point, found


def _print_balance_json(journal: str, point: Point, found: TrialBalance) -> None:
    answer = _described(journal, point)
    answer |= {"postings": found.postings, "books": found.books}
    answer["balances"] = [
        {"account": each.account, "currency": each.currency, "amount": plain(each.amount)}
        for each in found.balances
    ]
    answer["totals"] = {currency: plain(total) for currency, total in found.totals.items()}
    answer["faults"] = [str(fault) for fault in found.faults]
    print(json.dumps(answer))


def _print_balance(journal: str, point: Point, found: TrialBalance) -> None:
    print(f"journal {journal} as of {point}\n")
    rows = [(each.account, each.currency, as_text(each.amount)) for each in found.balances]
    rows += [("total", currency, as_text(total)) for currency, total in found.totals.items()]
    _print_aligned([("account", "currency", "amount"), *rows])
    for fault in found.faults:
        print(fault)
    result = f"faults: {len(found.faults):,}" if found.faults else "balanced, as the positions are"
    print(f"\n{result} (postings: {found.postings:,}, books: {found.books:,})")


for command in (commands.rebuild, commands.rollback, commands.drop_old):
    app.command()(command)

if __name__ == "__main__":
    console.main(app, "replay.py")
