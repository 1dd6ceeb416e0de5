"""Order states, protection of positions, and double entry.

The fold of the trading tables changes with them, so they are emptied and folded afresh.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from ledger.sqltypes import OFFSET, ExactNumeric, UtcTimestamp
from migrations.statements import execute_file

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

AMOUNT = ExactNumeric(20, 8)
PRODUCT = ExactNumeric(38, 16)
EXACT = ExactNumeric()
UTC = UtcTimestamp()
JSON = sa.JSON(none_as_null=True)


def upgrade() -> None:
    """Make the change: tables that gain columns are made anew, in the declared order."""
    empty_trading_tables()
    op.drop_table("orders")
    op.drop_table("positions")
    create_positions()
    create_orders()
    for table, column in INDEXED:
        op.create_index(f"ix_{table}_journal_id_{column}", table, ["journal_id", column])
    create_book_balances()
    create_postings()
    if op.get_context().dialect.name == "postgresql":
        execute_file("0003_roles_postgresql.sql")


def downgrade() -> None:
    """Take it back."""
    empty_trading_tables()
    op.execute("DELETE FROM checkpoints WHERE group_name = 'postings'")
    op.drop_table("postings")
    op.drop_table("book_balances")
    for table, column in INDEXED:
        op.drop_index(f"ix_{table}_journal_id_{column}", table)
    for table, columns in ADDED.items():
        for column in columns:
            op.drop_column(table, column)


INDEXED = (
    ("orders", "venue_order_id"),
    ("orders", "book"),
    ("orders", "closes_position_id"),
    ("positions", "closing_order_id"),
    ("positions", "book"),
)
ADDED = {
    "positions": ("owner_id", "closed_size", "other_fees", "armed_size", "closing_order_id"),
    "orders": (
        "reference_price",
        "closes_position_id",
        "book",
        "placed_size",
        "other_fees",
        "ord_status",
        "stage",
        "leaves_quantity",
        "venue_order_id",
        "raw_amount_in",
        "raw_amount_out",
        "amount_in_decimals",
        "amount_out_decimals",
    ),
}


def empty_trading_tables() -> None:
    for table in ("security_audit_logs", "orders", "positions", "api_keys", "users"):
        op.execute(f"DELETE FROM {table}")  # noqa: S608 - names from this line
    op.execute("DELETE FROM checkpoints WHERE group_name = 'trading'")


def create_positions() -> None:
    op.create_table(
        "positions",
        sa.Column("journal_id", OFFSET, autoincrement=False, nullable=False),
        sa.Column("position_id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid()),
        sa.Column("owner_id", sa.Uuid()),
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
        sa.Column("closed_size", OFFSET),
        sa.Column("strategy", sa.String(255)),
        sa.Column("extra_data", JSON),
        sa.Column("other_fees", JSON, nullable=False),
        sa.Column("armed_size", OFFSET),
        sa.Column("closing_order_id", sa.Uuid()),
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
        sa.Column("reference_price", AMOUNT),
        sa.Column("trigger_price", AMOUNT),
        sa.Column("time_in_force", sa.String(20)),
        sa.Column("expires_at", UTC),
        sa.Column("reduce_only", sa.Boolean(), nullable=False),
        sa.Column("closes_position_id", sa.Uuid()),
        sa.Column("book", sa.String(255)),
        sa.Column("placed_size", OFFSET),
        sa.Column("fees", PRODUCT),
        sa.Column("other_fees", JSON, nullable=False),
        sa.Column("slippage_bps", sa.BigInteger()),
        sa.Column("slippage_actual", AMOUNT),
        sa.Column("status", sa.String(20), nullable=False),
        sa.Column("ord_status", sa.String(20), nullable=False),
        sa.Column("stage", sa.Integer(), nullable=False),
        sa.Column("leaves_quantity", AMOUNT),
        sa.Column("venue_order_id", sa.String(255)),
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
        sa.Column("raw_amount_in", EXACT),
        sa.Column("raw_amount_out", EXACT),
        sa.Column("amount_in_decimals", sa.Integer()),
        sa.Column("amount_out_decimals", sa.Integer()),
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


def create_book_balances() -> None:
    op.create_table(
        "book_balances",
        sa.Column("journal_id", OFFSET, autoincrement=False, nullable=False),
        sa.Column("book", sa.String(255), nullable=False),
        sa.Column("position_id", sa.Uuid()),
        sa.Column("user_id", sa.Uuid()),
        sa.Column("token", sa.String(255)),
        sa.Column("holding", EXACT, nullable=False),
        sa.Column("cash", EXACT, nullable=False),
        sa.Column("cost", EXACT, nullable=False),
        sa.Column("fees", EXACT, nullable=False),
        sa.Column("realized_pnl", EXACT, nullable=False),
        sa.Column("changed_size", OFFSET, nullable=False),
        sa.PrimaryKeyConstraint("journal_id", "book", name=op.f("pk_book_balances")),
    )
    op.create_index(
        "ix_book_balances_journal_id_position_id", "book_balances", ["journal_id", "position_id"]
    )


def create_postings() -> None:
    op.create_table(
        "postings",
        sa.Column("journal_id", OFFSET, autoincrement=False, nullable=False),
        sa.Column("posting_id", sa.Uuid(), nullable=False),
        sa.Column("event_id", sa.Uuid(), nullable=False),
        sa.Column("entry", sa.Integer(), nullable=False),
        sa.Column("timestamp", UTC, nullable=False),
        sa.Column("user_id", sa.Uuid()),
        sa.Column("token", sa.String(255)),
        sa.Column("book", sa.String(255), nullable=False),
        sa.Column("account", sa.String(20), nullable=False),
        sa.Column("currency", sa.String(255), nullable=False),
        sa.Column("amount", EXACT, nullable=False),
        sa.Column("changed_size", OFFSET, nullable=False),
        sa.CheckConstraint(
            "account IN ('holding', 'venue', 'cash', 'cost', 'fee', 'realized_pnl')",
            name=op.f("ck_postings_account"),
        ),
        sa.PrimaryKeyConstraint("journal_id", "posting_id", name=op.f("pk_postings")),
    )
    for columns in (("event_id",), ("user_id", "timestamp"), ("book", "account"), ("timestamp",)):
        name = f"ix_postings_journal_id_{'_'.join(columns)}"
        op.create_index(name, "postings", ["journal_id", *columns])
