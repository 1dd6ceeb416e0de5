"""How a personal field is stored."""

from __future__ import annotations

from uuid import UUID

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESSIV
from hypothesis import given
from hypothesis import strategies as st

from ledger.security.fields import FieldUndecryptable, Place, decrypt, encrypt, key_id_of

CIPHER = AESSIV(bytes(range(32)))
PLACE = Place("main", "user-1", UUID(int=7))
texts = st.text(st.characters(codec="utf-8"), max_size=50)


@given(value=texts, key_id=st.from_regex(r"\A[A-Za-z0-9_-]{16}\Z"))
def test_a_value_comes_back(value: str, key_id: str) -> None:
    """Whatever the text; the same bytes each time, from which the key's id can be told."""
    stored = encrypt(value, PLACE, "username", key_id, CIPHER)
    assert stored == encrypt(value, PLACE, "username", key_id, CIPHER)
    assert key_id_of(stored) == key_id
    assert decrypt(stored, PLACE, "username", CIPHER) == value


def test_the_cipher_is_that_of_the_standard() -> None:
    """RFC 5297, A.1: the key, plaintext and associated data of its first example."""
    key = bytes.fromhex("fffefdfcfbfaf9f8f7f6f5f4f3f2f1f0f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")
    data = bytes.fromhex("101112131415161718191a1b1c1d1e1f2021222324252627")
    made = AESSIV(key).encrypt(bytes.fromhex("112233445566778899aabbccddee"), [data])
    assert made.hex() == "85632d07c6e8f37f950acd320a2ecc9340c02b9690c4dc04daef7f6afe5c"


@pytest.mark.parametrize(
    ("place", "field"),
    [
        (Place("other", "user-1", UUID(int=7)), "username"),
        (Place("main", "user-2", UUID(int=7)), "username"),
        (Place("main", "user-1", UUID(int=8)), "username"),
        (Place("main", "user-1", UUID(int=7)), "email"),
        (Place("mainuser-1", "", UUID(int=7)), "username"),
    ],
)
def test_a_value_cannot_be_moved(place: Place, field: str) -> None:
    """It is bound to journal, stream, event and field."""
    stored = encrypt("ann", PLACE, "username", "k", CIPHER)
    with pytest.raises(FieldUndecryptable, match=field):
        decrypt(stored, place, field, CIPHER)


@given(position=st.integers(0, 60), letter=st.sampled_from("AZaz09-_=! "))
def test_a_changed_value_is_noticed(position: int, letter: str) -> None:
    """Each letter of it counts, but for unused bits of the last one."""
    stored = encrypt("ann@example.org", PLACE, "email", "k", CIPHER)
    head, text = stored[:7], stored[7:]
    position %= len(text)
    changed = text[:position] + letter + text[position + 1 :]
    try:
        assert decrypt(head + changed, PLACE, "email", CIPHER) == "ann@example.org"
        assert changed.rstrip("= !")[:-1] == text[:-1] or changed == text
    except FieldUndecryptable:
        assert changed != text


def test_text_of_any_kind_is_no_value() -> None:
    """Letters beyond ASCII do not break the program."""
    with pytest.raises(FieldUndecryptable):
        decrypt("enc1:k:ü", PLACE, "email", CIPHER)


def test_a_value_stored_without_a_key_is_gone() -> None:
    """What is stored of it tells nothing, and it is None for whoever has any key."""
    stored = encrypt("ann", PLACE, "username", "k", None)
    assert stored == "enc1:k:"
    assert decrypt(stored, PLACE, "username", CIPHER) is None


def test_plain_values_have_no_key() -> None:
    """Events of older releases hold them."""
    assert key_id_of("ann") is None
    assert key_id_of("") is None
