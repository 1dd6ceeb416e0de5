"""The journals of a store that somebody has opened, with the data keys that settings lead to."""

from __future__ import annotations

from ledger.journal import Journal
from ledger.keyring import Keyring
from ledger.settings import Settings
from ledger.stores import JournalInfo, Store


class Journals:
    """Gives the journals of a store, all objects of one journal with the same data keys.

    Close it after use; the store stays open.
    """

    def __init__(self, settings: Settings, store: Store) -> None:
        """Take the store; its keys may lie in a database of their own."""
        self.store = store
        self._name_key = settings.name_key_bytes
        self._keyring = Keyring(settings, store)

    def of(self, info: JournalInfo) -> Journal:
        """Return a journal, for reading."""
        keys = self._keyring.keys_of(info.name)
        return Journal(self.store, info, keys=keys, name_key=self._name_key)

    async def all(self) -> list[Journal]:
        """Return all journals that there are by now."""
        return [self.of(info) for info in await self.store.journals()]

    async def close(self) -> None:
        """Let go of the database of the keys."""
        await self._keyring.close()
