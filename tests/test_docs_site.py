"""The documentation as a site: it builds without a warning, and all that it points to is there."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree

import pytest

import ledger.domain  # noqa: F401 - registers the event types
from ledger.event import event_types
from ledger.schema import metadata
from ledger.settings import Settings
from projections.groups import TABLES
from tests.test_commands import COMMANDS

ROOT = Path(__file__).parents[1]
LOADING = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src"}
"""What a browser fetches by itself, by element and attribute."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("site")
    options = ("--fail-on-warning", "--keep-going", "--nitpicky", "--quiet", "--fresh-env")
    command = [sys.executable, "-m", "sphinx", *options, str(ROOT / "docs"), str(folder)]
    done = subprocess.run(command, capture_output=True, cwd=ROOT, check=False, timeout=120)
    assert done.stderr.decode() == ""
    assert done.returncode == 0
    return folder


class Page(HTMLParser):
    """What a page points to, what it loads, and where in it one can point."""

    def __init__(self, file: Path) -> None:
        """Read a file."""
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.ids: set[str] = set()
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what an element says."""
        given = {name: value for name, value in attrs if value}
        self.ids.update(given[name] for name in ("id", "name") if name in given)
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag in LOADING and LOADING[tag] in given:
            self.loads.append(given[LOADING[tag]])


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    """All pages of the site."""
    return {file: Page(file) for file in sorted(site.rglob("*.html"))}


def broken(pages: Mapping[Path, Page]) -> Iterator[str]:
    """Yield the links within the site that lead nowhere."""
    for file, page in pages.items():
        for link in {*page.links, *page.loads}:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            if not target.exists():
                yield f"{file.name}: {link}: no such file"
            elif parts.fragment and target in pages and parts.fragment not in pages[target].ids:
                yield f"{file.name}: {link}: no such anchor"


def test_every_link_and_anchor_is_there(pages: dict[Path, Page]) -> None:
    """Whatever a page links to in the site exists, to the very section."""
    assert sum(len(page.links) for page in pages.values()) > 1000
    assert sorted(broken(pages)) == []


def test_a_broken_link_would_be_noticed(tmp_path: Path) -> None:
    """The search above sees missing files and anchors."""
    file = tmp_path / "page.html"
    file.write_text('<a href="gone.html">a</a><a href="#gone">b</a><a id="x" href="#x">c</a>')
    assert [each.rpartition(": ")[2] for each in sorted(broken({file: Page(file)}))] == [
        "no such anchor",
        "no such file",
    ]


def test_nothing_is_fetched_from_elsewhere(site: Path, pages: dict[Path, Page]) -> None:
    """Scripts, styles, fonts and images are the site's own: it is read without a network."""
    for page in pages.values():
        assert not [each for each in page.loads if urlsplit(each).netloc]
    for style in site.rglob("*.css"):
        text = style.read_text(encoding="utf-8")
        assert "url(http" not in text.replace('"', "").replace("'", ""), style.name
        assert "@import" not in text, style.name


def test_every_page_can_be_reached(site: Path, pages: dict[Path, Page]) -> None:
    """From the first page every other is linked, if by way of the sidebar."""
    reached = {(site / urlsplit(link).path).resolve() for link in pages[site / "index.html"].links}
    documents = {site / f"{file.stem}.html" for file in (ROOT / "docs").glob("*.md")}
    assert documents - reached == {site / "index.html"}


def test_the_reference_is_whole(site: Path) -> None:
    """Every command, setting, event type and table has its place in the reference."""
    folder = site / "reference"
    texts = {file.stem: file.read_text(encoding="utf-8") for file in folder.glob("*.html")}
    for name in COMMANDS:
        program = name.partition(" ")[0].removesuffix(".py")
        assert all(f'<span class="pre">{word}</span>' in texts[program] for word in name.split())
    for setting in Settings.model_fields:
        assert f"LEDGER_{setting.upper()}" in texts["all-settings"]
    for name, kind in event_types().items():
        assert "ledger.domain" not in kind.__module__ or name in texts["event-types"]
    for table in metadata.tables:
        assert table in texts["tables"]
    for path in ("/orders", "/sessions", "/events"):
        assert path in texts["http"]


def test_the_diagram_is_an_image_of_all_read_tables(site: Path) -> None:
    """It is well-formed, needs no script, and shows each read table and reference once."""
    [file] = site.rglob("tables.svg")
    root = ElementTree.parse(file).getroot()  # noqa: S314 - it is our own
    space = "{http://www.w3.org/2000/svg}"
    names = [each.text for each in root.iter(f"{space}text") if each.get("class") == "name"]
    assert sorted(filter(None, names)) == sorted(TABLES)
    assert not list(root.iter(f"{space}script"))
    references = [key for name in TABLES for key in metadata.tables[name].foreign_key_constraints]
    assert len(list(root.iter(f"{space}path"))) == len(references)
