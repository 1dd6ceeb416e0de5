"""Choosing the store that a database URL asks for; only entry points do."""

from __future__ import annotations

from ledger.settings import Settings
from ledger.stores import Clock, Store
from ledger.stores.postgres import PostgresStore
from ledger.stores.sqlite import SqliteStore


def open_store(settings: Settings, clock: Clock | None = None) -> Store:
    """Return the store of `settings.database_url`; it connects when it is first used.

    `clock` replaces the database's clock, for simulations and tests.
    """
    url = settings.address()
    kind = SqliteStore if url.get_backend_name() == "sqlite" else PostgresStore
    return kind(url, settings, clock)
