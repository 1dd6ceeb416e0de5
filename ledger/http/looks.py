"""Pages that ask for themselves again and again while somebody looks at them."""

from __future__ import annotations

from time import monotonic
from uuid import UUID

GAP_SECONDS = 10.0
LOOK_SECONDS_MAX = 900.0


class Looks:
    """Who is looking at such a page: one audit entry stands for all requests of one look.

    A look ends where a session has not asked for `GAP_SECONDS`, and after `LOOK_SECONDS_MAX` in any
    case; the next request takes an entry of its own.
    """

    def __init__(self) -> None:
        self._looks: dict[UUID | None, tuple[float, float]] = {}

    def goes_on(self, session_id: UUID | None) -> bool:
        """Whether a request of a session belongs to a look that is recorded."""
        if session_id not in self._looks:
            return False
        (began, latest), now = self._looks[session_id], monotonic()
        if now - latest > GAP_SECONDS or now - began > LOOK_SECONDS_MAX:
            return False
        self._looks[session_id] = began, now
        return True

    def begin(self, session_id: UUID | None) -> None:
        """Note that a look of a session was recorded."""
        now = monotonic()
        self._looks = {k: v for k, v in self._looks.items() if now - v[1] <= GAP_SECONDS}
        self._looks[session_id] = now, now
