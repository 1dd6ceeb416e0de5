"""Bringing a database's tables up to date, with Alembic."""

from __future__ import annotations

from importlib.resources import files

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy.exc import DBAPIError

from ledger.errors import InvalidEvent, StoreUnavailable
from ledger.settings import Settings


def migrate(settings: Settings, revision: str = "head") -> None:
    """Create or upgrade the tables up to `revision`, as the owner.

    Not from within a running event loop. Raises InvalidEvent for an unknown revision and
    StoreUnavailable where the database cannot be reached or refuses.
    """
    config = Config()
    config.set_main_option("script_location", str(files("migrations")))
    config.attributes["url"] = settings.migration_url
    try:
        command.upgrade(config, revision)
    except CommandError as error:
        raise InvalidEvent(str(error), field="revision") from error
    except (DBAPIError, OSError) as error:
        raise StoreUnavailable(f"cannot migrate: {error}") from error
