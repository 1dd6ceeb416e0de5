"""Exact decimal amounts as they stand in events: text in JSON, never floats."""

from __future__ import annotations

import re
from decimal import ROUND_HALF_EVEN, Context, Decimal, DivisionByZero, InvalidOperation, Overflow
from typing import ClassVar, Self

CONTEXT = Context(
    prec=50, rounding=ROUND_HALF_EVEN, traps=[InvalidOperation, DivisionByZero, Overflow]
)
"""Decisions and folds compute in this context: both come to the same sums, wherever batches end."""

_PLAIN = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?", re.ASCII)


class PlainDecimal(Decimal):
    """A finite decimal in plain notation with bounded digits.

    Made from text (`"1.50"`), an int or a Decimal; a float, NaN, an infinity or an exponent in
    text raises ValueError. Arithmetic gives ordinary `Decimal`s.
    """

    integer_digits: ClassVar[int]
    decimal_places: ClassVar[int]

    def __new__(cls, value: str | int | Decimal) -> Self:
        """Check `value` and keep it exactly, trailing zeros included."""
        text = _plain_text(value)
        if _PLAIN.fullmatch(text) is None:
            raise ValueError(f"{text[:60]!r} is not a plain decimal such as '12.50'")
        whole, _, fraction = text.lstrip("-").partition(".")
        if len(whole) > cls.integer_digits or len(fraction) > cls.decimal_places:
            raise ValueError(
                f"{text[:60]!r} has too many digits: at most {cls.integer_digits} before "
                f"and {cls.decimal_places} after the point"
            )
        return super().__new__(cls, text)

    def __str__(self) -> str:
        """Plain notation, where `str(Decimal("0.00000001"))` would be '1E-8'."""
        return format(self, "f")


class Amount(PlainDecimal):
    """An amount of our own users' commands: fits NUMERIC(20,8)."""

    integer_digits = 12
    decimal_places = 8


class VenueAmount(PlainDecimal):
    """An amount as a venue reported it, kept exactly (many on-chain amounts have 18 places)."""

    integer_digits = 40
    decimal_places = 30


def _plain_text(value: object) -> str:
    """`value` as text, for the kinds of value that are exact."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise ValueError(f"an amount is text such as '12.50', not {type(value).__name__}")
    if isinstance(value, Decimal) and not value.is_finite():
        raise ValueError(f"{Decimal(value)!s} is not a number that can be booked")
    return format(value, "f") if isinstance(value, Decimal) else str(value)
