"""What writers tried to append and what was acknowledged, in files that outlive a kill."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from random import Random
from uuid import UUID

from ledger.event import NewEvent
from tests.ledger.workers import Record
from tests.projections.random_events import Dice
from tests.projections.support import an_id, spared

APPEND_EVENTS_MAX = 4
ODD_CHANCE = 0.02


def history(writer: str) -> Iterator[list[NewEvent]]:
    """Yield the appends of a writer, the very same ones each time, event ids included.

    So whoever takes a killed writer's place can append again what was not acknowledged. Nobody is
    erased: until a scrub, tables would then differ from the journal.
    """
    random = Random(writer)
    dice = Dice(random, ODD_CHANCE)
    for number in count():
        events = [spared(dice.next()) for _ in range(random.randint(1, APPEND_EVENTS_MAX))]
        yield [
            NewEvent(event, event.stream() or "any", an_id(f"{writer} {number} {place}"))
            for place, event in enumerate(events)
        ]


class Account:
    """The account of one database: all writers note in it, in one write each."""

    def __init__(self, folder: Path) -> None:
        """Take the folder of the files, which exists."""
        self.acknowledged = Record(folder / "acknowledged")
        self._tried = folder / "tried"
        self._refused = folder / "refused"
        self._held = folder / "held"

    def note_try(self, events: Sequence[NewEvent]) -> None:
        """Write that these are about to be appended together."""
        with self._tried.open("a") as file:
            file.write(" ".join(str(each.event_id) for each in events) + "\n")

    def note_refusal(self, error: Exception) -> None:
        """Write that an append was refused, or its outcome left open."""
        with self._refused.open("a") as file:
            file.write(" ".join(str(error).split()) + "\n")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let writers begin no new append for a while; what they have begun they bring to its end.

        Otherwise a slow machine would append more during each check than it can check.
        """
        self._held.touch()
        try:
            yield
        finally:
            self._held.unlink()

    @property
    def is_held(self) -> bool:
        """Whether writers are to wait."""
        return self._held.exists()

    def tries(self) -> list[list[UUID]]:
        """Return the event ids of each append that was tried."""
        return [[UUID(each) for each in line.split()] for line in _lines(self._tried)]

    def refusals(self) -> list[str]:
        """Return why appends were refused, in order."""
        return _lines(self._refused)


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []
