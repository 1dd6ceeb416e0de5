"""What the documents say is there, is there."""

from __future__ import annotations

import ast
import inspect
import re
import tomllib
from pathlib import Path
from textwrap import dedent
from typing import Any
from uuid import uuid4

import pytest

import ledger.domain  # noqa: F401 - registers the event types
from ledger import event
from ledger.event import event_types
from ledger.services import open_ledger
from ledger.settings import Settings

ROOT = Path(__file__).parents[1]


def read(name: str) -> str:
    """Return a document."""
    return (ROOT / name).read_text(encoding="utf-8")


def test_every_event_type_and_field_is_described() -> None:
    """docs/events.md has a row for each event type, with all its fields and no others."""
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\| ([^|]*) \|$", read("docs/events.md"), re.MULTILINE))
    own = {
        name: set(known.__struct_fields__)
        for name, known in event_types().items()
        if known.__module__.startswith("ledger.domain")
    }
    assert {name: set(re.findall(r"`(\w+)`", data)) for name, data in rows.items()} == own


def test_every_setting_is_described() -> None:
    """docs/settings.md has each variable with its default."""
    text = read("docs/settings.md")
    for name, field in Settings.model_fields.items():
        assert f"`LEDGER_{name.upper()}`" in text
        if field.default is not None:
            assert re.search(rf"LEDGER_{name.upper()}` \| `?{re.escape(str(field.default))}", text)


def test_links_lead_somewhere() -> None:
    """Each relative link of the documents names a file."""
    for document in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


async def test_the_example_of_the_readme_runs(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code that the README shows first does what it says."""
    [code] = re.findall(r"```python\n(.*?)```", read("README.md"), re.DOTALL)
    names: dict[str, Any] = {}
    monkeypatch.setenv("LEDGER_DATABASE_URL", sqlite_url)
    exec(compile(code, "README.md", "exec"), names)  # noqa: S102 - the project's own words
    assert await names["place"](uuid4()) == (0,)


async def test_the_examples_for_services_run(sqlite_url: str) -> None:
    """All code of docs/services.md runs, one piece after the other, and has every function."""
    text = read("docs/services.md")
    async with open_ledger(Settings(database_url=sqlite_url)) as ledger:
        names: dict[str, Any] = {"ledger": ledger}
        for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
            compiled = compile(code, "docs/services.md", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            result = eval(compiled, names)  # noqa: S307 - the project's own words
            if inspect.iscoroutine(result):
                await result
        for service in ("users", "api_keys", "orders", "positions", "markets"):
            for name, function in inspect.getmembers(getattr(ledger, service), inspect.ismethod):
                if inspect.iscoroutinefunction(function) and not name.startswith("_"):
                    assert name == "close" or f"ledger.{service}.{name}(" in text


def test_the_steps_of_evolving_events_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """All code of docs/evolve-events.md runs, one piece after the other."""
    text = read("docs/evolve-events.md")
    pieces = re.findall(r"^( *)```python\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    assert len(pieces) == text.count("```python") >= 5
    monkeypatch.setattr("ledger.event._registry", dict(event._registry))
    names: dict[str, Any] = {"__name__": "docs.evolve_events"}
    for _, code in pieces:
        compiled = compile(dedent(code), "docs/evolve-events.md", "exec", dont_inherit=True)
        exec(compiled, names)  # noqa: S102 - the project's own words


def test_the_lock_file_names_no_machine_and_no_registry() -> None:
    """Any package index will do to install from requirements.lock, and every package is hashed."""
    lock = read("requirements.lock")
    assert not re.search(r"https?://|--(extra-)?index-url|--find-links|(?<![\w.-])/\w+/", lock)
    pins = re.findall(r"^[A-Za-z0-9_.\-\[\]]+==\S+", lock, re.MULTILINE)
    named = tomllib.loads(read("pyproject.toml"))["project"]["dependencies"]
    assert len(pins) > len(named)
    assert lock.count("--hash=sha256:") >= len(pins)
