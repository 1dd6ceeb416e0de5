"""Where the data keys of a store's journals lie, as the settings say."""

from __future__ import annotations

from ledger.security.data_keys import DataKeys
from ledger.security.master_keys import MasterKey, master_key_of
from ledger.settings import Settings
from ledger.stores import Store
from ledger.stores.opening import open_store


class Keyring:
    """Gives the data keys of journals; close it after use, the store of the journals stays open."""

    def __init__(
        self, settings: Settings, store: Store, master_key: MasterKey | None = None
    ) -> None:
        """Take the journals' store; keys lie there, or in `settings.keys_database_url`.

        `master_key`, a key service, replaces that of the settings. Raises SettingsInvalid.
        """
        self._store = store
        self._master_key = master_key or master_key_of(settings)
        self._cache_seconds = settings.key_cache_seconds
        self._elsewhere: Store | None = None
        self._keys: dict[str, DataKeys] = {}
        if settings.keys_database_url is not None:
            other = settings.model_copy(update={"database_url": settings.keys_database_url})
            self._elsewhere = open_store(other)

    def keys_of(self, journal: str) -> DataKeys:
        """Return the data keys of a journal, the same object each time."""
        if journal not in self._keys:
            own = self._store.subject_keys(journal)
            self._keys[journal] = DataKeys(
                own if self._elsewhere is None else self._elsewhere.subject_keys(journal),
                journal,
                self._master_key,
                cache_seconds=self._cache_seconds,
                own_table=None if self._elsewhere is None else own,
            )
        return self._keys[journal]

    async def close(self) -> None:
        """Let go of the database of the keys."""
        if self._elsewhere is not None:
            await self._elsewhere.close()
