"""Errors as problem details (RFC 9457): every answer that is not a success has this form.

    {"type": "urn:trading-ledger:problem:version-conflict", "title": "…", "status": 409,
     "detail": "…", "instance": "<request id>", "stream": "…", "expected": 3, "actual": 4}

Each error class has a kind of problem, by itself or by a class that it inherits from; others'
errors get theirs by `define`. What is nobody's business but the operators' goes to the log only.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from http.client import responses as phrases
from typing import Any

import msgspec
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.responses import Response

from ledger import errors
from ledger.deciding import StreamMoved
from ledger.errors import LedgerError
from ledger.http.errors import (
    CommandOnly,
    Forbidden,
    IdempotencyKeyReused,
    IdTaken,
    IfMatchUnsupported,
    InvalidCredentials,
    RateLimited,
    Unauthenticated,
)
from ledger.proof.log import NotSealed
from ledger.security.master_keys import DataKeyUnusable
from ledger.services.sessions import RefreshOutcomeUnknown
from ledger.services.users import ErasureUnfinished

PREFIX = "urn:trading-ledger:problem:"
MEDIA_TYPE = "application/problem+json"
ERRORS_SHOWN_MAX = 20
NAME_CHARS_MAX = 100
NOT_JSON = object()
"""Stands for a body that cannot be decoded, until that is checked."""

_log = logging.getLogger("ledger.http")


class Kind(msgspec.Struct, frozen=True):
    """A type of problem: its stable name, status and title.

    `fields` are attributes of the error that are shown beside the text; `detail` takes the place of
    the error's own text where that is not for everybody. `retry_after_seconds` says when to try
    the same again, where that may do.
    """

    slug: str
    status: int
    title: str
    fields: tuple[str, ...] = ()
    detail: str | None = None
    retry_after_seconds: int | None = None

    @property
    def type(self) -> str:
        """The URI that names the type; without a slug, the one for what its status says."""
        return PREFIX + self.slug if self.slug else "about:blank"


INTERNAL = Kind(
    "internal",
    500,
    "The service failed",
    detail="the log of the service has the reason under the request id; what was asked for may "
    "have been done or not",
)
INVALID_REQUEST = Kind("invalid-request", 422, "The request is not of the documented form")
OVERLOADED = Kind("overloaded", 503, "Too much is under way", retry_after_seconds=1)
TIMEOUT = Kind(
    "timeout",
    504,
    "The request took too long",
    detail="it was given up; what it asked for may have been stored all the same: repeat it with "
    "the same Idempotency-Key, or look",
)
BODY_TIMEOUT = Kind(
    "body-timeout",
    408,
    "The body did not come in time",
    detail="the body was awaited and did not come whole in the time there is for it; nothing was "
    "done; send it faster, or less at a time",
)
VERSION_CONFLICT = Kind(
    "version-conflict",
    409,
    "Somebody was faster",
    ("stream", "expected", "actual"),
)
PRECONDITION_FAILED = Kind(
    "precondition-failed",
    412,
    "The stream is not at the version that was given",
    ("stream", "expected", "actual"),
)
KEY_REUSED = Kind(
    "idempotency-key-reused",
    422,
    "The Idempotency-Key was used for another request",
    detail="one key stands for one request with one body; use a new key for a new request",
)
STORE_UNAVAILABLE = Kind(
    "store-unavailable",
    503,
    "The database is away",
    detail="the database cannot be reached or refuses to work; nothing was stored by this "
    "request; try again",
    retry_after_seconds=5,
)
OUTCOME_UNKNOWN = Kind(
    "outcome-unknown",
    503,
    "Whether it was stored is not known",
    detail="repeat the request with the same Idempotency-Key or event ids: it is stored once at "
    "most",
    retry_after_seconds=1,
)
EVENT_UNKNOWN = Kind(
    "event-unknown",
    503,
    "An event cannot be read by this release",
    ("offset",),
    "a newer release has stored the event at the offset, or it was damaged; events before it can "
    "be read, those behind it too if they are asked for by `after`",
    60,
)
UNAUDITED = Kind(
    "unaudited",
    503,
    "The request could not be recorded",
    detail="what it asked for may have been done, but its audit entry could not be stored, so that "
    "the answer is withheld; look before you ask again",
    retry_after_seconds=5,
)

_kinds: dict[type[Exception], Kind] = {
    LedgerError: INTERNAL,
    errors.InvalidEvent: Kind("invalid-event", 422, "The event cannot be stored", ("field",)),
    errors.UnknownEventType: Kind("unknown-event-type", 422, "No such event type", ("field",)),
    errors.InvalidCommand: Kind(
        "invalid-command", 422, "A value cannot be right", ("command", "field")
    ),
    errors.ConditionFailed: Kind("condition-failed", 409, "A condition does not hold"),
    errors.VersionConflict: VERSION_CONFLICT,
    StreamMoved: PRECONDITION_FAILED,
    errors.EventExists: Kind(
        "event-exists",
        409,
        "An event that was ruled out is there",
        ("offset",),
        "an event that the request rules out was stored; read it and decide anew",
    ),
    errors.TagTaken: Kind(
        "tag-taken",
        409,
        "The name is taken",
        ("offset",),
        "a name that only one may have is another's; choose another",
    ),
    errors.TooManyEvents: Kind(
        "too-many-events", 429, "The window is full", ("stream", "count", "window_seconds")
    ),
    errors.CommandRefused: Kind(
        "command-refused",
        409,
        "The command does not fit the state",
        ("command", "subject", "state"),
    ),
    errors.EventIdConflict: Kind(
        "event-id-conflict", 409, "The event id is another event's", ("event_id", "offset")
    ),
    errors.Contended: Kind(
        "contended", 503, "Others changed the same thing all the time", retry_after_seconds=1
    ),
    errors.Overloaded: OVERLOADED,
    errors.StoreUnavailable: STORE_UNAVAILABLE,
    errors.AppendOutcomeUnknown: OUTCOME_UNKNOWN,
    RefreshOutcomeUnknown: Kind(
        "refresh-outcome-unknown",
        503,
        "Whether the refresh token was used up is not known",
        detail="log in again; do not repeat the request: a refresh token that was used up ends the "
        "session when it comes again",
    ),
    errors.StoredEventInvalid: EVENT_UNKNOWN,
    errors.JournalNotFound: Kind("journal-not-found", 404, "No such journal"),
    errors.JournalExists: Kind("journal-exists", 409, "The journal exists"),
    NotSealed: Kind("not-sealed", 404, "The journal is not sealed"),
    ErasureUnfinished: Kind(
        "erasure-unfinished",
        503,
        "The erasure is not finished",
        ("user_id",),
        "the user counts as erased, but that could not be finished; erase the user again",
        1,
    ),
    DataKeyUnusable: STORE_UNAVAILABLE,
    Unauthenticated: Kind("unauthenticated", 401, "Nobody is known to have sent the request"),
    InvalidCredentials: Kind("invalid-credentials", 401, "The login was refused"),
    CommandOnly: Kind("command-only", 422, "Only a command stores such events"),
    Forbidden: Kind("forbidden", 403, "This is not allowed", ("permission",)),
    RateLimited: Kind("rate-limited", 429, "The API key was used too often"),
    IdempotencyKeyReused: KEY_REUSED,
    IdTaken: Kind("id-taken", 409, "The id is taken"),
    IfMatchUnsupported: Kind("if-match-unsupported", 400, "If-Match means nothing here"),
    RequestValidationError: INVALID_REQUEST,
}

UNREADABLE = Kind("bad-request", 400, "The request cannot be read")

_STATUSES: Mapping[int, Kind] = {
    400: UNREADABLE,
    404: Kind("not-found", 404, "There is nothing here"),
    405: Kind("method-not-allowed", 405, "The path has no such method"),
    406: Kind("not-acceptable", 406, "No such form of the answer"),
    413: Kind("body-too-large", 413, "The body is too large"),
    415: Kind("unsupported-media-type", 415, "The body has no form that is known"),
}
"""The kinds of what the framework itself refuses."""


class ProblemError(BaseModel):
    """One thing that is wrong with a request; `loc` leads to it."""

    loc: list[str | int]
    message: str
    type: str


class Problem(BaseModel):
    """What went wrong (RFC 9457). Kinds of problem have fields of their own beside these."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(examples=[VERSION_CONFLICT.type])
    title: str
    status: int = Field(ge=400, le=599)
    detail: str
    instance: str = Field(description="The id of the request, as in `X-Request-ID`.")
    errors: list[ProblemError] | None = None


def define(error: type[Exception], kind: Kind) -> None:
    """Say what kind of problem an error is, and all that inherit from it."""
    _kinds[error] = kind


def kinds() -> list[Kind]:
    """Return all kinds there are, each once, by slug."""
    limits = (BODY_TIMEOUT, TIMEOUT, UNAUDITED)
    every = (*_kinds.values(), *_STATUSES.values(), PRECONDITION_FAILED, *limits)
    found = {kind.slug: kind for kind in every}
    return [found[slug] for slug in sorted(found)]


def kind_of(error: Exception, request: Request | None = None) -> Kind:
    """Return the kind of an error; what the request asked for may make it a more precise one."""
    if isinstance(error, HTTPException):
        return _kind_of_status(error.status_code)
    kind = next((_kinds[each] for each in type(error).__mro__ if each in _kinds), INTERNAL)
    if request is None:
        return kind
    # Neither says any more that nothing was stored, once a command has been carried out.
    if kind in (STORE_UNAVAILABLE, OVERLOADED) and hasattr(request.state, "has_stored"):
        return OUTCOME_UNKNOWN
    if isinstance(error, errors.VersionConflict) and _is_given(error.expected, request.headers):
        return PRECONDITION_FAILED
    # The ids of a request's events follow from its key, where they are not given.
    if isinstance(error, errors.EventIdConflict) and "idempotency-key" in request.headers:
        return kind if getattr(request.state, "has_own_ids", False) else KEY_REUSED
    return kind


def _is_given(version: int, headers: Mapping[str, str]) -> bool:
    """Whether a version was expected by a header, and not by a condition in the body."""
    return headers.get("if-match") == f'"{version}"' or (
        version == 0 and "if-none-match" in headers
    )


def _kind_of_status(status: int) -> Kind:
    """Return the kind of what a status alone says, which RFC 9457 calls `about:blank`."""
    return _STATUSES.get(status) or Kind("", status, phrases.get(status, "Refused"))


def respond(
    kind: Kind,
    request_id: str,
    detail: str | None = None,
    *,
    headers: Mapping[str, str] | None = None,
    **fields: Any,
) -> Response:
    """Return the answer for a kind of problem."""
    body = {
        "type": kind.type,
        "title": kind.title,
        "status": kind.status,
        "detail": kind.detail or detail or kind.title,
        "instance": request_id,
        **fields,
    }
    own = dict(headers or {})
    if kind.retry_after_seconds is not None:
        own.setdefault("Retry-After", str(kind.retry_after_seconds))
    return Response(msgspec.json.encode(body), kind.status, own, MEDIA_TYPE)


def respond_to(request: Request, error: Exception) -> Response:
    """Return the answer for an error; the reason of an internal one goes to the log only."""
    kind = kind_of(error, request)
    request_id = request_id_of(request)
    if kind.status >= 500:
        log_failure(request_id, error, kind)
    fields = {name: getattr(error, name) for name in kind.fields}
    if isinstance(error, RequestValidationError):
        fields["errors"] = list(_errors_of(error))
    return respond(kind, request_id, _detail_of(error), headers=_headers_of(error), **fields)


def request_id_of(request: Request) -> str:
    """Return the id of a request, as in its answer's `X-Request-ID`."""
    return str(getattr(request.state, "request_id", ""))


def _detail_of(error: Exception) -> str:
    if isinstance(error, HTTPException):
        return str(error.detail)
    if isinstance(error, RequestValidationError):
        first = next(_errors_of(error))
        return f"{'.'.join(map(str, first['loc']))}: {first['message']}"
    return str(error)


def _errors_of(error: RequestValidationError) -> Iterator[dict[str, Any]]:
    """Say what is wrong, without the values that were sent: one of them may be a secret."""
    for each in error.errors()[:ERRORS_SHOWN_MAX]:
        loc = [part if isinstance(part, int) else _shown(part) for part in each["loc"]]
        message, kind = each["msg"], each["type"]
        if each.get("input") is NOT_JSON:
            message, kind = "the body is not valid JSON", "json_invalid"
        yield {"loc": loc, "message": message, "type": kind}


def _shown(part: object) -> str:
    """Return a name that was sent in a form that can be shown."""
    return str(part)[:NAME_CHARS_MAX].encode("ascii", "backslashreplace").decode()


def _headers_of(error: Exception) -> dict[str, str]:
    headers: dict[str, str] = dict(getattr(error, "headers", None) or {})
    if isinstance(error, errors.TooManyEvents):
        headers["Retry-After"] = str(max(1, min(3600, round(error.window_seconds))))
    return headers


def log_failure(request_id: str, error: BaseException, kind: Kind = INTERNAL) -> None:
    """Put a failure into the log.

    Of errors that are not this project's own only the place is told: their texts may repeat what
    was sent, or what was about to be stored.
    """
    level = logging.WARNING if kind.slug != INTERNAL.slug else logging.ERROR
    _log.log(
        level,
        "request failed: %s",
        described(error),
        extra={"request_id": request_id, "problem": kind.slug},
    )


def described(error: BaseException) -> str:
    """Return an error and what led to it, each with its place, and with its text if it is ours."""
    lines = []
    cause: BaseException | None = error
    while cause is not None:
        text = f": {cause}" if isinstance(cause, LedgerError) else ""
        frames = traceback.extract_tb(cause.__traceback__)
        place = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
        lines.append(f"{type(cause).__name__}{text}{place}")
        cause = cause.__cause__
    return ", because of ".join(lines)


def install(app: FastAPI) -> None:
    """Answer all errors of an application with problems."""
    for error in (LedgerError, HTTPException, RequestValidationError):
        app.add_exception_handler(error, _handle)


async def _handle(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException) and error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        error.headers = {"Allow": ", ".join(_methods_of(request))}
    return respond_to(request, error)


def _methods_of(request: Request) -> list[str]:
    """Return the methods of all routes of a path: the framework knows those of the first only."""
    path, routes = request.scope["path"], iter_route_contexts(request.app.routes)
    found = [e for e in routes if hasattr(e, "path_regex") and e.path_regex.match(path)]
    own = (each for each in found if each.path_format == found[0].path_format)
    return sorted({method for each in own for method in each.methods or ()})


def schemas() -> dict[str, Any]:
    """Return the schemas that the answers of `responses` refer to, by name."""
    problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    return {**problem.pop("$defs", {}), "Problem": problem}


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return what a route says in OpenAPI of its answers with these statuses."""
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {MEDIA_TYPE: {"schema": schema}},
        }
        for status in statuses
    }


COMMON = responses(400, 401, 403, 408, 413, 422, 429, 500, 503, 504)
"""What any route of the service may answer with."""
