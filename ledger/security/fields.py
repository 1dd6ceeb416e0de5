"""How the value of a personal field is stored: `enc1:<key id>:<base64url of what is encrypted>`.

AES-SIV (RFC 5297) with the data key of the event's subject. It is deterministic, so that an append
which is repeated gives the same bytes; the associated data are journal, stream, event id and field,
so that a value cannot be moved. Nothing after the last colon is a value that was never readable:
its subject was erased before.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from uuid import UUID

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from ledger.errors import LedgerError

PREFIX = "enc1:"
PREFIX_BYTES = PREFIX.encode()


class FieldUndecryptable(LedgerError):
    """A stored value is not what was encrypted for this field of this event."""

    exit_code = 3


class Place(msgspec.Struct, frozen=True, gc=False):
    """Which event a value belongs to; `event_id` is the usual text form."""

    journal: str
    stream: str
    event_id: str | UUID

    def bound_to(self, field: str) -> list[bytes]:
        """Return the associated data of a field."""
        return [
            self.journal.encode(),
            self.stream.encode(),
            str(self.event_id).encode(),
            field.encode(),
        ]


def encrypt(value: str, place: Place, field: str, key_id: str, cipher: AESSIV | None) -> str:
    """Return what is stored; without a cipher the value is gone."""
    made = b"" if cipher is None else cipher.encrypt(value.encode(), place.bound_to(field))
    return f"{PREFIX}{key_id}:{urlsafe_b64encode(made).decode().rstrip('=')}"


_STORED = re.compile(r"enc1:([A-Za-z0-9_-]{16}):[A-Za-z0-9_-]*")


def key_id_of(stored: str) -> str | None:
    """Return the id of the data key of a stored value, None where it stands in plain."""
    if not stored.startswith(PREFIX):
        return None
    found = _STORED.fullmatch(stored)
    return None if found is None else found[1]


def decrypt(stored: str, place: Place, field: str, cipher: AESSIV) -> str | None:
    """Return the value, None where it was never readable; raises FieldUndecryptable."""
    text = stored.rpartition(":")[2]
    if not text:
        return None
    try:
        made = urlsafe_b64decode(text + "=" * (-len(text) % 4))
        return cipher.decrypt(made, place.bound_to(field)).decode()
    except (InvalidTag, ValueError) as error:
        raise FieldUndecryptable(
            f"{field} is not what was encrypted for this event, or its data key is another one"
        ) from error
