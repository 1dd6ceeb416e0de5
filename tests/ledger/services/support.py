"""A facade with cheap password hashes, and what tests ask of its journal."""

from __future__ import annotations

from collections import Counter
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from ledger.event import Event
from ledger.journal import Journal
from ledger.security.passwords import PasswordHasher, Passwords
from ledger.services import Ledger, open_ledger
from tests.ledger.support import Clock, read_all, settings_for

CHEAP = {"memory_kib": 8, "iterations": 1}


class Watched(PasswordHasher):
    """A hasher that notes each check in a file, which several processes may share."""

    def __init__(self, path: Path) -> None:
        self._path = path
        super().__init__(**CHEAP)

    def verify(self, password: str, stored: str | None) -> bool:
        """Note the check and make it."""
        with self._path.open("a") as file:
            file.write("checked\n")
        return super().verify(password, stored)


def a_ledger(
    url: str,
    clock: Clock | None = None,
    hasher: PasswordHasher | None = None,
    **settings: float,
) -> AbstractAsyncContextManager[Ledger]:
    """Open the facade on a test database."""
    passwords = Passwords(hasher or PasswordHasher(**CHEAP))
    return open_ledger(settings_for(url, **settings), clock=clock, passwords=passwords)


async def stored(journal: Journal) -> list[Event]:
    """Return all events of a journal."""
    return [recorded.event for recorded in await read_all(journal)]


async def kinds(journal: Journal) -> Counter[str]:
    """Count the events of a journal by type."""
    return Counter(type(event).__name__ for event in await stored(journal))
