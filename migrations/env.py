"""Alembic's environment: async, online and offline, on PostgreSQL and SQLite."""

from __future__ import annotations

import asyncio
from typing import Any

from alembic import context
from alembic.autogenerate import rewriter
from alembic.operations import ops
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, pool

import ledger.schema
import projections.bookkeeping
import projections.groups  # noqa: F401 - declares the read tables
from ledger.engine import make_engine
from ledger.migrate import lock_timeout
from ledger.settings import Settings, async_url
from projections.rebuilding.declared import server_default
from projections.rebuilding.side import is_side_table


def _address() -> str:
    """Return the owner's address, as the environment has it."""
    settings = Settings()
    return settings.address(settings.migration_url).render_as_string(hide_password=False)


config = context.config
url = async_url(config.attributes.get("url") or _address())
is_sqlite = url.get_backend_name() == "sqlite"
writer = rewriter.Rewriter()


@writer.rewrites(ops.AddColumnOp)
def make_room_for_old_writers(
    _context: MigrationContext, _revision: object, op: ops.AddColumnOp
) -> ops.AddColumnOp:
    """Let a column that is never NULL be added to a table that is filled, and still written.

    Workers of the release before do not know it. It gets the model's default, or may be NULL, until
    the table is rebuilt in the declared shape.
    """
    column = op.column
    if not column.nullable and column.server_default is None:
        column.server_default = server_default(column)
        column.nullable = column.server_default is None
    return op


def is_in_schema(name: str | None, kind: str, _parents: object) -> bool:
    """Leave out the tables that rebuilds keep beside the live ones."""
    return kind != "table" or not is_side_table(name)


options: dict[str, Any] = {
    "target_metadata": ledger.schema.metadata,
    "compare_type": True,
    "include_name": is_in_schema,
    "process_revision_directives": writer,
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
    connect_options = {} if is_sqlite else {"server_settings": lock_timeout(config.attributes)}
    engine = make_engine(url, connect_options, poolclass=pool.NullPool)
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
