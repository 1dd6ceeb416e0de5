"""The arithmetic of all folds: the one decimal context, and how numbers and text fit columns."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation

from ledger.event import CONTEXT

__all__ = ["CONTEXT", "INTEGER_MAX", "TEXT_CHARS_MAX", "ZERO", "Fit", "bounded", "short"]

TEXT_CHARS_MAX = 255
INTEGER_MAX = 2**63 - 1
ZERO = Decimal(0)


class Fit:
    """How an amount gets into a NUMERIC(precision, scale) column."""

    def __init__(self, precision: int, scale: int) -> None:
        """Take the column's bounds."""
        self._limit = Decimal(10) ** (precision - scale)
        self._unit = Decimal(1).scaleb(-scale)

    def __call__(self, value: Decimal) -> Decimal | None:
        """Return `value` with the column's places (half even), None if it is too large for it."""
        try:
            rounded = value.quantize(self._unit, None, CONTEXT)
        except InvalidOperation:  # not even the context holds so many digits
            return None
        return rounded if -self._limit < rounded < self._limit else None


def short(text: str | None) -> str | None:
    """Return `text`, or None where it is too long for an indexed column."""
    return text if text is None or len(text) <= TEXT_CHARS_MAX else None


def bounded(number: int | None) -> int | None:
    """Return `number`, or the nearest one that fits a BIGINT."""
    return number if number is None else max(-INTEGER_MAX, min(INTEGER_MAX, number))
