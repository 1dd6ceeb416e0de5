"""What becomes of a journal's sealed log: stream `log-<origin>`."""

from __future__ import annotations

from ledger.event import Event


def log_stream(origin: str) -> str:
    """Return the stream of a sealed log."""
    return f"log-{origin}"


class LogForked(Event):
    """The journal goes on under a new log, `origin`; `checkpoint` is the last note of the old one.

    `witnessed_size` is what a witness had seen of the old one, where one could be asked.
    """

    origin: str
    reason: str
    checkpoint: str
    witnessed_size: int | None = None

    def stream(self) -> str:
        """Name the log's stream."""
        return log_stream(self.origin)
