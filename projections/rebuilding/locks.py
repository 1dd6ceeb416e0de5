"""Only one rebuild at a time, in a database, wherever the programs run."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import IO

import sqlalchemy as sa

from projections.database import Database, explained
from projections.rebuilding.errors import RebuildRunning

REBUILD_KEY = 0x6C6564676572  # "ledger": PostgreSQL's advisory locks are numbers


@contextlib.asynccontextmanager
async def alone(database: Database) -> AsyncIterator[None]:
    """Hold the database's one permission to rebuild; RebuildRunning where somebody else has it."""
    if database.engine.dialect.name == "sqlite":
        with explained(), _locked_file(Path(database.engine.url.database or "")):
            yield
        return
    with explained():
        async with _locked(database):
            yield


@contextlib.asynccontextmanager
async def _locked(database: Database) -> AsyncIterator[None]:
    async with database.engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        if not await connection.scalar(sa.select(sa.func.pg_try_advisory_lock(REBUILD_KEY))):
            raise RebuildRunning
        try:
            yield
        finally:
            with contextlib.suppress(sa.exc.SQLAlchemyError, OSError):  # gone with the connection
                await connection.execute(sa.select(sa.func.pg_advisory_unlock(REBUILD_KEY)))


@contextlib.contextmanager
def _locked_file(database: Path) -> Iterator[None]:
    with database.with_name(f"{database.name}-rebuild").open("ab") as file:
        _lock(file)
        yield


if sys.platform == "win32":
    import msvcrt

    def _lock(file: IO[bytes]) -> None:
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            raise RebuildRunning from None

else:
    import fcntl

    def _lock(file: IO[bytes]) -> None:
        """Lock the file; the system lets go of it when the process dies."""
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RebuildRunning from None
