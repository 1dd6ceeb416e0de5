"""Password hashes: made one way, verified in two, and never a crash."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from typing import Literal

import argon2
import pytest

from ledger.errors import Overloaded
from ledger.security.passwords import (
    PasswordHasher,
    Passwords,
    is_acceptable,
)

CHEAP = PasswordHasher(memory_kib=8, iterations=1)
SALT = "a salt é:$"
DIGEST = hashlib.pbkdf2_hmac("sha256", b"secret", SALT.encode(), 100_000).hex()


def test_new_hashes_are_argon2id_with_owasps_parameters() -> None:
    """19 MiB of memory, two iterations, one lane, and a salt of their own."""
    hasher = PasswordHasher()
    first, second = hasher.hash("secret"), hasher.hash("secret")
    assert first.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert first != second
    assert hasher.verify("secret", first)
    assert not hasher.verify("Secret", first)
    assert not hasher.is_outdated(first)


def test_the_original_format_is_verified() -> None:
    """`hash:salt` of PBKDF2, in either case of the digits, and due for another hash."""
    for digest in (DIGEST, DIGEST.upper()):
        stored = f"{digest}:{SALT}"
        assert CHEAP.verify("secret", stored)
        assert not CHEAP.verify("other", stored)
        assert CHEAP.is_outdated(stored)
    assert not CHEAP.verify("secret", f"{DIGEST}:another")


def test_a_known_hash_of_the_original_format() -> None:
    """The vector of 100,000 iterations that Python's own hashlib documents."""
    stored = "0394a2ede332c9a13eb82e9b24631604c31df978b4e2f0fbd2c549944f9d79a5:salt"
    assert CHEAP.verify("password", stored)


def test_weaker_parameters_are_outdated() -> None:
    """A hash made with others is verified all the same."""
    stored = CHEAP.hash("secret")
    strong = PasswordHasher()
    assert strong.verify("secret", stored)
    assert strong.is_outdated(stored)
    assert not CHEAP.is_outdated(stored)


GOOD = CHEAP.hash("secret")
MALFORMED = [
    None,
    "",
    "secret",
    ":",
    DIGEST,
    f"{DIGEST[1:]}:{SALT}",
    f"g{DIGEST[1:]}:{SALT}",
    GOOD[:-20],
    GOOD + "é",
    GOOD.replace("t=1", "t=x"),
    GOOD.replace("t=1", "t=-1"),
    GOOD.replace("m=8", "m=4194304"),
    GOOD.replace("m=8", "m=8388608").replace("t=1", "t=99999"),
    "$argon2id$v=19$m=8,t=1,p=1$$",
    "$2b$12$R9h/cIPz0gi.URNNX3kh2OPST9/PgBkqquzi.Ss7KIUgO2t0jWMUW",
]


@pytest.mark.parametrize("stored", MALFORMED, ids=map(str, range(len(MALFORMED))))
def test_what_cannot_be_read_is_no_hash_of_anything(stored: str | None) -> None:
    """Nor is one that would need absurd time or memory; the dummy's password is nobody's."""
    assert not CHEAP.verify("secret", stored)


def test_a_missing_hash_is_checked_like_any() -> None:
    """Without a readable hash the dummy is verified, which has the parameters of all others."""
    verified: list[str] = []

    class Watched(argon2.PasswordHasher):
        """Notes what it verifies."""

        def verify(self, hash: str | bytes, password: str | bytes) -> Literal[True]:  # noqa: A002
            """Verify as ever."""
            verified.append(str(hash))
            return super().verify(hash, password)

    hasher = PasswordHasher(memory_kib=8, iterations=1)
    hasher._argon2 = Watched(1, 8, 1)
    for stored in (None, "nonsense", "$argon2id$v=19$m=8,t=1,p=1$$"):
        hasher.verify("secret", stored)
        assert verified.pop() == hasher.dummy
    assert argon2.extract_parameters(hasher.dummy) == argon2.extract_parameters(GOOD)


@pytest.mark.parametrize(
    ("password", "is_fine"),
    [("", False), ("x", True), ("é" * 1024, True), ("x" * 1025, False), ("\ud800", False)],
)
def test_the_length_of_passwords(password: str, is_fine: bool) -> None:
    """One to 1024 characters, all of which can be encoded."""
    assert is_acceptable(password) == is_fine


class Slow(PasswordHasher):
    """Hashes only when told to."""

    def __init__(self) -> None:
        self.go = threading.Event()
        super().__init__(memory_kib=8, iterations=1)
        self.running = self.running_max = 0
        self._lock = threading.Lock()

    def verify(self, password: str, stored: str | None) -> bool:
        """Wait, and count how many do."""
        with self._lock:
            self.running += 1
            self.running_max = max(self.running_max, self.running)
        self.go.wait()
        with self._lock:
            self.running -= 1
        return super().verify(password, stored)


async def test_threads_and_places_are_bounded() -> None:
    """So many hash at a time, so many wait, more are told so at once; others go on meanwhile."""
    hasher = Slow()
    passwords = Passwords(hasher, threads=2, queue_max=3)

    async def check() -> bool:
        with passwords.place() as place:
            return await place.verify("secret", GOOD)

    checks = [asyncio.create_task(check()) for _ in range(5)]
    while hasher.running < 2:  # noqa: ASYNC110 - threads tell nobody
        await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="5 callers wait for passwords"):
        await check()
    hasher.go.set()
    assert await asyncio.gather(*checks) == [True] * 5
    assert hasher.running_max == 2
    assert await check()
    passwords.close()


async def test_a_hash_is_replaced_only_where_it_is_outdated() -> None:
    """There is a new one for a weaker or older hash, none for a present one or where none is."""
    passwords = Passwords(CHEAP)
    with passwords.place() as place:
        assert await place.upgrade("secret", GOOD) is None
        assert await place.upgrade("secret", None) is None
        better = await place.upgrade("secret", f"{DIGEST}:{SALT}")
        assert better
        assert await place.verify("secret", better)
    passwords.close()
