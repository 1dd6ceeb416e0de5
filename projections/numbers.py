"""The arithmetic of all folds: the one decimal context, and how numbers and text fit columns."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal, InvalidOperation

from ledger.event import CONTEXT

__all__ = ["CONTEXT", "INTEGER_MAX", "TEXT_CHARS_MAX", "ZERO", "bounded", "fit_of", "short"]

TEXT_CHARS_MAX = 255
INTEGER_MAX = 2**63 - 1
ZERO = Decimal(0)


def fit_of(precision: int, scale: int) -> Callable[[Decimal], Decimal | None]:
    """Return the function that brings an amount into the form of a NUMERIC(precision, scale).

    It rounds to the column's places (half even), and gives None for what is too large for it.
    """
    unit, context = Decimal(1).scaleb(-scale), CONTEXT.copy()
    # So that quantising raises just where the column has too few digits.
    context.prec = min(precision, context.prec)

    def fit(value: Decimal) -> Decimal | None:
        try:
            return value.quantize(unit, None, context)
        except InvalidOperation:
            return None

    return fit


def short(text: str | None) -> str | None:
    """Return `text`, or None where it is too long for an indexed column."""
    return text if text is None or len(text) <= TEXT_CHARS_MAX else None


def bounded(number: int | None) -> int | None:
    """Return `number`, or the nearest one that fits a BIGINT."""
    return number if number is None else max(-INTEGER_MAX, min(INTEGER_MAX, number))
