"""Leases of projectors, parked keys and skipped events, tables beside the live ones, snapshots.

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from ledger.sqltypes import OFFSET, UtcTimestamp, name_type
from migrations.statements import execute_file

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

NAME = name_type(100)
LONG_NAME = name_type(255)
UTC = UtcTimestamp()


def upgrade() -> None:
    """Make the change."""
    op.add_column("checkpoints", sa.Column("epoch", OFFSET, nullable=False, server_default="0"))
    op.add_column("checkpoints", sa.Column("worker_id", LONG_NAME))
    op.add_column("checkpoints", sa.Column("lease_expires_at", UTC))
    create_workers()
    create_parked_keys()
    create_skipped_events()
    create_side_tables()
    create_snapshots()
    if op.get_context().dialect.name == "postgresql":
        execute_file("0004_roles_postgresql.sql")


def downgrade() -> None:
    """Take it back; rows of read tables stay, skips are forgotten."""
    for table in TABLES:
        op.drop_table(table)
    for column in ("lease_expires_at", "worker_id", "epoch"):
        op.drop_column("checkpoints", column)


TABLES = (
    "snapshot_chunks",
    "snapshots",
    "side_checkpoints",
    "side_tables",
    "skipped_events",
    "parked_keys",
    "workers",
)


def create_workers() -> None:
    op.create_table(
        "workers",
        sa.Column("worker_id", LONG_NAME, nullable=False),
        sa.Column("started_at", UTC, nullable=False),
        sa.Column("expires_at", UTC, nullable=False),
        sa.PrimaryKeyConstraint("worker_id", name=op.f("pk_workers")),
    )


def create_parked_keys() -> None:
    key = ("journal_id", "group_name", "table_name", "column_name", "value")
    op.create_table(
        "parked_keys",
        sa.Column("journal_id", OFFSET, nullable=False),
        sa.Column("group_name", NAME, nullable=False),
        sa.Column("table_name", NAME, nullable=False),
        sa.Column("column_name", NAME, nullable=False),
        sa.Column("value", LONG_NAME, nullable=False),
        sa.Column("offset", OFFSET, nullable=False),
        sa.Column("event_id", sa.Uuid(), nullable=False),
        sa.Column("event_type", NAME, nullable=False),
        sa.Column("error", sa.Text()),
        sa.Column("waits_for", sa.Text()),
        sa.Column("waiting", OFFSET, nullable=False),
        sa.Column("parked_at", UTC, nullable=False),
        sa.CheckConstraint('"offset" >= 0', name=op.f("ck_parked_keys_offset")),
        sa.PrimaryKeyConstraint(*key, name=op.f("pk_parked_keys")),
    )


def create_skipped_events() -> None:
    key = ("journal_id", "group_name", "table_name", "offset")
    op.create_table(
        "skipped_events",
        sa.Column("journal_id", OFFSET, nullable=False),
        sa.Column("group_name", NAME, nullable=False),
        sa.Column("table_name", NAME, nullable=False),
        sa.Column("offset", OFFSET, nullable=False),
        sa.Column("event_id", sa.Uuid(), nullable=False),
        sa.Column("event_type", NAME, nullable=False),
        sa.Column("error", sa.Text()),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("actor", LONG_NAME),
        sa.Column("skipped_at", UTC, nullable=False),
        sa.CheckConstraint('"offset" >= 0', name=op.f("ck_skipped_events_offset")),
        sa.PrimaryKeyConstraint(*key, name=op.f("pk_skipped_events")),
    )


def create_side_tables() -> None:
    op.create_table(
        "side_tables",
        sa.Column("name", NAME, nullable=False),
        sa.Column("table_name", NAME, nullable=False),
        sa.Column("group_name", NAME, nullable=False),
        sa.Column("role", NAME, nullable=False),
        sa.Column("fold_version", sa.String(100), nullable=False),
        sa.Column("made_at", UTC, nullable=False),
        sa.CheckConstraint("role IN ('new', 'old')", name=op.f("ck_side_tables_role")),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_side_tables")),
    )
    op.create_table(
        "side_checkpoints",
        sa.Column("name", NAME, nullable=False),
        sa.Column("journal_id", OFFSET, nullable=False),
        sa.Column("size", OFFSET, nullable=False),
        sa.CheckConstraint("size >= 0", name=op.f("ck_side_checkpoints_size")),
        sa.PrimaryKeyConstraint("name", "journal_id", name=op.f("pk_side_checkpoints")),
    )


def create_snapshots() -> None:
    key = ("journal_id", "group_name", "size")
    op.create_table(
        "snapshots",
        sa.Column("journal_id", OFFSET, nullable=False),
        sa.Column("group_name", NAME, nullable=False),
        sa.Column("size", OFFSET, nullable=False),
        sa.Column("fold_hash", NAME, nullable=False),
        sa.Column("rows", OFFSET, nullable=False),
        sa.Column("made_at", UTC, nullable=False),
        sa.CheckConstraint("size >= 0", name=op.f("ck_snapshots_size")),
        sa.PrimaryKeyConstraint(*key, name=op.f("pk_snapshots")),
    )
    op.create_table(
        "snapshot_chunks",
        sa.Column("journal_id", OFFSET, nullable=False),
        sa.Column("group_name", NAME, nullable=False),
        sa.Column("size", OFFSET, nullable=False),
        sa.Column("table_name", NAME, nullable=False),
        sa.Column("number", OFFSET, nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint(*key, "table_name", "number", name=op.f("pk_snapshot_chunks")),
    )
