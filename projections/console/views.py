"""The tables of the console: what they are called, and which columns lead."""

from __future__ import annotations

import msgspec
import sqlalchemy as sa

from ledger.sqltypes import ExactNumeric, UtcTimestamp
from projections.keyed import projection_of

COMPUTED_AMOUNTS = ("current_price", "position_value", "entry_value", "pnl", "pnl_pct")
"""Attributes of rows that no column holds."""


class View(msgspec.Struct, frozen=True):
    """A table as the console shows it: `slug` is its name in URLs, `leading` the columns shown."""

    slug: str
    table: str
    title: str
    one: str
    leading: tuple[str, ...]

    @property
    def key(self) -> str:
        """The column by which rows are named."""
        return projection_of(self.table).key

    def kind(self, column: str) -> str:
        """Return what a column holds: amount, number, time, flag, json, id or text."""
        if column in COMPUTED_AMOUNTS:
            return "amount"
        found = projection_of(self.table).table.columns.get(column)
        return "text" if found is None else _kind(found.type)


def _kind(kind: sa.types.TypeEngine[object]) -> str:
    known = {
        ExactNumeric: "amount",
        UtcTimestamp: "time",
        sa.Boolean: "flag",
        sa.Integer: "number",
        sa.JSON: "json",
        sa.Uuid: "id",
    }
    return next((name for each, name in known.items() if isinstance(kind, each)), "text")


_USERS = "user_id username email roles failed_login_attempts locked_until last_login is_active"
_KEYS = "key_id name user_id permissions rate_limit requests_count last_used_at is_active"
_ORDERS = (
    "order_id token action order_type quantity price filled_quantity average_fill_price fees "
    "status user_id created_at"
)
_POSITIONS = (
    "position_id token size entry_price realized_pnl fees net_pnl stop_loss take_profit status "
    "user_id opened_at"
)
_AUDIT = "log_id timestamp event_type action success user_id ip_address resource request_id"
_POSTINGS = "posting_id timestamp book account currency amount user_id"
_BALANCES = "book token holding cash cost fees realized_pnl user_id position_id"
_MARKS = "token price source marked_at"

VIEWS = {
    view.slug: view
    for view in (
        View("positions", "positions", "Positions", "Position", tuple(_POSITIONS.split())),
        View("orders", "orders", "Orders", "Order", tuple(_ORDERS.split())),
        View("users", "users", "Users", "User", tuple(_USERS.split())),
        View("api-keys", "api_keys", "API keys", "API key", tuple(_KEYS.split())),
        View("audit-log", "security_audit_logs", "Audit log", "Entry", tuple(_AUDIT.split())),
        View("postings", "postings", "Postings", "Posting", tuple(_POSTINGS.split())),
        View("balances", "book_balances", "Balances", "Balance", tuple(_BALANCES.split())),
        View("marks", "marks", "Marks", "Mark", tuple(_MARKS.split())),
    )
}
"""All tables by their slugs."""

OF_TABLE = {view.table: view for view in VIEWS.values()}
"""All tables by their names."""

REFERENCES = {
    "user_id": "users",
    "owner_id": "users",
    "order_id": "orders",
    "closing_order_id": "orders",
    "position_id": "positions",
    "closes_position_id": "positions",
    "key_id": "api-keys",
    "book": "balances",
    "token": "marks",
}
"""Columns that name a row of another table."""
