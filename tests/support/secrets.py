"""What must never be in a log: it is searched for in all that is logged while tests run."""

from __future__ import annotations

import logging
import re

PATTERNS = {
    "an API key": re.compile(r"tlk_[0-9A-Za-z]+_[0-9A-Za-z_-]{20,}"),
    "a refresh token": re.compile(r"lrt_[0-9A-Za-z-]+_[0-9A-Za-z_-]{20,}"),
    "an access token": re.compile(r"eyJ[0-9A-Za-z_-]{8,}\.[0-9A-Za-z_-]{8,}\."),
    "a password's hash": re.compile(r"\$argon2(id|i|d)\$"),
    "a password": re.compile(r"correct horse battery staple"),
    "a private key": re.compile(r"PRIVATE[+ ]KEY"),
}


def secrets_in(text: str) -> list[str]:
    """Say what kinds of secrets are in a text."""
    return [kind for kind, pattern in PATTERNS.items() if pattern.search(text)]


class SecretsHandler(logging.Handler):
    """Looks at every line that is logged, and notes which logger logged a secret."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Look at a line."""
        text = self.format(record)
        self.found += [f"{record.name} logged {kind}" for kind in secrets_in(text)]
