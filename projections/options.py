"""Options that commands of the read side have in common, with completion of their values."""

from __future__ import annotations

from typing import Annotated

import typer

from projections.groups import GROUPS, TABLES


def complete_table(incomplete: str) -> list[str]:
    """Return the read tables whose names begin so."""
    return [name for name in TABLES if name.startswith(incomplete)]


def complete_group(incomplete: str) -> list[str]:
    """Return the groups of read tables whose names begin so."""
    return [name for name in GROUPS if name.startswith(incomplete)]


GroupOption = Annotated[
    list[str] | None,
    typer.Option("--group", help="Only this group; repeatable.", autocompletion=complete_group),
]
TableOption = Annotated[
    list[str] | None,
    typer.Option("--table", help="Only this table; repeatable.", autocompletion=complete_table),
]
TablesArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="TABLE…", help="The read tables.", autocompletion=complete_table),
]
