"""The form of API keys: told apart from anything else without a database."""

from __future__ import annotations

import hashlib
import hmac
import re
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.security.api_keys import (
    Malformed,
    ParsedKey,
    digest_of,
    format_key,
    generate,
    hash_of,
    parse,
)

DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
KEY = "tlk_0000000000000000000001_0000000000000000000000000000000000000000010"
"""The beginning of the key with id 1 and secret 62."""


def test_a_known_key() -> None:
    """Prefix, id, secret and the CRC-32 of all before, each in base 62 of a fixed width."""
    text = format_key(UUID(int=1), (62).to_bytes(32))
    assert text[:-6] == KEY
    assert len(text) == 76
    number = 0
    for digit in text[-6:]:
        number = number * 62 + DIGITS.index(digit)
    assert number == crc32(KEY.encode())


def crc32(data: bytes) -> int:
    """Compute the CRC-32 of zip and PNG files bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0xEDB88320 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


@given(st.uuids(), st.binary(min_size=32, max_size=32))
def test_a_key_is_taken_apart_into_what_it_was_made_of(key_id: UUID, secret: bytes) -> None:
    """Also at the ends of both ranges."""
    parsed = parse(format_key(key_id, secret))
    assert isinstance(parsed, ParsedKey)
    assert (parsed.key_id, parsed.key_hash) == (key_id, hashlib.sha256(secret).hexdigest())


@pytest.mark.parametrize("number", [0, 1])
def test_the_ends_of_the_ranges(number: int) -> None:
    """All bits clear, and all set."""
    key_id, secret = UUID(int=number * (2**128 - 1)), bytes([number * 255]) * 32
    parsed = parse(format_key(key_id, secret))
    assert isinstance(parsed, ParsedKey)
    assert (parsed.key_id, parsed.key_hash) == (key_id, hash_of(secret))


@given(st.data())
def test_a_single_wrong_character_is_seen(data: st.DataObject) -> None:
    """A CRC-32 sees every error within 32 bits; a typo changes eight at most, or the checksum."""
    text = format_key(UUID(int=12345), bytes(range(32)))
    at = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.sampled_from(DIGITS + "_-é").filter(lambda digit: digit != text[at]))
    assert isinstance(parse(text[:at] + other + text[at + 1 :]), Malformed)


def test_what_is_no_key() -> None:
    """Wrong forms, cut-off keys and numbers that are too large are each named as such."""
    text = format_key(UUID(int=1), bytes(32))
    for wrong in (
        "",
        "x",
        text[:-1],
        text + "0",
        " " + text,
        text + "\n",
        text.replace("tlk", "ghp"),
    ):
        found = parse(wrong)
        assert found == Malformed("it does not have the form of a key")
    swapped = text[:10] + "1" + text[11:]
    assert "checksum" in str(parse(swapped))
    for number in (format_key(_Id(2**128), bytes(32)), format_key(UUID(int=1), b"\1" + bytes(32))):
        assert parse(number) == Malformed("its numbers are too large")


class _Id(UUID):
    """An id that is too large, which has the checksum of a real one."""

    def __init__(self, number: int) -> None:
        object.__setattr__(self, "int", number)


def test_new_keys_are_random_and_hide_themselves() -> None:
    """Each has its own 256 bits; only asking for it shows it, and its hash is what is stored."""
    key_id = uuid4()
    keys = [generate(key_id) for _ in range(50)]
    texts = {key.reveal() for key, _ in keys}
    assert len(texts) == 50
    for key, key_hash in keys:
        assert re.fullmatch(r"tlk_[0-9A-Za-z]{22}_[0-9A-Za-z]{49}", key.reveal())
        parsed = parse(key.reveal())
        assert isinstance(parsed, ParsedKey)
        assert (parsed.key_id, parsed.key_hash) == (key_id, key_hash)
        assert parsed.public_id == key.reveal()[:26]
        assert repr(key) == str(key) == f"{key}" == "<tlk_… hidden>"
        assert key.reveal()[27:] not in repr(parsed)


def test_the_digest_of_what_is_no_key_is_short() -> None:
    """It tells apart, and confirms a guess to none but who has the key; any text has one."""
    assert digest_of("a") == hashlib.sha256(b"a").hexdigest()[:8]
    assert len({digest_of(text) for text in ("a", "b", "\ud800", "", "x" * 100_000)}) == 5
    assert digest_of("a", b"key") == hmac.new(b"key", b"a", hashlib.sha256).hexdigest()[:8]
