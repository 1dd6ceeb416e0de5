"""How values look on pages."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Any

from markupsafe import Markup

from ledger.sqltypes import text_to_time
from projections.console.here import Here
from projections.console.views import REFERENCES, View
from projections.rendering import amount_text, as_text

NOTHING = Markup('<span class="nothing">&ndash;</span>')
YES, NO = Markup("yes"), Markup("no")
_NEGATIVE = Markup(' class="negative"')
_PLAIN = Markup("")
ID_CHARS_SHOWN = 8
TEXT_CHARS_SHOWN = 60

RIGHT = ("amount", "number")
"""Kinds of columns that stand at the right, so that their digits are below each other."""


def cell(here: Here, view: View, column: str, value: Any, *, full: bool = False) -> Markup:
    """Return a column's value; ids and long texts are cut in lists, whole where `full`."""
    if value is None:
        return NOTHING
    shown = _shown(view.kind(column), value, full=full)
    if column == "changed_size":
        href, name = here.to("events", int(value) - 1), f"the event that led to size {value}"
        return Markup('<a href="{}" aria-label="{}, {}">{}</a>').format(href, shown, name, shown)
    target = view.slug if column == view.key else REFERENCES.get(column)
    if target is None or (full and column == view.key):
        return shown
    return Markup('<a href="{}">{}</a>').format(here.to("tables", target, value), shown)


def _shown(kind: str, value: Any, *, full: bool) -> Markup:
    if kind == "amount":
        return amount(value)
    if kind == "number":
        return Markup.escape(grouped(value))
    if kind == "time":
        return moment(value, full=full)
    if kind == "flag":
        return YES if value else NO
    if kind == "json":
        return _structure(value, full=full)
    if isinstance(value, bool):
        return YES if value else NO
    text = as_text(value)
    most = ID_CHARS_SHOWN if kind == "id" else TEXT_CHARS_SHOWN
    css = Markup(' class="id"') if kind == "id" else ""
    if full or len(text) <= most:
        return Markup("<span{}>{}</span>").format(css, text) if css else Markup.escape(text)
    return Markup('<span{} title="{}">{}…</span>').format(css, text, text[:most])


def _structure(value: Any, *, full: bool = True) -> Markup:
    if value in ({}, []):
        return NOTHING
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return Markup.escape(", ".join(value))
    text = as_text(value)
    if full or len(text) <= TEXT_CHARS_SHOWN:
        return Markup("<code>{}</code>").format(text)
    return Markup('<code title="{}">{}…</code>').format(text, text[:TEXT_CHARS_SHOWN])


def grouped(value: Any) -> str:
    """Return a whole number with separators."""
    return f"{int(value):,}"


def amount(value: Any) -> Markup:
    """Return an amount exactly, in groups of three digits; negative ones are marked."""
    if value is None:
        return NOTHING
    try:
        number = value if isinstance(value, Decimal) else Decimal(str(value))
    except InvalidOperation:
        return Markup.escape(str(value))
    sign = "\N{MINUS SIGN}" if number < 0 else ""
    whole, point, part = amount_text(abs(number)).partition(".")
    css = _NEGATIVE if sign else _PLAIN
    return Markup("<span{}>{}{}{}{}</span>").format(css, sign, grouped(whole), point, part)


def as_time(value: Any) -> datetime:
    """Return a time that may have become text."""
    return value if isinstance(value, datetime) else text_to_time(str(value))


def moment(value: Any, *, full: bool = False) -> Markup:
    """Return a time in UTC, to the second or to the microsecond."""
    if value is None:
        return NOTHING
    at = as_time(value)
    shown = f"{at:%Y-%m-%d %H:%M:%S.%f}" if full else f"{at:%Y-%m-%d %H:%M:%S}"
    return Markup('<time datetime="{}">{}</time>').format(at.isoformat(), shown)


def full_moment(value: Any) -> Markup:
    """Return a time to the microsecond."""
    return moment(value, full=True)


def field(here: Here, name: str, value: Any) -> Markup:
    """Return a field of an event, whatever it is; ids lead to their rows."""
    if value is None or value in ({}, []):
        return NOTHING
    if name in REFERENCES and isinstance(value, str):
        href = here.to("tables", REFERENCES[name], value)
        return Markup('<a href="{}">{}</a>').format(href, value)
    if isinstance(value, bool):
        return YES if value else NO
    if isinstance(value, dict | list):
        return _structure(value)
    return Markup.escape(as_text(value))
