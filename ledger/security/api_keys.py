"""What an API key looks like: `tlk_<public id>_<secret><checksum>`.

Modelled on GitHub's tokens ("Behind GitHub's new authentication token formats", 2021): a prefix by
which a scanner knows what it has found, letters and digits only, and a CRC-32 of all before it in
six characters of base 62, so that a typo is seen without asking the database. The public id is the
key's id (22 characters), the secret has 256 random bits (43 characters).

Only the SHA-256 of the secret is stored. A slow hash protects what people choose, since that can be
guessed; 256 random bits cannot, however fast a guess is.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import zlib
from uuid import UUID

import msgspec

PREFIX = "tlk"
SECRET_BYTES = 32

_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_VALUES = {digit: value for value, digit in enumerate(_DIGITS)}
_ID_CHARS, _SECRET_CHARS, _CHECKSUM_CHARS = 22, 43, 6
_FORM = re.compile(
    rf"({PREFIX}_([0-9A-Za-z]{{{_ID_CHARS}}})_([0-9A-Za-z]{{{_SECRET_CHARS}}}))"
    rf"([0-9A-Za-z]{{{_CHECKSUM_CHARS}}})"
)


class Malformed(msgspec.Struct, frozen=True):
    """What was presented is no key; `reason` says why."""

    reason: str


class ApiKeyText:
    """A key, to be shown once: `reveal()` returns it, nothing else does."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the key itself."""
        return self._text

    def __repr__(self) -> str:
        return f"<{PREFIX}_… hidden>"


class ParsedKey:
    """The two parts of a well-formed key: the public id, and the secret's hash."""

    __slots__ = ("key_hash", "key_id")

    def __init__(self, key_id: UUID, secret: bytes) -> None:
        self.key_id = key_id
        self.key_hash = hash_of(secret)

    @property
    def public_id(self) -> str:
        """The part of the key that may be written down."""
        return f"{PREFIX}_{_encode(self.key_id.int, _ID_CHARS)}"


def hash_of(secret: bytes) -> str:
    """Return what is stored of a secret."""
    return hashlib.sha256(secret).hexdigest()


def generate(key_id: UUID) -> tuple[ApiKeyText, str]:
    """Return a new key with this public id, and the hash of its secret."""
    secret = secrets.token_bytes(SECRET_BYTES)
    return ApiKeyText(format_key(key_id, secret)), hash_of(secret)


def format_key(key_id: UUID, secret: bytes) -> str:
    """Return the text of a key."""
    number = int.from_bytes(secret)
    text = f"{PREFIX}_{_encode(key_id.int, _ID_CHARS)}_{_encode(number, _SECRET_CHARS)}"
    return text + _checksum(text)


def parse(presented: str) -> ParsedKey | Malformed:
    """Take a key apart, or say what is wrong with it; needs no database."""
    form = _FORM.fullmatch(presented)
    if form is None:
        return Malformed("it does not have the form of a key")
    if _checksum(form[1]) != form[4]:
        return Malformed("its checksum is wrong: it was mistyped, cut off or made up")
    key_id, secret = _decode(form[2]), _decode(form[3])
    if key_id >> 128 or secret >> 8 * SECRET_BYTES:
        return Malformed("its numbers are too large")
    return ParsedKey(UUID(int=key_id), secret.to_bytes(SECRET_BYTES))


def digest_of(presented: str, key: bytes | None = None) -> str:
    """Return a short digest that tells malformed keys apart.

    Somebody may have pasted a password by mistake. With a key, only who has it can tell whether a
    guess at that is right. Without one anybody can, but for one wrong guess in four billion.
    """
    text = presented.encode("utf-8", "surrogatepass")
    made = hashlib.sha256(text) if key is None else hmac.new(key, text, hashlib.sha256)
    return made.hexdigest()[:8]


def _checksum(text: str) -> str:
    return _encode(zlib.crc32(text.encode("ascii")), _CHECKSUM_CHARS)


def _encode(number: int, chars: int) -> str:
    digits = []
    for _ in range(chars):
        number, value = divmod(number, len(_DIGITS))
        digits.append(_DIGITS[value])
    return "".join(reversed(digits))


def _decode(text: str) -> int:
    number = 0
    for digit in text:
        number = number * len(_DIGITS) + _VALUES[digit]
    return number
