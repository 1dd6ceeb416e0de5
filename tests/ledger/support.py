"""Events for any stream, a clock that can be set, and ways to open journals of a test database."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import NAMESPACE_OID, UUID, uuid5

from ledger.event import Event, NewEvent, RecordedEvent
from ledger.journal import Journal, open_journal
from ledger.prepare import prepare
from ledger.settings import Settings
from ledger.stores import Store
from ledger.stores.opening import open_store
from tests.support import programs

START = datetime(2026, 1, 1, tzinfo=UTC)
ROOT = Path(__file__).parents[2]


class AnyEvent(Event):
    """What an event needs to be put into any stream, with tags of its own choosing."""

    text: str = ""
    tagged: tuple[str, ...] = ()
    claimed: tuple[str, ...] = ()
    released: tuple[str, ...] = ()

    def tags(self) -> Iterable[str]:
        """Name the plain tags."""
        return self.tagged

    def claims(self) -> Iterable[str]:
        """Name the tags to take."""
        return self.claimed

    def releases(self) -> Iterable[str]:
        """Name the tags to give back."""
        return self.released


class Noted(AnyEvent):
    """One of two types, so that conditions can tell types apart."""


class Remarked(AnyEvent):
    """The other type."""


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        """Return the time it shows."""
        return self.now

    def move(self, seconds: float) -> None:
        """Go forwards, or backwards."""
        self.now += timedelta(seconds=seconds)


def an_id(name: object) -> UUID:
    """Return an id that is the same for the same name."""
    return uuid5(NAMESPACE_OID, str(name))


async def append_unasked(journal: Journal, *events: NewEvent) -> None:
    """Store events as a release would that did not look at the clock: also ones of the future."""
    for event in events:
        await journal.store.append(journal.journal_id, [prepare([event], ())])


def note(stream: str = "s", text: str = "", **fields: tuple[str, ...]) -> NewEvent:
    """Return a new event for a stream."""
    return NewEvent(Noted(text=text, **fields), stream)


def known_note(name: object, stream: str = "s", text: str = "") -> NewEvent:
    """Return an event whose id follows from `name`."""
    return NewEvent(Noted(text=text), stream, an_id(name))


def opened(
    url: str, name: str = "main", clock: Clock | None = None, **settings: float
) -> AbstractAsyncContextManager[Journal]:
    """Open a journal of a test database."""
    return open_journal(settings_for(url, **settings), name, clock=clock)


def store_of(url: str, **settings: float) -> Store:
    """Return the store of a test database."""
    return open_store(settings_for(url, **settings))


def settings_for(url: str, **settings: float) -> Settings:
    """Return settings that do not depend on the environment for what matters here."""
    return Settings.model_validate({"database_url": url, **settings})


async def read_all(journal: Journal, start: int = 0) -> list[RecordedEvent]:
    """Return the whole journal."""
    return [event async for event in journal.read(start)]


def assert_sound(events: Sequence[RecordedEvent]) -> None:
    """Hold what is true of every journal: no gaps, versions in order, time never runs back."""
    assert [event.offset for event in events] == list(range(len(events)))
    assert len({event.event_id for event in events}) == len(events)
    versions: dict[str, int] = {}
    last = datetime.min.replace(tzinfo=UTC)
    for event in events:
        versions[event.stream] = versions.get(event.stream, 0) + 1
        assert event.version == versions[event.stream]
        assert event.recorded_at >= last
        last = event.recorded_at


def environment(url: str, **variables: str) -> dict[str, str]:
    """Return the environment of a program that is to use a test database."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LEDGER_")}
    return kept | {"LEDGER_DATABASE_URL": url, "PYTHONPATH": str(ROOT)} | variables


def ledger(
    url: str, *arguments: str, stdin: bytes = b"", cwd: Path = ROOT, **variables: str
) -> subprocess.CompletedProcess[bytes]:
    """Run the program `ledger` to its end."""
    return programs.run(
        "ledger", *arguments, environment=environment(url, **variables), stdin=stdin, cwd=cwd
    )
