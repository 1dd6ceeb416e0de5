"""The HTTP API, from the description that the service itself gives of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from ledger.settings import Settings
from projections.serving.app import make_app
from reference.markdown import cell, code, table
from reference.markdown import page as as_page

Json = dict[str, Any]

INTRODUCTION = (
    "Made from the service's own OpenAPI document, which it gives out at `/openapi.json`. "
    "[HTTP service](../serve.md) says how it is run. Errors are `application/problem+json`."
)
PROBLEM = "application/problem+json"


def page() -> str:
    """Return the page: operations by tag, then what they take and give."""
    described = make_app(Settings()).openapi()
    by_tag: defaultdict[str, list[str]] = defaultdict(list)
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            tag = operation.get("tags", ["other"])[0]
            by_tag[tag] += _operation(method.upper(), path, operation)
    lines = [INTRODUCTION, ""]
    for tag, found in by_tag.items():
        lines += [f"## {tag.replace('-', ' ').capitalize()}", "", *found]
    lines += ["## Schemas", ""]
    for name, schema in described["components"]["schemas"].items():
        lines += _schema(name, schema)
    return as_page("HTTP API", *lines)


def _operation(method: str, path: str, operation: Json) -> Iterator[str]:
    told = operation.get("description") or operation.get("summary", "")
    yield from (f"### {code(f'{method} {path}')}", "", _flat(told), "")
    rows = [
        (code(each["name"]), each["in"], _kind(each["schema"]), each.get("description", ""))
        for each in operation.get("parameters", [])
    ]
    yield from table(["parameter", "in", "value", "what"], rows)
    if body := operation.get("requestBody"):
        kinds = (_kind(each.get("schema", {})) for each in body["content"].values())
        yield from (f"Body: {', '.join(kinds)}", "")
    yield from _answers(operation["responses"])


def _answers(answers: Json) -> Iterator[str]:
    """Yield what an operation answers: a table of what is no error, and a list of the errors."""
    is_error = {status: PROBLEM in each.get("content", {}) for status, each in answers.items()}
    rows = (
        (code(status), each["description"], ", ".join(_contents(each.get("content", {}))))
        for status, each in sorted(answers.items())
        if not is_error[status]
    )
    yield from table(["status", "what", "body"], rows)
    errors = (status for status in sorted(answers) if is_error[status])
    told = (f"{code(status)} {cell(answers[status]['description'])}" for status in errors)
    yield from ("Errors: " + ", ".join(told), "")


def _contents(content: Json) -> Iterator[str]:
    for kind, each in content.items():
        schema = _kind(each.get("schema", {}))
        yield schema if kind == "application/json" else code(kind)


def _flat(text: str) -> str:
    """Return text in which nothing is a heading."""
    return "\n".join(line.lstrip("#") for line in text.splitlines())


def _schema(name: str, schema: Json) -> Iterator[str]:
    yield from (f"### {name}", "", _flat(schema.get("description", "")), "")
    required = set(schema.get("required", ()))
    rows = (
        (
            code(field),
            _kind(found),
            "yes" if field in required else "",
            found.get("description", ""),
        )
        for field, found in schema.get("properties", {}).items()
    )
    yield from table(["field", "value", "required", "what"], rows)
    if "enum" in schema:
        yield from ("One of " + ", ".join(map(code, schema["enum"])), "")


def _kind(schema: Json) -> str:
    """Return the kind of value that a schema allows, in words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    for several in ("anyOf", "oneOf", "allOf"):
        if several in schema:
            kinds = (_kind(each) for each in schema[several] if each.get("type") != "null")
            return " or ".join(dict.fromkeys(kinds))
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    if "enum" in schema:
        return ", ".join(map(code, schema["enum"]))
    if "const" in schema:
        return code(schema["const"])
    return cell(schema.get("format") or schema.get("type", "any value"))
