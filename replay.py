#!/usr/bin/env python3
"""The auditor's door: any table as of any point, and proof that the live tables are right."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from ledger import console
from ledger.options import JournalOption, JsonOption
from ledger.proof import verifier
from projections import snapshot_cli
from projections.bundling import bundle
from projections.cli import opened
from projections.folding import decided
from projections.groups import GROUPS, POSTINGS, TRADING
from projections.points import InvalidRequest, Point, Request, parsed_time, point_of, root_at
from projections.published import open_published
from projections.rebuilding import commands
from projections.rendering import as_text, plain
from projections.replaying_commands.as_of import as_of
from projections.replaying_commands.diff import show_diff
from projections.replaying_commands.history import history
from projections.replaying_commands.shared import RecordedOption, SizeOption, print_aligned
from projections.reports import cli as reports_cli
from projections.splicing import Spliced
from projections.trial_balance import TrialBalance, folded_balance, live_balance
from projections.verification import SHOWN_MAX, Verified
from projections.verification import verify as verify_tables

app = console.Program(
    help="See tables as they stood at any point, verify the live ones, and rebuild them."
)
app.add_typer(snapshot_cli.app, name="snapshot")
app.add_typer(reports_cli.app, name="report")


app.command("as-of")(as_of)
app.command("diff")(show_diff)
app.command("history")(history)
app.command("bundle")(bundle)


@app.command()
def verify(
    log: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Check this published log instead.")
    ] = None,
    key: Annotated[
        str | None, typer.Option(metavar="VKEY", help="The log's public key, with --log.")
    ] = None,
    tables: Annotated[
        bool,
        typer.Option("--tables", help="With --log: compare the database's tables with it as well."),
    ] = False,
    as_json: JsonOption = False,
    journal: JournalOption = None,
) -> None:
    """Fold the journal afresh and compare every row and column with the live tables.

    Before that the events are compared with what was sealed. With --log a published log is checked
    by itself, without a database; `python -m ledger.proof.verifier` does the same and more. With
    --tables also, the log's events are then folded, and after them those of the database that are
    not published yet, and the tables compared with that.
    """
    checked = None
    if (log is None) != (key is None):
        raise InvalidRequest("--log and --key go together")
    if tables and log is None:
        raise InvalidRequest("--tables goes with --log; without it tables are always compared")
    if log is not None and key is not None:
        checked = _check_log(log, key, ends=not tables, as_json=as_json)
    result = console.run(_verify(journal, log, key))
    answer = msgspec.structs.asdict(result) | {"verified": result.is_verified, "log": checked}
    console.tell(answer, _verified_told(result), as_json=as_json)
    if not result.is_verified:
        raise typer.Exit(1)


def _check_log(log: Path, key: str, *, ends: bool, as_json: bool) -> Any:
    """Check a published log; the program ends where it is not verified, or nothing is to follow.

    What is found is printed, or else returned, where it is JSON and something is to follow.
    """
    with contextlib.redirect_stdout(io.StringIO()) as said:
        code = verifier.main(["--log", str(log), "--key", key, *(["--json"] if as_json else [])])
    if as_json and not code and not ends:
        return json.loads(said.getvalue())
    print(said.getvalue(), end="")
    if code or ends:
        raise typer.Exit(code)
    return None


def _verified_told(result: Verified) -> Iterator[str]:
    if result.sealed is not None:
        yield str(result.sealed)
    if not result.is_unsealed:
        yield from _compared_told(result)


def _compared_told(result: Verified) -> Iterator[str]:
    yield from map(str, result.first)
    compared = f"{result.events:,} events, {result.rows:,} rows in {result.tables} tables"
    if len(set(result.sizes.values())) > 1:
        each = ", ".join(f"{group} {size:,}" for group, size in result.sizes.items())
        compared += f" (events of each group: {each})"
    yield from _poisoned_told(result)
    if result.differences:
        yield f"{result.differences:,} differences, compared: {compared}"
    elif result.parked:
        yield f"not verified: {len(result.parked):,} parked keys, else as it should be: {compared}"
    elif result.skipped:
        yield f"verified, but for {len(result.skipped):,} skipped events: {compared}"
    else:
        yield f"verified: {compared}"


def _poisoned_told(result: Verified) -> Iterator[str]:
    for skipped in result.skipped:
        yield f"left out: {skipped}"
    for key in result.parked[:SHOWN_MAX]:
        yield f"not verified: {key}"
    if len(result.parked) > SHOWN_MAX:
        yield f"not verified: {len(result.parked) - SHOWN_MAX:,} more parked keys"


async def _verify(name: str | None, log: Path | None, key: str | None) -> Verified:
    async with contextlib.AsyncExitStack() as stack:
        journal, database = await stack.enter_async_context(opened(name))
        source = None
        if log is not None:
            keys = journal.privacy.keys
            published = await stack.enter_async_context(open_published(log, key, keys=keys))
            source = Spliced(published, journal, await published.size())
        with console.folding(None) as advanced:
            return await verify_tables(database, journal, GROUPS.values(), advanced, source)


@app.command("trial-balance")
def trial_balance(
    size: SizeOption = None,
    recorded: RecordedOption = None,
    live: Annotated[bool, typer.Option("--live", help="Of the tables, not of a fold.")] = False,
    as_json: JsonOption = False,
    journal: JournalOption = None,
) -> None:
    """Add up all postings (of the whole journal by default) and hold them against positions."""
    if (size is not None) + (recorded is not None) + live > 1:
        raise InvalidRequest("give one of --size, --recorded and --live")
    asked = Request(size=size, recorded=parsed_time(recorded, "--recorded"))
    name, point, found = console.run(_trial_balance(asked, journal, of_tables=live))
    if as_json:
        _print_balance_json(name, point, found)
    else:
        _print_balance(name, point, found)
    if found.faults:
        raise typer.Exit(1)


async def _trial_balance(
    asked: Request, name: str | None, *, of_tables: bool
) -> tuple[str, Point, TrialBalance]:
    """Return the journal's name, the point and the balance."""
    async with opened(name) as (journal, database):
        if of_tables:
            found = await live_balance(database, journal)
            root = await root_at(journal, found.size)
            return journal.name, Point(found.size, root=root), found
        point = await point_of(journal, asked)
        trading, _ = await decided(database, journal, TRADING, point.size)
        booked, _ = await decided(database, journal, POSTINGS, point.size)
        with console.folding(point.size * 2) as advanced:
            found = await folded_balance(journal, point.size, advanced, (trading, booked))
        return journal.name, point, found


def _print_balance_json(journal: str, point: Point, found: TrialBalance) -> None:
    answer = point.described(journal)
    answer |= {"postings": found.postings, "books": found.books}
    answer["balances"] = [
        {"account": each.account, "currency": each.currency, "amount": plain(each.amount)}
        for each in found.balances
    ]
    answer["totals"] = {currency: plain(total) for currency, total in found.totals.items()}
    answer["faults"] = [str(fault) for fault in found.faults]
    print(json.dumps(answer))


def _print_balance(journal: str, point: Point, found: TrialBalance) -> None:
    print("\n".join(point.heading(journal)) + "\n")
    rows = [(each.account, each.currency, as_text(each.amount)) for each in found.balances]
    rows += [("total", currency, as_text(total)) for currency, total in found.totals.items()]
    print_aligned([("account", "currency", "amount"), *rows])
    for fault in found.faults:
        print(fault)
    result = f"faults: {len(found.faults):,}" if found.faults else "balanced, as the positions are"
    print(f"\n{result} (postings: {found.postings:,}, books: {found.books:,})")


for command in (commands.rebuild, commands.rollback, commands.drop_old):
    app.command()(command)

if __name__ == "__main__":
    console.main(app, "replay.py")
