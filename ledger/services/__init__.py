"""What services call: one typed asynchronous function for each command.

    async with open_ledger() as ledger:
        await ledger.users.register(...)

Every function returns once its events are stored, or raises an error that says what was wrong.
Where others changed the same thing at the same time, it decides anew, within a bound.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from ledger.deciding import Deciding
from ledger.journal import Journal, open_journal
from ledger.proof.witnessing import check_witnessed
from ledger.security.master_keys import MasterKey
from ledger.security.passwords import Passwords
from ledger.services.api_keys import ApiKeys
from ledger.services.markets import Markets
from ledger.services.orders import Orders
from ledger.services.positions import Positions
from ledger.services.sessions import Sessions, session_rules
from ledger.services.users import Users, login_rules
from ledger.settings import Settings
from ledger.stores import Clock

__all__ = ["Ledger", "open_ledger"]


class Ledger:
    """All commands, on one journal.

    The time of a command is the journal's clock: that of this machine, unless the journal was
    opened with another.
    """

    def __init__(
        self,
        journal: Journal,
        settings: Settings | None = None,
        *,
        passwords: Passwords | None = None,
    ) -> None:
        """Take the journal, and what hashes passwords if not what the settings say."""
        settings = settings or Settings()
        self.journal = journal
        deciding = Deciding(journal)
        self._deciding = deciding
        passwords = passwords or _passwords(settings)
        self.users = Users(deciding, passwords, login_rules(settings))
        self.sessions = Sessions(deciding, self.users, session_rules(settings))
        self.api_keys = ApiKeys(deciding)
        self.orders = Orders(deciding)
        self.positions = Positions(deciding)
        self.markets = Markets(deciding)

    async def close(self) -> None:
        """Store what is only counted so far, and let go of threads; the journal stays open."""
        try:
            await self.api_keys.close()
        finally:
            self.users.close()


def _passwords(settings: Settings) -> Passwords:
    return Passwords(threads=settings.password_threads, queue_max=settings.password_queue_max)


@contextlib.asynccontextmanager
async def open_ledger(
    settings: Settings | None = None,
    name: str | None = None,
    *,
    clock: Clock | None = None,
    passwords: Passwords | None = None,
    master_key: MasterKey | None = None,
) -> AsyncIterator[Ledger]:
    """Open a journal for commands; the arguments are those of `open_journal` and `Ledger`.

    Where witnesses are set, raises JournalRolledBack if the journal is not all that they have seen.
    """
    settings = settings or Settings()
    async with open_journal(settings, name, clock=clock, master_key=master_key) as journal:
        await check_witnessed(journal, settings)
        ledger = Ledger(journal, settings, passwords=passwords)
        try:
            yield ledger
        finally:
            await ledger.close()
