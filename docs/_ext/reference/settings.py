"""All settings, with their types, limits and defaults."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ledger.settings import Settings
from reference.markdown import code, table
from reference.markdown import page as as_page

INTRODUCTION = (
    "Each is a variable of the environment. What they are for is told in "
    "[Settings](../settings.md)."
)
LIMITS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "more than {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "less than {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
}
TYPES = {"integer": "whole number", "boolean": "true or false", "string": "text"}
FORMATS = {"path": "file", "password": "secret text"}


def page() -> str:
    """Return the page."""
    properties = Settings.model_json_schema()["properties"]
    rows = [
        (code(f"LEDGER_{name.upper()}"), "; ".join(_kinds(schema)), _default(schema))
        for name, schema in properties.items()
    ]
    lines = table(["variable", "value", "default"], rows)
    return as_page("All settings with types and limits", INTRODUCTION, "", *lines)


def _kinds(schema: dict[str, Any]) -> Iterator[str]:
    """Yield the kind of value that a setting takes, and its limits."""
    schemas = [each for each in schema.get("anyOf", [schema]) if each.get("type") != "null"]
    for each in schemas:
        if "enum" in each:
            yield "one of " + ", ".join(map(code, each["enum"]))
        else:
            kind = FORMATS.get(each.get("format", "")) or TYPES.get(each["type"], each["type"])
            yield kind
        yield from (words.format(each[key]) for key, words in LIMITS.items() if key in each)


def _default(schema: dict[str, Any]) -> str:
    default = schema.get("default")
    return "none" if default in (None, "") else code(default)
