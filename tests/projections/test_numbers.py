"""How amounts get into columns of bounded digits."""

from __future__ import annotations

from decimal import ROUND_DOWN, ROUND_HALF_EVEN, Context, Decimal, localcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from projections.model import AMOUNT, PRODUCT
from projections.numbers import CONTEXT, fit_of

COLUMNS = st.sampled_from([AMOUNT, PRODUCT]).map(lambda each: (each.precision, each.scale))
EXACT = Context(prec=200, rounding=ROUND_HALF_EVEN)


def numbers(digits_max: int = CONTEXT.prec) -> st.SearchStrategy[Decimal]:
    """Return amounts of any size that folds compute, many of them with nothing but nines."""
    coefficients = st.one_of(
        st.integers(0, 10**digits_max - 1),
        st.integers(0, digits_max).map(lambda count: 10**count - 1),
        st.integers(0, digits_max - 1).map(lambda count: 10**count),
        st.integers(0, digits_max - 2).map(lambda count: 10**count * 10 - 5),
    )
    parts = st.tuples(coefficients, st.integers(-60, 5), st.sampled_from((1, -1)))
    return parts.map(lambda each: EXACT.scaleb(Decimal(each[0]), each[1]) * each[2])


@given(numbers(), COLUMNS)
def test_an_amount_fits_if_its_rounded_value_is_below_the_limit(
    value: Decimal, column: tuple[int, int]
) -> None:
    """What fits is rounded half even to the column's places; the limit itself is too large."""
    precision, scale = column
    rounded = value.quantize(Decimal(1).scaleb(-scale), None, EXACT)
    expected = rounded if abs(rounded) < Decimal(10) ** (precision - scale) else None
    fitting = fit_of(precision, scale)(value)
    assert str(fitting) == str(expected)  # also with the same places, and the same sign of zero


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("999999999999.999999994999", "999999999999.99999999"),
        ("999999999999.999999995", None),
        ("-999999999999.999999995", None),
        ("1E+12", None),
        ("1E+60", None),
        ("0.000000005", "0E-8"),
        ("0.000000015", "2E-8"),
        ("-0.000000001", "-0E-8"),
    ],
)
def test_the_ends_of_a_column(text: str, expected: str | None) -> None:
    """Rounding counts: what is rounded up to the limit does not fit; the caller's context not."""
    with localcontext() as context:
        context.prec, context.rounding = 3, ROUND_DOWN
        fitting = fit_of(20, 8)(Decimal(text))
    assert (None if fitting is None else str(fitting)) == expected
