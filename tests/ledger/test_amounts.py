"""Amounts are exact, in plain notation, and bounded."""

from __future__ import annotations

import pickle
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.amounts import Amount, PlainDecimal, VenueAmount

KINDS = [Amount, VenueAmount]


def plain_text(kind: type[PlainDecimal]) -> st.SearchStrategy[str]:
    """Return amounts as they may stand in events."""
    whole = st.integers(0, 10**kind.integer_digits - 1).map(str)
    fraction = st.text("0123456789", max_size=kind.decimal_places)
    return st.builds(
        lambda sign, front, back: sign + front + ("." + back if back else ""),
        st.sampled_from(["", "-"]),
        whole,
        fraction,
    )


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_text_survives_unchanged(kind: type[PlainDecimal], data: st.DataObject) -> None:
    """Every digit is kept, trailing zeros and tiny numbers included, and no exponent appears."""
    text = data.draw(plain_text(kind))
    amount = kind(text)
    assert str(amount) == format(amount, "f") == text
    assert amount == Decimal(text)
    assert str(kind(amount)) == text
    assert str(pickle.loads(pickle.dumps(amount))) == text  # noqa: S301 - its own


@given(st.integers(-(10**12) + 1, 10**12 - 1))
def test_whole_numbers(number: int) -> None:
    """An int is exact."""
    assert str(Amount(number)) == str(number)


@given(st.decimals(allow_nan=True, allow_infinity=True))
def test_any_decimal_is_kept_exactly_or_refused(number: Decimal) -> None:
    """No decimal is rounded on its way in."""
    try:
        amount = VenueAmount(number)
    except ValueError:
        return
    assert amount == number
    assert "E" not in str(amount)


@given(st.text(max_size=20))
def test_any_text_is_kept_exactly_or_refused(text: str) -> None:
    """No text is read generously: no blanks, signs, underscores, other digits or exponents."""
    try:
        amount = VenueAmount(text)
    except ValueError:
        return
    assert str(amount) == text
    assert set(text) <= set("-.0123456789")


@pytest.mark.parametrize("kind", KINDS)
def test_the_bounds_are_exact(kind: type[PlainDecimal]) -> None:
    """The largest and the smallest amount fit; one digit more does not, not even a zero."""
    largest = "9" * kind.integer_digits + "." + "9" * kind.decimal_places
    smallest = "0." + "0" * (kind.decimal_places - 1) + "1"
    assert [str(kind(text)) for text in (largest, smallest)] == [largest, smallest]
    for text in ("1" + largest, largest + "0", smallest + "0"):
        with pytest.raises(ValueError, match="too many digits"):
            kind(text)


def test_arithmetic_gives_ordinary_decimals() -> None:
    """A result need not fit the bounds of its parts."""
    result = Amount("0.00000001") * Amount("0.1")
    assert type(result) is Decimal
    assert result == Decimal("0.000000001")


def test_equal_amounts_of_different_notation_stay_different_text() -> None:
    """1.50 and 1.5 are equal numbers, and each keeps its own form."""
    assert Amount("1.50") == Amount("1.5")
    assert [str(Amount("1.50")), str(Amount("1.5"))] == ["1.50", "1.5"]
