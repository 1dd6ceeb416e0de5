"""Pieces of Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence


def cell(text: object) -> str:
    """Return text that stays in its cell of a table."""
    return " ".join(str(text).split()).replace("|", "\\|")


def code(text: object) -> str:
    """Return text as it is typed."""
    return f"`{text}`"


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """Yield the lines of a table, with an empty one after it; nothing where there are no rows."""
    lines = [f"| {' | '.join(map(cell, row))} |" for row in rows]
    if lines:
        yield from (f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *lines, "")


def page(title: str, *lines: str) -> str:
    """Return a page: title and lines, with one newline at the end."""
    return "\n".join((f"# {title}", "", *lines)).rstrip("\n") + "\n"
