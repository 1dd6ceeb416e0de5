"""The reference pages, made from the code each time the site is built."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sphinx.application import Sphinx

from reference import commands, diagram, events, http, settings, tables

PAGES: dict[str, Callable[[], str]] = {
    "ledger.md": lambda: commands.page("ledger"),
    "projections.md": lambda: commands.page("projections"),
    "replay.md": lambda: commands.page("replay.py"),
    "http.md": http.page,
    "event-types.md": events.page,
    "tables.md": tables.page,
    "tables.svg": diagram.read_tables,
    "all-settings.md": settings.page,
}


def write_pages(app: Sphinx) -> None:
    """Write each page into the folder `reference`, if it is another than is there."""
    folder = Path(app.srcdir) / "reference"
    folder.mkdir(exist_ok=True)
    for name, make in PAGES.items():
        text, file = make(), folder / name
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Be an extension of Sphinx."""
    app.connect("builder-inited", write_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
