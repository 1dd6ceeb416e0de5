"""The sealed log: hash tiles, how far each journal is sealed, signed checkpoints.

Revision ID: 0005
Revises: 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from ledger.sqltypes import OFFSET, UtcTimestamp, name_type
from migrations.statements import execute_file

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

UTC = UtcTimestamp()


def upgrade() -> None:
    """Make the change."""
    create_hash_tiles()
    create_seals()
    create_signed_checkpoints()
    if op.get_context().dialect.name == "postgresql":
        execute_file("0005_proof_postgresql.sql")
    else:
        execute_file("0005_proof_sqlite.sql")


def downgrade() -> None:
    """Take it back, and all seals with it; what was published still proves what it proved."""
    for table in ("signed_checkpoints", "seals", "hash_tiles"):
        op.drop_table(table)
    if op.get_context().dialect.name == "postgresql":
        op.execute("REVOKE SELECT ON journals, events, event_tags FROM ledger_sealer")
        for function in ("tile_change", "unsealing", "checkpoint_change", "checkpoint_loss"):
            op.execute(f"DROP FUNCTION ledger_deny_{function}")


def create_hash_tiles() -> None:
    op.create_table(
        "hash_tiles",
        sa.Column("journal_id", OFFSET, nullable=False),
        sa.Column("level", sa.SmallInteger(), nullable=False),
        sa.Column("tile_index", OFFSET, nullable=False),
        sa.Column("hashes", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint("level >= 0 AND level <= 7", name=op.f("ck_hash_tiles_level")),
        sa.CheckConstraint("tile_index >= 0", name=op.f("ck_hash_tiles_tile_index")),
        sa.CheckConstraint(
            "length(hashes) >= 32 AND length(hashes) <= 8192", name=op.f("ck_hash_tiles_hashes")
        ),
        sa.PrimaryKeyConstraint("journal_id", "level", "tile_index", name=op.f("pk_hash_tiles")),
        sqlite_with_rowid=False,
    )


def create_seals() -> None:
    op.create_table(
        "seals",
        sa.Column("journal_id", OFFSET, autoincrement=False, nullable=False),
        sa.Column("origin", name_type(255), nullable=False),
        sa.Column("size", OFFSET, nullable=False),
        sa.Column("root", sa.LargeBinary(), nullable=False),
        sa.Column("sealed_at", UTC, nullable=False),
        sa.CheckConstraint("size >= 0", name=op.f("ck_seals_size")),
        sa.CheckConstraint("length(root) = 32", name=op.f("ck_seals_root")),
        sa.PrimaryKeyConstraint("journal_id", name=op.f("pk_seals")),
        sqlite_with_rowid=False,
    )


def create_signed_checkpoints() -> None:
    op.create_table(
        "signed_checkpoints",
        sa.Column("journal_id", OFFSET, nullable=False),
        sa.Column("origin", name_type(255), nullable=False),
        sa.Column("size", OFFSET, nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("made_at", UTC, nullable=False),
        sa.CheckConstraint("size >= 0", name=op.f("ck_signed_checkpoints_size")),
        sa.PrimaryKeyConstraint("journal_id", "origin", "size", name=op.f("pk_signed_checkpoints")),
        sqlite_with_rowid=False,
    )
