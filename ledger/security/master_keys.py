"""Wrapping data keys: by a master key from the settings, or by a key service.

A wrapped key is text: `siv1:<master key id>:<base64url>` (AES-SIV, RFC 5297), or `plain1:<…>` where
no master key is set. Then whoever can read the table of data keys can read everything, but erasing
is the same: what is destroyed is the random data key.
"""

from __future__ import annotations

from base64 import b64decode, urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from hashlib import sha256
from importlib.metadata import entry_points
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from ledger.errors import LedgerError
from ledger.settings import Settings, SettingsInvalid

MASTER_KEY_BYTES = 32
KEY_SERVICES = "ledger.key_services"
"""The group of entry points by which other packages bring key services, one class each."""

_PLAIN, _WRAPPED = "plain1", "siv1"


class DataKeyUnusable(LedgerError):
    """A data key cannot be unwrapped with the master keys at hand."""

    exit_code = 3


class MasterKey(Protocol):
    """What wraps data keys; a key service is one more of these.

    `context` says whose key it is, and must be given again to unwrap.
    """

    async def wrap(self, data_key: bytes, context: bytes) -> str:
        """Return the wrapped key as text."""
        ...

    async def unwrap(self, wrapped: str, context: bytes) -> bytes:
        """Return the data key; DataKeyUnusable where that cannot be done."""
        ...

    def is_current(self, wrapped: str) -> bool:
        """Whether this is how a key would be wrapped today."""
        ...


class LocalMasterKeys:
    """Master keys of this process: the first one wraps, all of them unwrap; none wraps nothing."""

    def __init__(self, keys: Sequence[bytes] = ()) -> None:
        """Take keys of 32 bytes."""
        self._ciphers = {sha256(key).hexdigest()[:8]: AESSIV(key) for key in keys}

    @classmethod
    def parse(cls, text: str) -> LocalMasterKeys:
        """Take keys in base64, separated by commas; SettingsInvalid for what is none."""
        return cls([_parsed(each.strip()) for each in text.split(",")])

    async def wrap(self, data_key: bytes, context: bytes) -> str:
        """Return the wrapped key as text."""
        for name, cipher in self._ciphers.items():
            return f"{_WRAPPED}:{name}:{_text(cipher.encrypt(data_key, [context]))}"
        return f"{_PLAIN}:{_text(data_key)}"

    async def unwrap(self, wrapped: str, context: bytes) -> bytes:
        """Return the data key; DataKeyUnusable where the master key is none of these."""
        kind, *parts = wrapped.split(":")
        if kind == _PLAIN and len(parts) == 1:
            return _bytes(parts[0])
        if kind != _WRAPPED or len(parts) != 2:
            raise DataKeyUnusable(
                "a data key was wrapped by something else than LEDGER_MASTER_KEY: open the journal "
                "with the key service that it was made with"
            )
        cipher = self._ciphers.get(parts[0])
        if cipher is None:
            raise DataKeyUnusable(
                f"a data key is wrapped by the master key {parts[0]}, which LEDGER_MASTER_KEY does "
                "not hold; add it there, after the one in use"
            )
        try:
            return cipher.decrypt(_bytes(parts[1]), [context])
        except (InvalidTag, ValueError) as error:
            raise DataKeyUnusable("a wrapped data key was altered, or is another's") from error

    def is_current(self, wrapped: str) -> bool:
        """Whether the first key wrapped it, or nothing where there is none."""
        first = next(iter(self._ciphers), None)
        head = f"{_PLAIN}:" if first is None else f"{_WRAPPED}:{first}:"
        return wrapped.startswith(head)


def master_key_of(settings: Settings) -> MasterKey:
    """Return what the settings say wraps data keys; SettingsInvalid where that cannot be used."""
    if settings.key_service is not None:
        if settings.master_key is not None:
            raise SettingsInvalid("LEDGER_KEY_SERVICE and LEDGER_MASTER_KEY exclude each other")
        return _key_service(settings.key_service)
    if settings.master_key is None:
        return LocalMasterKeys()
    return LocalMasterKeys.parse(settings.master_key.get_secret_value())


def _key_service(name: str) -> MasterKey:
    found = entry_points(group=KEY_SERVICES, name=name)
    if not found:
        known = ", ".join(sorted(entry_points(group=KEY_SERVICES).names)) or "none"
        raise SettingsInvalid(
            f"LEDGER_KEY_SERVICE: no installed package has an entry point {name!r} in the group "
            f"{KEY_SERVICES}; there are: {known}"
        )
    [service] = found
    made: MasterKey = service.load()()
    return made


def _text(data: bytes) -> str:
    return urlsafe_b64encode(data).decode()


def _bytes(text: str) -> bytes:
    try:
        return urlsafe_b64decode(text)
    except ValueError as error:
        raise DataKeyUnusable("a stored data key was altered: it is not base64") from error


def _parsed(text: str) -> bytes:
    try:
        key = b64decode(text, validate=True)
    except ValueError as error:
        raise SettingsInvalid("LEDGER_MASTER_KEY: a key is not base64") from error
    if len(key) != MASTER_KEY_BYTES:
        raise SettingsInvalid(
            f"LEDGER_MASTER_KEY: a key has {len(key)} bytes, not {MASTER_KEY_BYTES}; make one with "
            "`head -c 32 /dev/urandom | base64`"
        )
    return key
