"""Access tokens: only what was signed here, by one algorithm, and is good now."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import jwt
import pytest

from ledger.http import tokens
from ledger.http.errors import Unauthenticated
from ledger.http.tokens import AccessToken, Claims
from ledger.services import Ledger
from ledger.services.sessions import Holder
from tests.ledger.support import START

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
NOW = datetime(2026, 1, 1, 12, 0, 0, 250_000, UTC)
ANN, SESSION = UUID(int=1), UUID(int=2)
SECOND = timedelta(seconds=1)
CLAIMS: dict[str, Any] = {
    "iss": "main",
    "sub": str(ANN),
    "sid": str(SESSION),
    "iat": math.floor(NOW.timestamp()),
    "exp": math.ceil(NOW.timestamp()) + 900,
    "jti": "a name",
}


def signed(key: bytes = KEY, algorithm: str = "HS256", **claims: Any) -> str:
    """Return a token with these claims, None for one that is left out."""
    given = {name: value for name, value in (CLAIMS | claims).items() if value is not None}
    return jwt.PyJWS().encode(json.dumps(given).encode(), key, algorithm)


def encoded(*parts: object) -> str:
    """Return parts of a token as they are, each as JSON in base64url."""
    texts = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in parts]
    return ".".join(base64.urlsafe_b64encode(text).rstrip(b"=").decode() for text in texts)


def verified(token: str, now: datetime = NOW, issuer: str = "main") -> Claims:
    """Verify a token."""
    return tokens.verified(token, KEY, issuer, now)


def is_refused(token: str, now: datetime = NOW, issuer: str = "main") -> bool:
    """Whether a token is refused, with the one text for all that are."""
    try:
        verified(token, now, issuer)
    except Unauthenticated as error:
        return str(error) == str(Unauthenticated())
    return False


def test_what_a_token_says() -> None:
    """By which journal, for whom, in which session."""
    claims = verified(signed())
    assert (claims.iss, claims.sub, claims.sid) == ("main", ANN, SESSION)
    assert verified(signed(more="than that")) == claims


def test_a_token_is_good_until_its_time() -> None:
    """By the clock that is given, without leeway: not at the very second."""
    ends = datetime.fromtimestamp(CLAIMS["exp"], UTC)
    assert verified(signed(), ends - timedelta(microseconds=1)).sub == ANN
    assert is_refused(signed(), ends)
    assert verified(signed(), NOW - timedelta(days=365)).sub == ANN


@pytest.mark.parametrize("algorithm", ["HS384", "HS512"])
def test_one_algorithm_is_accepted(algorithm: str) -> None:
    """No other, even under the same key."""
    key = KEY * 2
    assert jwt.decode(signed(key, algorithm), key, [algorithm], options={"verify_exp": False})
    with pytest.raises(Unauthenticated):
        tokens.verified(signed(key, algorithm), key, "main", NOW)
    assert tokens.verified(signed(key), key, "main", NOW).sub == ANN


@pytest.mark.parametrize("name", ["none", "None", "NONE", "", None, "RS256", ["HS256"], {}])
def test_a_token_without_a_signature_is_refused(name: object) -> None:
    """Whatever it names as its algorithm, with an empty signature or that of another token."""
    unsigned = encoded({"alg": name, "typ": "JWT"}, CLAIMS)
    assert is_refused(f"{unsigned}.")
    assert is_refused(unsigned)
    assert is_refused(f"{unsigned}.{signed().rpartition('.')[2]}")


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": "other"},
        {"iss": None},
        {"iss": 7},
        {"sub": None},
        {"sub": "ann"},
        {"sub": 7},
        {"sid": None},
        {"sid": "7"},
        {"sid": {"a": 1}},
        {"iat": None},
        {"iat": "now"},
        {"exp": None},
        {"exp": "never"},
        {"exp": 1.5},
        {"exp": -1},
        {"exp": math.floor(NOW.timestamp())},
        {"jti": None},
        {"jti": 7},
    ],
    ids=str,
)
def test_claims_that_are_missing_or_wrong(claims: Mapping[str, Any]) -> None:
    """Also where they are signed with the right key: another program may have it too."""
    assert is_refused(signed(**claims))


def test_another_key_or_journal() -> None:
    """What another journal has signed is not good here."""
    assert is_refused(signed(OTHER_KEY))
    assert is_refused(signed(), issuer="other")
    head, payload, signature = signed().split(".")
    _, other_payload, _ = signed(sub=str(SESSION)).split(".")
    assert is_refused(f"{head}.{other_payload}.{signature}")
    flipped = ("B" if signature[0] == "A" else "A") + signature[1:]
    assert is_refused(f"{head}.{payload}.{flipped}")


@pytest.mark.parametrize(
    "token",
    [
        "",
        ".",
        "..",
        "...",
        "a.b.c",
        "\x00",
        "é.é.é",
        "\ud800.\ud800.\ud800",
        "=.=.=",
        "lrt_" + "0" * 32,
        encoded(b"[" * 300, CLAIMS) + ".",
        encoded(b"[" * 100_000, b"[" * 100_000) + ".",
        encoded({"alg": "HS256", "b64": False, "crit": ["b64"]}, b"") + ".",
        encoded({"alg": "HS256", "crit": ["exp"]}, CLAIMS) + ".",
        encoded([], []) + ".",
        encoded(b"\xff", b"\xff", b"\xff"),
    ],
    ids=range(16),
)
def test_what_is_no_token(token: str) -> None:
    """It is refused, and nothing else happens."""
    assert is_refused(token)


def test_what_is_too_long_is_not_parsed() -> None:
    """A token of any length may be sent; this program makes none of more than 1,024 characters."""
    assert verified(signed(more="x" * 400)).sub == ANN
    assert is_refused(signed(more="x" * 1000))


async def test_a_token_for_a_session(ledger: Ledger) -> None:
    """It is good for as long as is set, but no longer than the session, and not shown by itself."""
    rules, key = ledger.sessions.rules, await ledger.sessions.token_key()
    for left, seconds in ((timedelta(hours=1), 900), (90 * SECOND, 90), (SECOND / 2, 1)):
        holder = Holder(SESSION, ANN, START + left, (), ())
        token = await tokens.issue(ledger.sessions, holder, "main", START)
        assert token.expires_seconds == seconds
        claims = tokens.verified(token.text, key, "main", START)
        assert (claims.sub, claims.sid) == (ANN, SESSION)
        assert claims.iat == START.timestamp()
        assert claims.exp - claims.iat == seconds <= rules.token.total_seconds()
        assert token.text not in f"{token!r} {token}"
    assert len({(await issued(ledger)).text for _ in range(3)}) == 3


async def issued(ledger: Ledger) -> AccessToken:
    """Return a token that differs from others in its name at least."""
    holder = Holder(SESSION, ANN, START + SECOND, (), ())
    return await tokens.issue(ledger.sessions, holder, "main", START)
