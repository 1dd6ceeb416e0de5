"""Options that commands of several programs have in common, each spelled the same everywhere."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from ledger.console import load_settings
from ledger.errors import LedgerError
from ledger.stores.opening import open_store

COMPLETION_SECONDS = 2.0
"""Whoever presses the tabulator waits no longer than this for the names of journals."""


def complete_journal(incomplete: str) -> list[str]:
    """Return the names of the database's journals that begin so, none where it does not answer."""
    try:
        names = asyncio.run(asyncio.wait_for(_journal_names(), COMPLETION_SECONDS))
    except (LedgerError, OSError):  # a prompt is no place for error messages
        return []
    return [name for name in names if name.startswith(incomplete)]


async def _journal_names() -> list[str]:
    store = open_store(load_settings())
    try:
        return sorted(each.name for each in await store.journals())
    finally:
        await store.close()


JournalOption = Annotated[
    str | None,
    typer.Option(
        "--journal",
        "-j",
        help="The journal's name.",
        show_default="LEDGER_JOURNAL or main",
        autocompletion=complete_journal,
    ),
]
JournalsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--journal",
        "-j",
        help="Only this journal; repeatable.",
        show_default="all",
        autocompletion=complete_journal,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
JsonLinesOption = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")]
ActorOption = Annotated[
    str | None, typer.Option(help="Who decided so.", show_default="user and host")
]
