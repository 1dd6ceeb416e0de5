"""The tables in which projectors, rebuilds and snapshots keep account of their own work."""

from __future__ import annotations

import sqlalchemy as sa

from ledger.schema import metadata
from ledger.sqltypes import OFFSET, UtcTimestamp, name_type

NAME = name_type(100)
LONG_NAME = name_type(255)

checkpoints = sa.Table(
    "checkpoints",
    metadata,
    sa.Column("journal_id", OFFSET, primary_key=True, autoincrement=False),
    sa.Column("group_name", sa.String(100), primary_key=True),
    sa.Column("size", OFFSET, nullable=False),
    sa.Column("fold_version", sa.String(100), nullable=False),
    sa.Column("updated_at", UtcTimestamp(), nullable=False),
    sa.Column("epoch", OFFSET, nullable=False, server_default="0"),
    sa.Column("worker_id", LONG_NAME),
    sa.Column("lease_expires_at", UtcTimestamp()),
    sa.CheckConstraint("size >= 0", name="size"),
)
"""How far each group has folded each journal, and which worker holds the lease on the pair.

`epoch` counts the leases; who holds an older one can move nothing. Times are the database's.
"""

workers = sa.Table(
    "workers",
    metadata,
    sa.Column("worker_id", LONG_NAME, primary_key=True),
    sa.Column("started_at", UtcTimestamp(), nullable=False),
    sa.Column("expires_at", UtcTimestamp(), nullable=False),
)
"""The projector workers that are alive, by the database's clock."""

parked_keys = sa.Table(
    "parked_keys",
    metadata,
    sa.Column("journal_id", OFFSET, primary_key=True, autoincrement=False),
    sa.Column("group_name", NAME, primary_key=True),
    sa.Column("table_name", NAME, primary_key=True),
    sa.Column("column_name", NAME, primary_key=True),
    sa.Column("value", LONG_NAME, primary_key=True),
    sa.Column("offset", OFFSET, nullable=False),
    sa.Column("event_id", sa.Uuid(), nullable=False),
    sa.Column("event_type", NAME, nullable=False),
    sa.Column("error", sa.Text()),
    sa.Column("waits_for", sa.Text()),
    sa.Column("waiting", OFFSET, nullable=False),
    sa.Column("parked_at", UtcTimestamp(), nullable=False),
    sa.CheckConstraint('"offset" >= 0', name="offset"),
)
"""The keys of read tables that a poisoned event has parked, from the event at `offset` on.

`error` is what its fold raised; a key that only waits for another one has `waits_for` instead.
`waiting` counts the events that were held back.
"""

skipped_events = sa.Table(
    "skipped_events",
    metadata,
    sa.Column("journal_id", OFFSET, primary_key=True, autoincrement=False),
    sa.Column("group_name", NAME, primary_key=True),
    sa.Column("table_name", NAME, primary_key=True),
    sa.Column("offset", OFFSET, primary_key=True, autoincrement=False),
    sa.Column("event_id", sa.Uuid(), nullable=False),
    sa.Column("event_type", NAME, nullable=False),
    sa.Column("error", sa.Text()),
    sa.Column("reason", sa.Text(), nullable=False),
    sa.Column("actor", LONG_NAME),
    sa.Column("skipped_at", UtcTimestamp(), nullable=False),
    sa.CheckConstraint('"offset" >= 0', name="offset"),
)
"""The events that somebody decided to leave out of a table, and why; every fold leaves them out."""

side_tables = sa.Table(
    "side_tables",
    metadata,
    sa.Column("name", NAME, primary_key=True),
    sa.Column("table_name", NAME, nullable=False),
    sa.Column("group_name", NAME, nullable=False),
    sa.Column("role", NAME, nullable=False),
    sa.Column("fold_version", sa.String(100), nullable=False),
    sa.Column("made_at", UtcTimestamp(), nullable=False),
    sa.CheckConstraint("role IN ('new', 'old')", name="role"),
)
"""Tables beside the live ones: those that a rebuild is making, and those that it has replaced."""

side_checkpoints = sa.Table(
    "side_checkpoints",
    metadata,
    sa.Column("name", NAME, primary_key=True),
    sa.Column("journal_id", OFFSET, primary_key=True, autoincrement=False),
    sa.Column("size", OFFSET, nullable=False),
    sa.CheckConstraint("size >= 0", name="size"),
)
"""How far each of them is folded."""

snapshots = sa.Table(
    "snapshots",
    metadata,
    sa.Column("journal_id", OFFSET, primary_key=True, autoincrement=False),
    sa.Column("group_name", NAME, primary_key=True),
    sa.Column("size", OFFSET, primary_key=True, autoincrement=False),
    sa.Column("fold_hash", NAME, nullable=False),
    sa.Column("rows", OFFSET, nullable=False),
    sa.Column("made_at", UtcTimestamp(), nullable=False),
    sa.CheckConstraint("size >= 0", name="size"),
)
"""Kept states of groups at chosen sizes, each good only for the fold whose hash it carries."""

snapshot_chunks = sa.Table(
    "snapshot_chunks",
    metadata,
    sa.Column("journal_id", OFFSET, primary_key=True, autoincrement=False),
    sa.Column("group_name", NAME, primary_key=True),
    sa.Column("size", OFFSET, primary_key=True, autoincrement=False),
    sa.Column("table_name", NAME, primary_key=True),
    sa.Column("number", OFFSET, primary_key=True, autoincrement=False),
    sa.Column("body", sa.LargeBinary(), nullable=False),
)
"""The rows of snapshots, many in one chunk."""
