"""The journal: its tables, the append function, and what makes them append-only.

Revision ID: 0001
Revises:
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from ledger.sqltypes import OFFSET, UtcTimestamp, name_type
from migrations.statements import execute_file

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the change."""
    create_tables()
    if op.get_context().dialect.name == "postgresql":
        execute_file("0001_journal_postgresql.sql")
        execute_file("0001_roles_postgresql.sql")
    else:
        execute_file("0001_journal_sqlite.sql")


def create_tables() -> None:
    """Create the tables and their indexes."""
    op.create_table(
        "journals",
        sa.Column("journal_id", OFFSET, sa.Identity(always=True), nullable=False),
        sa.Column("name", name_type(100), nullable=False),
        sa.Column("size", OFFSET, server_default="0", nullable=False),
        sa.Column("last_recorded_at", UtcTimestamp()),
        sa.Column("created_at", UtcTimestamp(), nullable=False),
        sa.CheckConstraint("size >= 0", name=op.f("ck_journals_size")),
        sa.PrimaryKeyConstraint("journal_id", name=op.f("pk_journals")),
        sa.UniqueConstraint("name", name=op.f("uq_journals_name")),
    )
    op.create_table(
        "events",
        sa.Column("journal_id", OFFSET, nullable=False),
        sa.Column("offset", OFFSET, nullable=False),
        sa.Column("event_id", sa.Uuid(), nullable=False),
        sa.Column("stream", name_type(255), nullable=False),
        sa.Column("version", OFFSET, nullable=False),
        sa.Column("type", name_type(100), nullable=False),
        sa.Column("schema_version", sa.SmallInteger(), nullable=False),
        sa.Column("occurred_at", UtcTimestamp(), nullable=False),
        sa.Column("recorded_at", UtcTimestamp(), nullable=False),
        sa.Column("metadata", sa.LargeBinary()),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("journal_id", "offset", name=op.f("pk_events")),
        sqlite_with_rowid=False,
    )
    op.create_index(
        "uq_events_stream_version", "events", ["journal_id", "stream", "version"], unique=True
    )
    op.create_index("uq_events_event_id", "events", ["journal_id", "event_id"], unique=True)
    op.create_table(
        "event_tags",
        sa.Column("journal_id", OFFSET, nullable=False),
        sa.Column("tag", name_type(255), nullable=False),
        sa.Column("offset", OFFSET, nullable=False),
        sa.Column("kind", sa.SmallInteger(), nullable=False),
        sa.Column("type", name_type(100), nullable=False),
        sa.Column("stream", name_type(255), nullable=False),
        sa.CheckConstraint("kind IN (0, 1, 2)", name=op.f("ck_event_tags_kind")),
        sa.PrimaryKeyConstraint("journal_id", "tag", "offset", "kind", name=op.f("pk_event_tags")),
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    """Take it back, and all that was recorded with it."""
    op.drop_table("event_tags")
    op.drop_table("events")
    op.drop_table("journals")
    if op.get_context().dialect.name == "postgresql":
        op.execute("DROP FUNCTION ledger_append")
        op.execute("DROP FUNCTION ledger_settle")
        op.execute("DROP FUNCTION ledger_clock")
        op.execute("DROP FUNCTION ledger_deny")
        op.execute("DROP FUNCTION ledger_deny_shrinking")
