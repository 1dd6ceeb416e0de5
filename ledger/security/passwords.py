"""Hashing passwords, in threads of their own so that nothing else waits for it.

New hashes are Argon2id with the parameters that OWASP's Password Storage Cheat Sheet recommends as
the least (19 MiB of memory, 2 iterations, 1 degree of parallelism). Hashes of the original system
are still verified: `hash:salt`, PBKDF2-HMAC-SHA256 with 100,000 iterations, the hash as 64
hexadecimal digits, the salt as text.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import TypeVar

import argon2

from ledger.errors import Overloaded

MEMORY_KIB = 19 * 1024
ITERATIONS = 2
PARALLELISM = 1

PASSWORD_CHARS_MAX = 1024

_PBKDF2 = re.compile(r"([0-9a-fA-F]{64}):(.*)", re.ASCII | re.DOTALL)
_PBKDF2_ITERATIONS = 100_000

_COST_MAX = 16 * MEMORY_KIB * ITERATIONS
"""A stored hash that would need more memory times iterations is not checked."""

T = TypeVar("T")


def is_acceptable(password: str) -> bool:
    """Whether a password has a length that is hashed, and characters that can be encoded."""
    try:
        password.encode()
    except UnicodeEncodeError:
        return False
    return 1 <= len(password) <= PASSWORD_CHARS_MAX


class PasswordHasher:
    """Makes and checks hashes, on the thread that calls.

    Smaller parameters than the default ones are for tests.
    """

    def __init__(
        self,
        *,
        memory_kib: int = MEMORY_KIB,
        iterations: int = ITERATIONS,
        parallelism: int = PARALLELISM,
    ) -> None:
        self._argon2 = argon2.PasswordHasher(iterations, memory_kib, parallelism)

    @cached_property
    def dummy(self) -> str:
        """A hash that no password has, to check where there is none."""
        return self.hash(secrets.token_hex())

    def hash(self, password: str) -> str:
        """Return a new hash of a password, with a salt of its own."""
        return self._argon2.hash(password)

    def verify(self, password: str, stored: str | None) -> bool:
        """Whether `stored` is a hash of the password; one that cannot be read is of none.

        Takes as long where there is no hash, or no readable one.
        """
        dummy = self.dummy  # the first check makes it, whether it is needed or not
        legacy = _PBKDF2.fullmatch(stored or "")
        if legacy is not None:
            return _is_pbkdf2(password, legacy[1], legacy[2])
        try:
            if stored is not None and _is_affordable(stored):
                return self._argon2.verify(stored, password)
        except argon2.exceptions.VerifyMismatchError:
            return False
        except (argon2.exceptions.VerificationError, ValueError):
            pass  # it cannot be read
        with suppress(argon2.exceptions.VerifyMismatchError):
            self._argon2.verify(dummy, password)
        return False

    def is_outdated(self, stored: str) -> bool:
        """Whether a new hash of the same password should take the place of a verified one."""
        return _PBKDF2.fullmatch(stored) is not None or self._argon2.check_needs_rehash(stored)


def _is_affordable(stored: str) -> bool:
    parameters = argon2.extract_parameters(stored)
    return parameters.memory_cost * parameters.time_cost <= _COST_MAX


def _is_pbkdf2(password: str, digest: str, salt: str) -> bool:
    found = hashlib.pbkdf2_hmac("sha256", password.encode(), salt.encode(), _PBKDF2_ITERATIONS)
    return hmac.compare_digest(found.hex(), digest.lower())


class Place:
    """A right to have passwords hashed and checked, in turn with those who have one too."""

    def __init__(self, hasher: PasswordHasher, threads: ThreadPoolExecutor) -> None:
        self._hasher = hasher
        self._threads = threads

    async def hash(self, password: str) -> str:
        """Return a new hash of a password."""
        return await self._run(lambda: self._hasher.hash(password))

    async def verify(self, password: str, stored: str | None) -> bool:
        """Whether `stored` is a hash of the password."""
        return await self._run(lambda: self._hasher.verify(password, stored))

    async def upgrade(self, password: str, stored: str | None) -> str | None:
        """Return a new hash of a password that `stored` is an outdated one of, else None."""
        if stored is None or not self._hasher.is_outdated(stored):
            return None
        return await self.hash(password)

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


class Passwords:
    """A hasher with a bounded number of threads and of callers that wait for them."""

    def __init__(
        self, hasher: PasswordHasher | None = None, *, threads: int = 2, queue_max: int = 1000
    ) -> None:
        self._hasher = hasher or PasswordHasher()
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="passwords")
        self._places_max = threads + queue_max
        self._places = 0

    @contextmanager
    def place(self) -> Iterator[Place]:
        """Take a place for as long as the block runs; Overloaded where all are taken."""
        if self._places >= self._places_max:
            raise Overloaded(
                f"{self._places:,} callers wait for passwords to be hashed already; slow down, "
                "try again"
            )
        self._places += 1
        try:
            yield Place(self._hasher, self._threads)
        finally:
            self._places -= 1

    def close(self) -> None:
        """Let go of the threads; what is being hashed is finished."""
        self._threads.shutdown(wait=False)
