"""Access tokens: JSON Web Tokens that name a user and a session for a short while.

They are signed with HMAC-SHA256 (`HS256`), and no other algorithm is accepted. A token says nothing
about what its user may do: that is looked up at each request.
"""

from __future__ import annotations

import math
from datetime import datetime
from uuid import UUID, uuid4

import jwt
import msgspec
from jwt.types import Options

from ledger.http.errors import TokenRefused
from ledger.services.sessions import Holder, Sessions

ALGORITHM = "HS256"
TOKEN_CHARS_MAX = 1024

_OPTIONS: Options = {
    "require": ["iss", "sub", "sid", "iat", "exp", "jti"],
    "verify_exp": False,
    "verify_iat": False,
    "verify_nbf": False,
}
"""The library's own clock is not the journal's."""

_UNREADABLE = (jwt.PyJWTError, msgspec.ValidationError, ValueError, RecursionError)


class Claims(msgspec.Struct, frozen=True):
    """What a token says: by which journal, for whom, in which session, and until when.

    `iat` and `exp` are in seconds since 1970.
    """

    iss: str
    sub: UUID
    sid: UUID
    iat: int
    exp: int
    jti: str


class AccessToken(msgspec.Struct, frozen=True):
    """A token, and for how many seconds it is good; only `text` shows it."""

    text: str
    expires_seconds: int

    def __repr__(self) -> str:
        return f"AccessToken(hidden, expires_seconds={self.expires_seconds})"


async def issue(sessions: Sessions, holder: Holder, issuer: str, now: datetime) -> AccessToken:
    """Return an access token for a session; it is not good for longer than that."""
    expires_at = min(now + sessions.rules.token, holder.expires_at)
    claims = Claims(
        iss=issuer,
        sub=holder.user_id,
        sid=holder.session_id,
        iat=math.floor(now.timestamp()),
        exp=math.ceil(expires_at.timestamp()),
        jti=uuid4().hex,
    )
    text = jwt.encode(msgspec.to_builtins(claims), await sessions.token_key(), ALGORITHM)
    return AccessToken(text, math.ceil((expires_at - now).total_seconds()))


def verified(token: str, key: bytes, issuer: str, now: datetime) -> Claims:
    """Return what a token says that was signed with the key and is good at `now`.

    Raises TokenRefused for any other text. The time is the journal's, without any leeway.
    """
    claims = _signed(token, key, issuer)
    if claims is None:
        raise TokenRefused("unreadable")
    if now.timestamp() >= claims.exp:
        raise TokenRefused("expired")
    return claims


def _signed(token: str, key: bytes, issuer: str) -> Claims | None:
    """Return the claims of a token, whose time is not looked at; None if it is not to be trusted.

    What is longer than any token is not parsed. The reason is let go of: it may quote the token.
    """
    if len(token) > TOKEN_CHARS_MAX:
        return None
    try:
        found = jwt.decode(token, key, [ALGORITHM], _OPTIONS, issuer=issuer)
        return msgspec.convert(found, Claims)
    except _UNREADABLE:
        return None
