"""Bodies drawn from the schemas that the OpenAPI document has for them.

Rules about what goes together are left out: that is refused with a documented answer as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC
from typing import Any

from hypothesis import strategies as st

Schema = Mapping[str, Any]
Bodies = st.SearchStrategy[Any]

ANY_JSON: Bodies = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda parts: st.lists(parts, max_size=3) | st.dictionaries(st.text(), parts, max_size=3),
    max_leaves=5,
)


def valid(schema: Schema, schemas: Schema) -> Bodies:
    """Return what a schema takes; `schemas` are those that it may refer to, by name."""
    if "$ref" in schema:
        return valid(schemas[schema["$ref"].rpartition("/")[2]], schemas)
    if "anyOf" in schema and "properties" not in schema:
        return st.one_of([valid(each, schemas) for each in schema["anyOf"]])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    return _MAKERS[schema["type"]](schema, schemas)


def _object(schema: Schema, schemas: Schema) -> Bodies:
    if "properties" not in schema:
        values = schema.get("additionalProperties")
        each = valid(values, schemas) if isinstance(values, Mapping) else st.nothing()
        return st.dictionaries(_words(1, 10), each, max_size=3)
    parts = {name: valid(each, schemas) for name, each in schema["properties"].items()}
    required = {name: parts.pop(name) for name in schema.get("required", ())}
    return st.fixed_dictionaries(required, optional=parts)


def _array(schema: Schema, schemas: Schema) -> Bodies:
    is_set = schema.get("uniqueItems", False)
    return st.lists(valid(schema["items"], schemas), max_size=3, unique=is_set)


def _string(schema: Schema, schemas: Schema) -> Bodies:
    match schema.get("format"):
        case "uuid":
            return st.uuids().map(str)
        case "date-time":
            zone = st.just(UTC)
            return st.datetimes(timezones=zone).map(lambda moment: moment.isoformat())
    pattern: str = schema.get("pattern", "")
    longest: int = schema.get("maxLength", 60)
    if "0-9" in pattern or "@" in pattern:
        drawn = st.from_regex(pattern, fullmatch=True)
        return drawn.filter(lambda text: len(text) <= longest and text.isprintable())
    return _words(schema.get("minLength", 0), min(longest, 20))


def _words(least: int, most: int) -> Bodies:
    return st.text(st.characters(exclude_categories=("C", "Z")), min_size=least, max_size=most)


def _integer(schema: Schema, schemas: Schema) -> Bodies:
    return st.integers(int(schema.get("minimum", -9)), int(schema.get("maximum", 9)))


_MAKERS: dict[str, Callable[[Schema, Schema], Bodies]] = {
    "object": _object,
    "array": _array,
    "string": _string,
    "integer": _integer,
    "boolean": lambda schema, schemas: st.booleans(),
    "null": lambda schema, schemas: st.none(),
}
