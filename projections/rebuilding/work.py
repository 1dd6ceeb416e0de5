"""What the steps of a rebuild share: where they work, how, and whom they tell."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

import msgspec

from ledger.journal import Journal
from ledger.journals import Journals
from ledger.settings import Settings, async_url
from ledger.stores import Store
from ledger.stores.opening import open_store
from projections.building import ROWS_MAX
from projections.database import Database

if TYPE_CHECKING:
    from projections.rebuilding.comparing import Comparison

CONNECTIONS_SPARE = 4
APPLICATION_NAME = "ledger rebuild"
"""How PostgreSQL knows the sessions of rebuilds, those that load rows too, from all others."""
STATEMENT_SECONDS = 24 * 3600.0
SWAP_SECONDS = 300.0
SLICED_SIZE_MIN = 200_000


class Options(msgspec.Struct, frozen=True):
    """How to rebuild.

    `workers` processes fold, each with at most `rows_max` rows in memory, and as many indexes are
    built at a time. `replace_old` drops the tables kept from the last time at the swap. The swap is
    given up when the tables could not be locked for `swap_seconds`. Journals of at least
    `sliced_size_min` events are cut, where tables can be, so that several processes fold one.
    """

    workers: int = os.cpu_count() or 1
    rows_max: int = ROWS_MAX
    replace_old: bool = False
    swap_seconds: float = SWAP_SECONDS
    sliced_size_min: int = SLICED_SIZE_MIN


class Watch:
    """What a rebuild tells and asks while it works; this one is silent and accepts nothing."""

    def stage(self, text: str) -> None:
        """Take note of what is done from now on."""

    def folded(self, events: int, total: int) -> None:
        """Take note of how many events all parts together have folded."""

    def accepts(self, compared: Sequence[Comparison]) -> bool:
        """Whether to go on although the new tables differ from the old ones."""
        return False


class Work(msgspec.Struct, frozen=True):
    """The owner's settings and connections, and what was asked for."""

    settings: Settings
    database: Database
    store: Store
    opened: Journals
    options: Options
    watch: Watch

    @property
    def is_sqlite(self) -> bool:
        """Whether the database is a SQLite file."""
        return self.database.engine.dialect.name == "sqlite"

    async def journals(self) -> list[Journal]:
        """Return all journals there are by now."""
        return await self.opened.all()


def owner_settings(settings: Settings, options: Options) -> Settings:
    """Return settings that lead to the database as the owner of its tables, without haste."""
    changed: dict[str, object] = {
        "database_url": settings.migration_url,
        "pool_size": max(settings.pool_size, options.workers + CONNECTIONS_SPARE),
    }
    if not settings.migration_url.startswith("sqlite"):
        url = async_url(settings.migration_url)
        named = url.update_query_dict({"application_name": APPLICATION_NAME})
        changed["database_url"] = named.render_as_string(hide_password=False)
        changed["statement_timeout_seconds"] = STATEMENT_SECONDS
    return settings.model_copy(update=changed)


@contextlib.asynccontextmanager
async def opened(settings: Settings, options: Options, watch: Watch) -> AsyncIterator[Work]:
    """Connect as the owner of the tables."""
    owner = owner_settings(settings, options)
    async with contextlib.AsyncExitStack() as stack:
        store = open_store(owner)
        stack.push_async_callback(store.close)
        journals = Journals(owner, store)
        stack.push_async_callback(journals.close)
        database = await stack.enter_async_context(Database(owner, checks_foreign_keys=False))
        yield Work(owner, database, store, journals, options, watch)
