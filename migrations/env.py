"""Alembic's environment: async, online and offline, on PostgreSQL and SQLite."""

from __future__ import annotations

import asyncio
from typing import Any

from alembic import context
from sqlalchemy import Connection, pool

import ledger.schema
import projections.bookkeeping
import projections.groups  # noqa: F401 - declares the read tables
from ledger.engine import make_engine
from ledger.settings import Settings, async_url

config = context.config
url = async_url(config.attributes.get("url") or Settings().migration_url)
is_sqlite = url.get_backend_name() == "sqlite"
options: dict[str, Any] = {
    "target_metadata": ledger.schema.metadata,
    "compare_type": True,
    "render_as_batch": is_sqlite,
    "transaction_per_migration": True,
}


def run(connection: Connection) -> None:
    """Migrate over an open connection."""
    context.configure(connection=connection, **options)
    with context.begin_transaction():
        context.run_migrations()


async def run_online() -> None:
    """Connect and migrate."""
    engine = make_engine(url, {}, poolclass=pool.NullPool)
    try:
        async with engine.connect() as connection:
            await connection.run_sync(run)
    finally:
        await engine.dispose()


if context.is_offline_mode():
    context.configure(url=url, literal_binds=True, dialect_opts={"paramstyle": "named"}, **options)
    with context.begin_transaction():
        context.run_migrations()
else:
    asyncio.run(run_online())
