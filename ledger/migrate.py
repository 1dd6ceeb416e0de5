"""Bringing a database's tables up to date, with Alembic."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from importlib.resources import files

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import URL
from sqlalchemy.exc import DBAPIError

from ledger.errors import InvalidEvent, StoreUnavailable
from ledger.settings import Settings, async_url


def migrate(settings: Settings, revision: str = "head") -> None:
    """Create or upgrade the tables up to `revision`, as the owner.

    Not from within a running event loop. Raises InvalidEvent for an unknown revision and
    StoreUnavailable where the database cannot be reached or refuses.
    """
    config = Config()
    config.set_main_option("script_location", str(files("migrations")))
    config.attributes["url"] = settings.migration_url
    try:
        _open_once(async_url(settings.migration_url))
        command.upgrade(config, revision)
    except CommandError as error:
        raise InvalidEvent(str(error), field="revision") from error
    except (DBAPIError, sqlite3.Error, OSError) as error:
        reason = str(getattr(error, "orig", error)).partition("\n")[0]
        raise StoreUnavailable(f"cannot migrate: {reason}") from error


def _open_once(url: URL) -> None:
    """Open a SQLite file, which may be new, to see that it can be: aiosqlite fails untidily."""
    if url.get_backend_name() == "sqlite" and url.database:
        with closing(sqlite3.connect(url.database)) as connection:
            connection.execute("PRAGMA schema_version")
