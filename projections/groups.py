"""Which projections there are, and which of them advance together."""

from __future__ import annotations

from projections.api_keys import api_keys
from projections.fold import Group, Slicing
from projections.marks import marks
from projections.orders import orders
from projections.positions import positions
from projections.postings import book_balances, postings
from projections.security_audit_logs import security_audit_logs
from projections.users import users

TRADING = Group(
    "trading",
    users,
    api_keys,
    positions,
    orders,
    security_audit_logs,
    fold_version="3",
    slicing=Slicing(owner="user_id", tables=("positions", "orders")),
)
"""The five tables with foreign keys between them: a join of them is always at one size."""

MARKS = Group("marks", marks)

POSTINGS = Group("postings", book_balances, postings)
"""Double entry, kept apart from the positions that it is held against."""

GROUPS = {group.name: group for group in (TRADING, MARKS, POSTINGS)}
TABLES = {each.name: group for group in GROUPS.values() for each in group.projections}
