"""Files of what the console shows: those of the HTTP service, with the headers of its pages."""

from __future__ import annotations

from starlette.responses import Response

from projections.console.desk import HEADERS
from projections.http import answers
from projections.points import InvalidRequest
from projections.reading.spooling import Export, Form


def form_of(name: str | None) -> Form:
    """Return a form by its name; raises InvalidRequest."""
    try:
        return Form(name or "")
    except ValueError as error:
        raise InvalidRequest(f"format: {name!r} is none of {', '.join(Form)}") from error


def attached(slug: str, form: Form, export: Export) -> Response:
    """Return all rows of a table, or all that changed, to be kept as a file."""
    response = answers.attached(slug, form, export)
    response.headers.update(HEADERS)
    return response
