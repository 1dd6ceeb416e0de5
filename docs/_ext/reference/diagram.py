"""A diagram of the read tables and their foreign keys, as an image that needs no script."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from xml.sax.saxutils import escape

from sqlalchemy import Table

from projections.groups import GROUPS

ROW, HEAD, WIDTH, GAP = 18, 26, 230, 70
"""Height of a line, height of a table's name, width of a table, and the room between, in pixels."""
COLUMNS: Sequence[Sequence[str]] = (
    ("users", "api_keys", "security_audit_logs"),
    ("orders", "positions"),
    ("postings", "book_balances", "marks"),
)
"""Which tables stand below each other."""
STYLE = """
  rect { fill: #fff; stroke: #51607a } .head { fill: #dde5f3 }
  text { font: 12px sans-serif; fill: #16202f } .name { font-weight: bold }
  .more { fill: #51607a; font-style: italic } path { fill: none; stroke: #51607a }
"""


def read_tables() -> str:
    """Return the SVG: keys and references of each table, the number of its other columns."""
    tables = {each.name: each.table for group in GROUPS.values() for each in group.projections}
    places = dict(_places(tables))
    width = GAP + len(COLUMNS) * (WIDTH + GAP)
    height = GAP + max(y + _height(tables[name]) for name, (_, y) in places.items())
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'width="{width}">',
        "<title>The read tables and how they refer to each other</title>",
        f"<style>{STYLE}</style>",
        f'<rect width="{width}" height="{height}" style="stroke: none"/>',
    ]
    for name, table in tables.items():
        parts += _references(table, places, tables)
        parts += _box(table, *places[name])
    return "\n".join([*parts, "</svg>"]) + "\n"


def _places(tables: dict[str, Table]) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield the upper left corner of each table; raises ValueError where one has no place."""
    if missing := set(tables) - {name for names in COLUMNS for name in names}:
        raise ValueError(f"docs/_ext/reference/diagram.py: COLUMNS lacks {sorted(missing)}")
    for number, names in enumerate(COLUMNS):
        y = GAP // 2
        for name in names:
            yield name, (GAP + number * (WIDTH + GAP), y)
            y += _height(tables[name]) + GAP // 2


def _lines(table: Table) -> list[str]:
    """Return the columns that are keys or refer to others, and how many more there are."""
    shown = [c for c in table.columns if c.primary_key or c.foreign_keys]
    lines = [f"{'◆ ' if c.primary_key else '→ '}{c.name}" for c in shown]
    more = len(table.columns) - len(shown)
    return [*lines, f"{more} more columns"] if more else lines


def _height(table: Table) -> int:
    return HEAD + ROW * len(_lines(table)) + 8


def _box(table: Table, x: int, y: int) -> Iterator[str]:
    yield f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{_height(table)}"/>'
    yield f'<rect class="head" x="{x}" y="{y}" width="{WIDTH}" height="{HEAD}"/>'
    yield f'<text class="name" x="{x + 10}" y="{y + 17}">{escape(table.name)}</text>'
    for number, line in enumerate(_lines(table)):
        below = y + HEAD + ROW * (number + 1) - 3
        kind = ' class="more"' if line.endswith("more columns") else ""
        yield f'<text{kind} x="{x + 10}" y="{below}">{escape(line)}</text>'


def _references(
    table: Table, places: dict[str, tuple[int, int]], tables: dict[str, Table]
) -> Iterator[str]:
    """Yield a line from each foreign key to its table, along the gap beside it."""
    x, y = places[table.name]
    for key in sorted(table.foreign_key_constraints, key=lambda each: each.referred_table.name):
        target = key.referred_table.name
        to_x, to_y = places[target]
        start = y + HEAD + ROW * _row_of(table, key.column_keys[-1]) + 10
        end = to_y + HEAD // 2
        near = x - GAP // 3 - 6 * (list(tables).index(target) % 4)
        far = to_x + WIDTH if to_x < x else to_x
        yield f'<path d="M {x} {start} H {near} V {end} H {far}" marker-end="none"/>'
        yield f'<circle cx="{far}" cy="{end}" r="4" fill="#51607a"/>'


def _row_of(table: Table, column: str) -> int:
    shown = [c.name for c in table.columns if c.primary_key or c.foreign_keys]
    return shown.index(column)
