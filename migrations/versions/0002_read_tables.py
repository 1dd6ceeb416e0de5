"""The read models: five tables, marks, and the checkpoints of their groups.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from ledger.sqltypes import OFFSET, ExactNumeric, UtcTimestamp
from migrations.statements import execute_file

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

AMOUNT = ExactNumeric(20, 8)
PRODUCT = ExactNumeric(38, 16)
EXACT = ExactNumeric()
UTC = UtcTimestamp()
JSON = sa.JSON(none_as_null=True)


def upgrade() -> None:
    """Make the change, referenced tables first."""
    create_checkpoints()
    create_marks()
    create_users()
    create_api_keys()
    create_positions()
    create_security_audit_logs()
    create_orders()
    if op.get_context().dialect.name == "postgresql":
        execute_file("0002_roles_postgresql.sql")


def downgrade() -> None:
    """Take it back."""
    for table in (
        "orders",
        "security_audit_logs",
        "positions",
        "api_keys",
        "users",
        "marks",
        "checkpoints",
    ):
        op.drop_table(table)


def create_checkpoints() -> None:
    op.create_table(
        "checkpoints",
        sa.Column("journal_id", OFFSET, autoincrement=False, nullable=False),
        sa.Column("group_name", sa.String(100), nullable=False),
        sa.Column("size", OFFSET, nullable=False),
        sa.Column("fold_version", sa.String(100), nullable=False),
        sa.Column("updated_at", UTC, nullable=False),
        sa.CheckConstraint("size >= 0", name=op.f("ck_checkpoints_size")),
        sa.PrimaryKeyConstraint("journal_id", "group_name", name=op.f("pk_checkpoints")),
    )


def create_marks() -> None:
    op.create_table(
        "marks",
        sa.Column("journal_id", OFFSET, autoincrement=False, nullable=False),
        sa.Column("token", sa.String(255), nullable=False),
        sa.Column("price", AMOUNT),
        sa.Column("exact_price", EXACT, nullable=False),
        sa.Column("source", sa.String(255)),
        sa.Column("marked_at", UTC, nullable=False),
        sa.Column("flags", JSON, nullable=False),
        sa.Column("changed_size", OFFSET, nullable=False),
        sa.PrimaryKeyConstraint("journal_id", "token", name=op.f("pk_marks")),
    )


def create_users() -> None:
    op.create_table(
        "users",
        sa.Column("journal_id", OFFSET, autoincrement=False, nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("username", sa.String(255)),
        sa.Column("email", sa.String(255)),
        sa.Column("password_hash", sa.String(255)),
        sa.Column("permissions", JSON, nullable=False),
        sa.Column("roles", JSON, nullable=False),
        sa.Column("failed_login_attempts", sa.Integer(), nullable=False),
        sa.Column("locked_until", UTC),
        sa.Column("last_login", UTC),
        sa.Column("is_active", sa.Boolean(), nullable=False),
        sa.Column("created_at", UTC, nullable=False),
        sa.Column("updated_at", UTC, nullable=False),
        sa.Column("changed_size", OFFSET, nullable=False),
        sa.PrimaryKeyConstraint("journal_id", "user_id", name=op.f("pk_users")),
    )
    op.create_index("ix_users_journal_id_created_at", "users", ["journal_id", "created_at"])
    op.create_index("ix_users_journal_id_email", "users", ["journal_id", "email"])
    op.create_index("ix_users_journal_id_locked_until", "users", ["journal_id", "locked_until"])
    op.create_index("uq_users_username", "users", ["journal_id", "username"], unique=True)


def create_api_keys() -> None:
    op.create_table(
        "api_keys",
        sa.Column("journal_id", OFFSET, autoincrement=False, nullable=False),
        sa.Column("key_id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid()),
        sa.Column("key_hash", sa.String(255)),
        sa.Column("name", sa.String(255)),
        sa.Column("permissions", JSON, nullable=False),
        sa.Column("rate_limit", sa.BigInteger()),
        sa.Column("requests_count", sa.BigInteger(), nullable=False),
        sa.Column("last_used_at", UTC),
        sa.Column("expires_at", UTC),
        sa.Column("is_active", sa.Boolean(), nullable=False),
        sa.Column("created_at", UTC, nullable=False),
        sa.Column("updated_at", UTC, nullable=False),
        sa.Column("changed_size", OFFSET, nullable=False),
        sa.ForeignKeyConstraint(
            ["journal_id", "user_id"],
            ["users.journal_id", "users.user_id"],
            name=op.f("fk_api_keys_journal_id_user_id_users"),
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.PrimaryKeyConstraint("journal_id", "key_id", name=op.f("pk_api_keys")),
    )
    op.create_index("ix_api_keys_journal_id_expires_at", "api_keys", ["journal_id", "expires_at"])
    op.create_index("ix_api_keys_journal_id_key_hash", "api_keys", ["journal_id", "key_hash"])
    op.create_index(
        "ix_api_keys_journal_id_last_used_at", "api_keys", ["journal_id", "last_used_at"]
    )
    op.create_index(
        "ix_api_keys_journal_id_user_id_is_active",
        "api_keys",
        ["journal_id", "user_id", "is_active"],
    )


def create_positions() -> None:
    op.create_table(
        "positions",
        sa.Column("journal_id", OFFSET, autoincrement=False, nullable=False),
        sa.Column("position_id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid()),
        sa.Column("token", sa.String(255)),
        sa.Column("book", sa.String(255), nullable=False),
        sa.Column("size", AMOUNT),
        sa.Column("entry_price", AMOUNT),
        sa.Column("realized_pnl", PRODUCT),
        sa.Column("fees", PRODUCT),
        sa.Column("net_pnl", PRODUCT),
        sa.Column("stop_loss", AMOUNT),
        sa.Column("take_profit", AMOUNT),
        sa.Column("status", sa.String(20), nullable=False),
        sa.Column("opened_at", UTC, nullable=False),
        sa.Column("closed_at", UTC),
        sa.Column("strategy", sa.String(255)),
        sa.Column("extra_data", JSON),
        sa.Column("flags", JSON, nullable=False),
        sa.Column("cost_basis", EXACT, nullable=False),
        sa.Column("exact_size", EXACT, nullable=False),
        sa.Column("exact_entry_price", EXACT, nullable=False),
        sa.Column("exact_realized_pnl", EXACT, nullable=False),
        sa.Column("exact_fees", EXACT, nullable=False),
        sa.Column("created_at", UTC, nullable=False),
        sa.Column("updated_at", UTC, nullable=False),
        sa.Column("changed_size", OFFSET, nullable=False),
        sa.CheckConstraint(
            "status IN ('open', 'closed', 'liquidated')", name=op.f("ck_positions_status")
        ),
        sa.ForeignKeyConstraint(
            ["journal_id", "user_id"],
            ["users.journal_id", "users.user_id"],
            name=op.f("fk_positions_journal_id_user_id_users"),
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.PrimaryKeyConstraint("journal_id", "position_id", name=op.f("pk_positions")),
    )
    op.create_index("ix_positions_journal_id_closed_at", "positions", ["journal_id", "closed_at"])
    op.create_index("ix_positions_journal_id_opened_at", "positions", ["journal_id", "opened_at"])
    op.create_index(
        "ix_positions_journal_id_token_status", "positions", ["journal_id", "token", "status"]
    )
    op.create_index(
        "ix_positions_journal_id_user_id_status", "positions", ["journal_id", "user_id", "status"]
    )
    op.create_index(
        "uq_positions_open_book",
        "positions",
        ["journal_id", "book"],
        unique=True,
        postgresql_where=sa.text("status = 'open'"),
        sqlite_where=sa.text("status = 'open'"),
    )


def create_security_audit_logs() -> None:
    op.create_table(
        "security_audit_logs",
        sa.Column("journal_id", OFFSET, autoincrement=False, nullable=False),
        sa.Column("log_id", sa.Uuid(), nullable=False),
        sa.Column("timestamp", UTC, nullable=False),
        sa.Column("event_type", sa.String(100), nullable=False),
        sa.Column("user_id", sa.Uuid()),
        sa.Column("ip_address", sa.String(64)),
        sa.Column("resource", sa.String(255)),
        sa.Column("action", sa.String(255)),
        sa.Column("success", sa.Boolean(), nullable=False),
        sa.Column("details", JSON, nullable=False),
        sa.Column("request_id", sa.String(255)),
        sa.Column("changed_size", OFFSET, nullable=False),
        sa.ForeignKeyConstraint(
            ["journal_id", "user_id"],
            ["users.journal_id", "users.user_id"],
            name=op.f("fk_security_audit_logs_journal_id_user_id_users"),
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.PrimaryKeyConstraint("journal_id", "log_id", name=op.f("pk_security_audit_logs")),
    )
    op.create_index(
        "ix_security_audit_logs_journal_id_event_type_timestamp",
        "security_audit_logs",
        ["journal_id", "event_type", "timestamp"],
    )
    op.create_index(
        "ix_security_audit_logs_journal_id_ip_address_timestamp",
        "security_audit_logs",
        ["journal_id", "ip_address", "timestamp"],
    )
    op.create_index(
        "ix_security_audit_logs_journal_id_request_id",
        "security_audit_logs",
        ["journal_id", "request_id"],
    )
    op.create_index(
        "ix_security_audit_logs_journal_id_resource_timestamp",
        "security_audit_logs",
        ["journal_id", "resource", "timestamp"],
    )
    op.create_index(
        "ix_security_audit_logs_journal_id_success_timestamp",
        "security_audit_logs",
        ["journal_id", "success", "timestamp"],
    )
    op.create_index(
        "ix_security_audit_logs_journal_id_timestamp_event_type",
        "security_audit_logs",
        ["journal_id", "timestamp", "event_type"],
    )
    op.create_index(
        "ix_security_audit_logs_journal_id_user_id_timestamp",
        "security_audit_logs",
        ["journal_id", "user_id", "timestamp"],
    )


def create_orders() -> None:
    op.create_table(
        "orders",
        sa.Column("journal_id", OFFSET, autoincrement=False, nullable=False),
        sa.Column("order_id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid()),
        sa.Column("position_id", sa.Uuid()),
        sa.Column("token", sa.String(255)),
        sa.Column("action", sa.String(20)),
        sa.Column("order_type", sa.String(20)),
        sa.Column("quantity", AMOUNT),
        sa.Column("amount", AMOUNT),
        sa.Column("filled_quantity", AMOUNT),
        sa.Column("average_fill_price", AMOUNT),
        sa.Column("amount_in", PRODUCT),
        sa.Column("amount_out", PRODUCT),
        sa.Column("price", AMOUNT),
        sa.Column("trigger_price", AMOUNT),
        sa.Column("time_in_force", sa.String(20)),
        sa.Column("expires_at", UTC),
        sa.Column("reduce_only", sa.Boolean(), nullable=False),
        sa.Column("fees", PRODUCT),
        sa.Column("slippage_bps", sa.BigInteger()),
        sa.Column("slippage_actual", AMOUNT),
        sa.Column("status", sa.String(20), nullable=False),
        sa.Column("transaction_signature", sa.String(255)),
        sa.Column("executed_at", UTC),
        sa.Column("failed_reason", sa.Text()),
        sa.Column("strategy", sa.String(255)),
        sa.Column("extra_data", JSON),
        sa.Column("flags", JSON, nullable=False),
        sa.Column("exact_quantity", EXACT),
        sa.Column("exact_price", EXACT),
        sa.Column("exact_filled_quantity", EXACT, nullable=False),
        sa.Column("exact_notional", EXACT, nullable=False),
        sa.Column("exact_fees", EXACT, nullable=False),
        sa.Column("created_at", UTC, nullable=False),
        sa.Column("updated_at", UTC, nullable=False),
        sa.Column("changed_size", OFFSET, nullable=False),
        sa.CheckConstraint("action IN ('buy', 'sell')", name=op.f("ck_orders_action")),
        sa.CheckConstraint(
            "order_type IN ('market', 'limit', 'stop_loss', 'take_profit')",
            name=op.f("ck_orders_order_type"),
        ),
        sa.CheckConstraint(
            "status IN ('pending', 'partially_filled', 'executed', "
            "'failed', 'cancelled', 'expired')",
            name=op.f("ck_orders_status"),
        ),
        sa.CheckConstraint(
            "time_in_force IN ('gtc', 'day', 'gtd', 'ioc', 'fok')",
            name=op.f("ck_orders_time_in_force"),
        ),
        sa.ForeignKeyConstraint(
            ["journal_id", "position_id"],
            ["positions.journal_id", "positions.position_id"],
            name=op.f("fk_orders_journal_id_position_id_positions"),
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.ForeignKeyConstraint(
            ["journal_id", "user_id"],
            ["users.journal_id", "users.user_id"],
            name=op.f("fk_orders_journal_id_user_id_users"),
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.PrimaryKeyConstraint("journal_id", "order_id", name=op.f("pk_orders")),
    )
    op.create_index("ix_orders_journal_id_created_at", "orders", ["journal_id", "created_at"])
    op.create_index("ix_orders_journal_id_position_id", "orders", ["journal_id", "position_id"])
    op.create_index(
        "ix_orders_journal_id_status_created_at", "orders", ["journal_id", "status", "created_at"]
    )
    op.create_index(
        "ix_orders_journal_id_token_created_at", "orders", ["journal_id", "token", "created_at"]
    )
    op.create_index(
        "ix_orders_journal_id_transaction_signature",
        "orders",
        ["journal_id", "transaction_signature"],
    )
    op.create_index(
        "ix_orders_journal_id_user_id_created_at", "orders", ["journal_id", "user_id", "created_at"]
    )
    op.create_index(
        "ix_orders_journal_id_user_id_status", "orders", ["journal_id", "user_id", "status"]
    )
