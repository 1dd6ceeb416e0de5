"""Which projections there are, and which of them advance together."""

from __future__ import annotations

from projections.api_keys import api_keys
from projections.fold import Group
from projections.marks import marks
from projections.orders import orders
from projections.positions import positions
from projections.security_audit_logs import security_audit_logs
from projections.users import users

TRADING = Group("trading", users, api_keys, positions, orders, security_audit_logs)
"""The five tables with foreign keys between them: a join of them is always at one size."""

MARKS = Group("marks", marks)

GROUPS = {group.name: group for group in (TRADING, MARKS)}
TABLES = {each.name: group for group in GROUPS.values() for each in group.projections}
