"""Fixtures of the pure domain."""

from __future__ import annotations

import pytest

from ledger.domain import order_stages


@pytest.fixture(autouse=True)
def nothing_is_known_by_heart() -> None:
    """Let the state machine work its answers out anew: mutation testing forks a warm process."""
    for remembered in ("step", "names", "ord_status", "status"):
        getattr(order_stages, remembered).cache_clear()
