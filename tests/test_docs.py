"""What the documents say is there, is there."""

from __future__ import annotations

import ast
import asyncio
import inspect
import os
import re
import tomllib
from collections.abc import Iterator
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
from tests.support.forks import FORKS
from tests.test_commands import COMMANDS

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
        for service in ("users", "sessions", "api_keys", "orders", "positions", "markets"):
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


def documents() -> Iterator[tuple[str, str]]:
    """Yield the name and text of each document."""
    for file in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        yield file.name, file.read_text(encoding="utf-8")


def typed(text: str) -> Iterator[str]:
    """Yield what a document says can be typed: lines of code blocks, and code within sentences."""
    blocks = re.findall(r"^( *)```\w*\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    rest = re.sub(r"^( *)```\w*\n.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE)
    for _, block in blocks:
        yield from map(str.strip, block.splitlines())
    yield from (line.strip() for line in rest.splitlines() if line.startswith("    "))
    yield from (" ".join(code.split()) for code in re.findall(r"`([^`]+)`", rest))


PROGRAMS = r"(ledger|projections|replay\.py|make) (?=[\w\[-])(?!=)"


def commands_in(line: str) -> Iterator[list[str]]:
    """Yield the commands of this project in a line, word by word."""
    inner = re.findall(r"\$\((.*?)\)", line)
    for part in [*re.split(r" \| | && |; ", re.sub(r"\$\(.*?\)", "VALUE", line)), *inner]:
        bare = re.sub(r"^(\w+=\S+ |\$ |\.venv/bin/|python )+", "", part.partition(" #")[0])
        if re.match(PROGRAMS, bare):
            yield bare.replace("[", "").replace("]", "").split()


def wrong_with(words: list[str]) -> str | None:
    """Say what is wrong with a command, None where it can be typed so."""
    if words[0] == "make":
        return None if f"\n{words[1]}:" in read("Makefile") else "no such target"
    name, *rest = words
    while rest and f"{name} {rest[0]}" in COMMANDS:
        name = f"{name} {rest.pop(0)}"
    command = COMMANDS[name]
    if rest and getattr(command, "commands", {}) and not re.match(r"[-…]|COMMAND", rest[0]):
        return f"no command {rest[0]}"
    known = {option for each in command.params for option in (*each.opts, *each.secondary_opts)}
    known |= {"--help", "--install-completion", "--show-completion"}
    unknown = [word for word in rest if re.match(r"--?[a-z]", word)]
    return next((f"no option {w}" for w in unknown if w.partition("=")[0] not in known), None)


def test_commands_can_be_typed_as_they_are_written() -> None:
    """Every command that a document names exists, with the options that it is given."""
    found = [
        (document, " ".join(words), wrong_with(words))
        for document, text in documents()
        for line in typed(text)
        for words in commands_in(line)
        if len(words) > 1
    ]
    assert len(found) > 150
    assert [each for each in found if each[2] is not None] == []


@pytest.mark.parametrize(
    "line",
    ["ledger nosuch", "replay.py verify --nosuch", "make nosuch", "echo x | ledger append --x -"],
)
def test_a_command_that_is_not_there_is_noticed(line: str) -> None:
    """The search above sees commands, options and targets that do not exist."""
    assert all(wrong_with(words) for words in commands_in(line))
    assert list(commands_in(line))


def test_python_in_documents_is_python() -> None:
    """Every block of Python compiles."""
    for document, text in documents():
        for code in re.findall(r"^ *```python\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE):
            compile(dedent(code), document, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.parametrize("name", ["add-an-event", "add-a-read-model"])
def test_how_to_add_something_runs(name: str, sqlite_url: str) -> None:
    """All code of these guides runs, one piece after the other, in a process of its own."""
    process = FORKS.Process(target=run_pieces, args=(f"docs/{name}.md", sqlite_url))
    process.start()
    process.join(60)
    assert process.exitcode == 0


def run_pieces(document: str, url: str) -> None:
    """Run the Python of a document; what it declares stays in this process."""
    os.environ["LEDGER_DATABASE_URL"] = url
    names: dict[str, Any] = {"__name__": "docs.pieces"}
    for code in re.findall(r"^```python\n(.*?)^```", read(document), re.DOTALL | re.MULTILINE):
        compiled = compile(
            code, document, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True
        )
        result = eval(compiled, names)  # noqa: S307 - the project's own words
        if inspect.iscoroutine(result):
            asyncio.run(result)


def test_the_lock_file_names_no_machine_and_no_registry() -> None:
    """Any package index will do to install from requirements.lock, and every package is hashed."""
    lock = read("requirements.lock")
    assert not re.search(r"https?://|--(extra-)?index-url|--find-links|(?<![\w.-])/\w+/", lock)
    pins = re.findall(r"^[A-Za-z0-9_.\-\[\]]+==\S+", lock, re.MULTILINE)
    named = tomllib.loads(read("pyproject.toml"))["project"]["dependencies"]
    assert len(pins) > len(named)
    assert lock.count("--hash=sha256:") >= len(pins)
