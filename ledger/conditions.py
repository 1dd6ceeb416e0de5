"""What must hold for an append to be accepted.

All conditions of an append are checked under the journal's lock, so nothing can slip in between
the check and the append.
"""

from __future__ import annotations

from datetime import timedelta

import msgspec

from ledger.event import Event

WINDOW_MAX = timedelta(days=36_500)


class ExpectedVersion(msgspec.Struct, frozen=True, gc=False):
    """The stream is at this version; 0 means that it does not exist yet."""

    stream: str
    version: int

    def __post_init__(self) -> None:
        """Refuse what no stream can have."""
        if self.version < 0:
            raise ValueError(f"an expected version is 0 or more, not {self.version}")


class NoEvent(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """No event of `types` (any type, if empty) with `tag` or in `stream` after offset `after`.

    `after` is the offset of the last event the caller knows of; -1 looks at the whole journal.
    """

    types: tuple[type[Event], ...] = ()
    tag: str | None = None
    stream: str | None = None
    after: int = -1

    def __post_init__(self) -> None:
        """Require one of tag and stream."""
        if (self.tag is None) == (self.stream is None):
            raise ValueError("give either a tag or a stream to look at")

    def type_names(self) -> tuple[str, ...]:
        """Return the names of the event types that are ruled out."""
        return tuple(event_type.__name__ for event_type in self.types)


class AtMost(msgspec.Struct, frozen=True, gc=False):
    """After the append, the stream holds at most `count` events younger than `window`.

    An exact sliding window over recorded_at: an event exactly `window` old no longer counts.
    """

    stream: str
    count: int
    window: timedelta

    def __post_init__(self) -> None:
        """Refuse windows in which nothing could ever be appended."""
        if self.count < 1 or not timedelta(0) < self.window <= WINDOW_MAX:
            raise ValueError(
                "a window needs a count of 1 or more and a length above zero, of a century at most"
            )


Condition = ExpectedVersion | NoEvent | AtMost
