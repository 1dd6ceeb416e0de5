"""What a refresh token looks like: `lrt_<session id>_<family><secret>`, two parts of 43 characters.

Both parts have 256 random bits, and only their SHA-256 is stored. The family is the same in all
tokens of a session, the secret is new in each: who presents the family with a secret that is not
the latest holds a token that was used before (RFC 9700, section 4.14.2), whereas somebody who only
knows the session's id can neither refresh it nor end it.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from uuid import UUID

PREFIX = "lrt"
SECRET_BYTES = 32

_FORM = re.compile(rf"{PREFIX}_([0-9a-f]{{32}})_([0-9A-Za-z_-]{{43}})([0-9A-Za-z_-]{{43}})")


class RefreshToken:
    """A refresh token: `reveal()` returns its text, nothing else does."""

    __slots__ = ("_family", "_secret", "session_id")

    def __init__(self, session_id: UUID, family: str, secret: str) -> None:
        self.session_id = session_id
        self._family = family
        self._secret = secret

    @classmethod
    def first(cls, session_id: UUID) -> RefreshToken:
        """Return the first token of a session."""
        return cls(session_id, _random(), _random())

    def following(self) -> RefreshToken:
        """Return a token that can take the place of this one."""
        return RefreshToken(self.session_id, self._family, _random())

    @property
    def family_digest(self) -> str:
        """What is stored of the part that all tokens of the session share."""
        return _digest(self._family)

    @property
    def digest(self) -> str:
        """What is stored of the part that only this token has."""
        return _digest(self._secret)

    def reveal(self) -> str:
        """Return the token itself."""
        return f"{PREFIX}_{self.session_id.hex}_{self._family}{self._secret}"

    def __repr__(self) -> str:
        return f"<{PREFIX}_… hidden>"


def parse(presented: str) -> RefreshToken | None:
    """Take a token apart; None where it does not have the form of one."""
    form = _FORM.fullmatch(presented)
    return None if form is None else RefreshToken(UUID(form[1]), form[2], form[3])


def _random() -> str:
    return secrets.token_urlsafe(SECRET_BYTES)


def _digest(part: str) -> str:
    return hashlib.sha256(part.encode()).hexdigest()
