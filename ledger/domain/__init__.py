"""The trading and security domain: one file per kind of stream.

Importing this package registers all event types.
"""

from ledger.domain import api_keys, logs, marks, orders, positions, requests, sessions, users

__all__ = ["api_keys", "logs", "marks", "orders", "positions", "requests", "sessions", "users"]
