"""Bringing a database's tables up to date, with Alembic.

On PostgreSQL, a statement that waits for a table makes everybody wait behind it. So none waits for
long: where somebody holds a table, others go first, and it is tried again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from importlib.resources import files
from time import monotonic, sleep
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import URL
from sqlalchemy.exc import DBAPIError

from ledger.errors import InvalidEvent, StoreUnavailable
from ledger.settings import Settings

LOCK_MILLISECONDS = 500
LOCKED_SECONDS = 300.0
PAUSE_SECONDS = 0.2
PAUSE_SECONDS_MAX = 1.0
LOCK_NOT_AVAILABLE = "55P03"


def migrate(
    settings: Settings, revision: str = "head", *, locked_seconds: float = LOCKED_SECONDS
) -> None:
    """Create or upgrade the tables up to `revision`, as the owner.

    Not from within a running event loop. Where others hold a table, it is tried again for
    `locked_seconds`; each migration is a transaction, so what was done stays done. Raises
    InvalidEvent for an unknown revision and StoreUnavailable where the database cannot be reached
    or refuses.
    """
    config = Config()
    config.set_main_option("script_location", str(files("migrations")))
    address = settings.address(settings.migration_url)
    config.attributes["url"] = address.render_as_string(hide_password=False)
    try:
        _open_once(address)
        _upgrade(config, revision, monotonic() + locked_seconds)
    except CommandError as error:
        raise InvalidEvent(str(error), field="revision") from error
    except (DBAPIError, sqlite3.Error, OSError) as error:
        reason = str(getattr(error, "orig", error)).partition("\n")[0]
        raise StoreUnavailable(f"cannot migrate: {reason}") from error


def _upgrade(config: Config, revision: str, deadline: float) -> None:
    pause_seconds = PAUSE_SECONDS
    while True:
        try:
            command.upgrade(config, revision)
            return
        except DBAPIError as error:
            is_locked = getattr(error.orig, "sqlstate", None) == LOCK_NOT_AVAILABLE
            if not is_locked or monotonic() > deadline:
                raise
        sleep(pause_seconds)
        pause_seconds = min(PAUSE_SECONDS_MAX, pause_seconds * 2)


def lock_timeout(attributes: Mapping[str, Any]) -> dict[str, str]:
    """Return PostgreSQL's settings for a migration, which `attributes` may change."""
    return {"lock_timeout": str(attributes.get("lock_milliseconds", LOCK_MILLISECONDS))}


def _open_once(url: URL) -> None:
    """Open a SQLite file, which may be new, to see that it can be: aiosqlite fails untidily."""
    if url.get_backend_name() == "sqlite" and url.database:
        with closing(sqlite3.connect(url.database)) as connection:
            connection.execute("PRAGMA schema_version")
