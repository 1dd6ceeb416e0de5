"""Data keys of the subjects of personal data, and whether a user is erased.

Revision ID: 0006
Revises: 0005
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from ledger.sqltypes import UtcTimestamp, name_type
from migrations.statements import execute_file

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

UTC = UtcTimestamp()


def upgrade() -> None:
    """Make the change."""
    create_subject_keys()
    op.add_column(
        "users",
        sa.Column("is_erased", sa.Boolean(), server_default=sa.false(), nullable=False),
    )
    if op.get_context().dialect.name == "postgresql":
        execute_file("0006_subject_keys_postgresql.sql")
    else:
        execute_file("0006_subject_keys_sqlite.sql")


def downgrade() -> None:
    """Take it back, unless there are data keys: without them events could not be read any more."""
    keys = sa.text("SELECT count(*) FROM subject_keys")
    if not op.get_context().as_sql and op.get_bind().scalar(keys):
        raise RuntimeError(
            "subject_keys holds data keys, without which no personal field can be read again; the "
            "release before this one could not read events either: keep this revision"
        )
    op.drop_table("subject_keys")
    op.drop_column("users", "is_erased")
    if op.get_context().dialect.name == "postgresql":
        op.execute("DROP FUNCTION ledger_deny_key_change")


def create_subject_keys() -> None:
    op.create_table(
        "subject_keys",
        sa.Column("journal", name_type(100), nullable=False),
        sa.Column("subject", name_type(255), nullable=False),
        sa.Column("key_id", name_type(32), nullable=False),
        sa.Column("wrapped", sa.Text(), nullable=True),
        sa.Column("created_at", UTC, nullable=False),
        sa.Column("destroyed_at", UTC, nullable=True),
        sa.CheckConstraint(
            "(wrapped IS NULL) = (destroyed_at IS NOT NULL)", name=op.f("ck_subject_keys_destroyed")
        ),
        sa.PrimaryKeyConstraint("journal", "subject", name=op.f("pk_subject_keys")),
        sqlite_with_rowid=False,
    )
    op.create_index("uq_subject_keys_key_id", "subject_keys", ["journal", "key_id"], unique=True)
    op.create_index(
        "ix_subject_keys_journal_destroyed_at", "subject_keys", ["journal", "destroyed_at"]
    )
