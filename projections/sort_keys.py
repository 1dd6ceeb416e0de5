"""Text that sorts as amounts do, for databases that hold amounts as text."""

from __future__ import annotations

from decimal import Decimal

_EXPONENT_ZERO = 500_000
"""Leaves room for any exponent that an amount's text can have, on both sides."""

_NINES = str.maketrans("0123456789", "9876543210")


def amount_key(text: str | None) -> str | None:
    """Return text by which amounts compare as numbers, the same for equal ones; None for NULL."""
    if text is None:
        return None
    sign, digits, _ = (value := Decimal(text)).as_tuple()
    if value == 0:
        return "1"
    shown = "".join(map(str, digits)).lstrip("0").rstrip("0")
    if not sign:
        return f"2{value.adjusted() + _EXPONENT_ZERO:06}{shown}"
    # What is further from zero is less, so all is turned round, also that a prefix comes first.
    return f"0{999_999 - value.adjusted() - _EXPONENT_ZERO:06}{shown.translate(_NINES)}~"
