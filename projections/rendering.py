"""How rows are shown: as JSON values and as text, the same for equal values."""

from __future__ import annotations

import json
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from ledger.sqltypes import time_to_text
from projections.model import ReadModel, values_of


def plain(value: Any) -> Any:
    """Return a column's value for JSON: amounts, ids and times as text."""
    if isinstance(value, Decimal):
        return amount_text(value)
    if isinstance(value, datetime):
        return time_to_text(value)
    return str(value) if isinstance(value, UUID) else value


def encodable(value: Any) -> str:
    """Return the text of an amount, for encoders that do not know its class.

    Raises TypeError for anything else: a row that came out of a fold has nothing else to hold.
    """
    if isinstance(value, Decimal):
        return format(value, "f")
    raise TypeError(f"no column can hold {type(value).__name__}")


def amount_text(value: Decimal) -> str:
    """Return plain notation without the trailing zeros, which say nothing about an amount."""
    text = format(value, "f")
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text


def as_text(value: Any) -> str:
    """Return a column's value in one line, `-` for NULL."""
    shown = plain(value)
    if shown is None:
        return "-"
    return shown if isinstance(shown, str) else json.dumps(shown, sort_keys=True, default=str)


def plain_row(row: ReadModel) -> dict[str, Any]:
    """Return a row for JSON."""
    return {name: plain(value) for name, value in values_of(row).items()}
