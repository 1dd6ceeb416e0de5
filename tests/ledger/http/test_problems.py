"""Every answer that is no success says what went wrong, in one form, and gives nothing away."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.exceptions import ResponseValidationError
from pydantic import BaseModel, Field

import projections.serving.app  # noqa: F401 - with it all parts that define kinds are there
from ledger import errors
from ledger.deciding import StreamMoved
from ledger.errors import LedgerError
from ledger.http import errors as http_errors
from ledger.http import problems, routing
from ledger.http.middleware import BodyTooLarge
from ledger.security.master_keys import DataKeyUnusable
from ledger.services.sessions import RefreshOutcomeUnknown
from ledger.services.users import ErasureUnfinished
from tests.ledger.http.applications import bare, client_of
from tests.ledger.support import an_id

SECRET = "hunter2"
DOCUMENT = Path(__file__).parents[3] / "docs" / "problems.md"

CASES: list[tuple[Exception, int, str, dict[str, Any]]] = [
    (errors.InvalidEvent("no", field="data.x"), 422, "invalid-event", {"field": "data.x"}),
    (errors.UnknownEventType("no"), 422, "unknown-event-type", {"field": None}),
    (errors.InvalidCommand("Place", "price", "no"), 422, "invalid-command", {"field": "price"}),
    (errors.VersionConflict("s", 1, 2), 409, "version-conflict", {"expected": 1, "actual": 2}),
    (StreamMoved("s", 1, 2), 412, "precondition-failed", {"stream": "s"}),
    (errors.EventExists(SECRET, ("Noted",), 1, 2), 409, "event-exists", {"offset": 2}),
    (errors.TagTaken(SECRET, 7), 409, "tag-taken", {"offset": 7}),
    (errors.TooManyEvents("s", 3, 60), 429, "too-many-events", {"count": 3}),
    (errors.CommandRefused("Fill", "o", "Done", "no"), 409, "command-refused", {"state": "Done"}),
    (errors.Contended("Fill", "o", 20), 503, "contended", {}),
    (errors.EventIdConflict(an_id(1), 4, "no"), 409, "event-id-conflict", {"offset": 4}),
    (errors.AppendOutcomeUnknown(SECRET), 503, "outcome-unknown", {}),
    (RefreshOutcomeUnknown(SECRET), 503, "refresh-outcome-unknown", {}),
    (errors.Overloaded("full"), 503, "overloaded", {}),
    (errors.StoreUnavailable(SECRET), 503, "store-unavailable", {}),
    (errors.SchemaMissing(SECRET), 503, "store-unavailable", {}),
    (DataKeyUnusable(SECRET), 503, "store-unavailable", {}),
    (errors.JournalNotFound("j"), 404, "journal-not-found", {}),
    (errors.JournalExists("j"), 409, "journal-exists", {}),
    (errors.StoredEventInvalid(3, SECRET), 503, "event-unknown", {"offset": 3}),
    (LedgerError(SECRET), 500, "internal", {}),
    (ErasureUnfinished(an_id(1), LedgerError(SECRET)), 503, "erasure-unfinished", {}),
    (http_errors.Unauthenticated(), 401, "unauthenticated", {}),
    (http_errors.TokenRefused("expired"), 401, "unauthenticated", {}),
    (http_errors.CommandOnly("UserErased"), 422, "command-only", {}),
    (http_errors.InvalidCredentials(), 401, "invalid-credentials", {}),
    (http_errors.Forbidden("act:any"), 403, "forbidden", {"permission": "act:any"}),
    (http_errors.RateLimited(60), 429, "rate-limited", {}),
    (http_errors.IdTaken(), 409, "id-taken", {}),
    (http_errors.IfMatchUnsupported(), 400, "if-match-unsupported", {}),
    (http_errors.IdempotencyKeyReused(), 422, "idempotency-key-reused", {}),
    (HTTPException(404, "no such thing"), 404, "not-found", {}),
    (BodyTooLarge(9), 413, "body-too-large", {}),
    (ValueError(SECRET), 500, "internal", {}),
]


class Asked(BaseModel):
    """A body."""

    count: int = Field(le=10)
    kind: str = "a"


def refuse() -> None:
    """Turn everybody away."""
    raise http_errors.Unauthenticated


def failing(error: Exception) -> FastAPI:
    """Return an application whose routes raise an error, and check bodies."""
    app = bare()
    routes = routing.router("tests")

    @routes.api_route("/error", methods=["GET", "POST"], include_in_schema=False)
    async def raising() -> None:
        raise error

    @routes.post("/asked")
    async def asked(body: Asked) -> int:
        return body.count

    @routes.post("/closed", dependencies=[Depends(refuse)])
    async def closed(body: Asked) -> int:
        return body.count

    @routes.get("/wrong")
    async def wrong() -> Annotated[int, Field(le=1)]:
        return SECRET  # type: ignore[return-value] # that is what is wrong

    app.include_router(routes)
    return app


@pytest.mark.parametrize(
    ("error", "status", "slug", "fields"), CASES, ids=[type(case[0]).__name__ for case in CASES]
)
async def test_each_error_has_its_problem(
    error: Exception, status: int, slug: str, fields: dict[str, Any]
) -> None:
    """Its status, its stable type, a text, the request's id, and what the error knows besides."""
    async with client_of(failing(error)) as client:
        answer = await client.get("/error", headers={"X-Request-ID": "r-1"})
    body = answer.json()
    assert (answer.status_code, answer.headers["content-type"]) == (status, problems.MEDIA_TYPE)
    assert (body["type"], body["status"]) == (f"urn:trading-ledger:problem:{slug}", status)
    assert (body["instance"], bool(body["title"]), bool(body["detail"])) == ("r-1", True, True)
    assert body.items() >= fields.items()
    assert SECRET not in answer.text
    may_repeat = status in (429, 503) and slug != "refresh-outcome-unknown"
    assert ("retry-after" in answer.headers) is may_repeat
    assert ("www-authenticate" in answer.headers) is (status == 401)


def test_no_error_is_left_to_chance() -> None:
    """All errors of the ledger's core and of its HTTP side are among the cases."""
    own = {
        each
        for module in (errors, http_errors)
        for each in vars(module).values()
        if isinstance(each, type) and issubclass(each, LedgerError)
    }
    assert own - {type(error) for error, *_ in CASES} == {errors.ConditionFailed}


@pytest.mark.parametrize(
    ("error", "header", "slug"),
    [
        (errors.VersionConflict("s", 1, 2), {"If-Match": '"1"'}, "precondition-failed"),
        (errors.VersionConflict("s", 0, 2), {"If-None-Match": "*"}, "precondition-failed"),
        (errors.VersionConflict("s", 3, 2), {"If-Match": '"1"'}, "version-conflict"),
        (errors.VersionConflict("s", 3, 2), {"If-None-Match": "*"}, "version-conflict"),
        (errors.EventIdConflict(an_id(1), 4, "no"), {"Idempotency-Key": "k"}, "key-reused"),
    ],
)
async def test_what_was_asked_for_makes_a_problem_more_precise(
    error: Exception, header: dict[str, str], slug: str
) -> None:
    """A version that a header gave, and ids that follow from the Idempotency-Key."""
    async with client_of(failing(error)) as client:
        body = (await client.post("/error", headers=header)).json()
    statuses = {"precondition-failed": 412, "version-conflict": 409, "key-reused": 422}
    assert body["type"].endswith(slug)
    assert body["status"] == statuses[slug]


async def test_a_wrong_body_is_not_repeated() -> None:
    """What is wrong is said with its place, without the value; the framework's words stay away."""
    async with client_of(failing(ValueError())) as client:
        for content, loc, kind in (
            (f'{{"count": "{SECRET}"}}', ["body", "count"], "int_parsing"),
            ('{"kind": "x"}', ["body", "count"], "missing"),
            (f'["{SECRET}"]', ["body"], "model_attributes_type"),
            (f"{{{SECRET}", ["body"], "json_invalid"),
            ("[" * 100_000, ["body"], "json_invalid"),
            ("", ["body"], "missing"),
        ):
            headers = {"Content-Type": "application/json"}
            answer = await client.post("/asked", content=content, headers=headers)
            [error] = answer.json()["errors"]
            assert (answer.status_code, error["loc"], error["type"]) == (422, loc, kind)
            assert SECRET not in answer.text
            assert set(error) == {"loc", "message", "type"}


async def test_strangers_learn_nothing_of_their_bodies() -> None:
    """Whoever is not known gets 401 whatever they send: it is asked for first."""
    async with client_of(failing(ValueError())) as client:
        for content in ("", "{", '{"count": 99}', '{"count": 1}', "\xff"):
            headers = {"Content-Type": "application/json"}
            answer = await client.post("/closed", content=content, headers=headers)
            assert answer.status_code == 401


async def test_what_the_framework_refuses_is_a_problem_too() -> None:
    """Unknown paths and methods, with the methods that there are; and any status of a route's."""
    async with client_of(failing(HTTPException(418, "short"))) as client:
        unknown = await client.get("/nowhere")
        wrong = await client.put("/asked")
        blank = (await client.get("/error")).json()
    assert unknown.json()["type"].endswith(":not-found")
    assert (wrong.status_code, wrong.headers["Allow"]) == (405, "POST")
    assert wrong.json()["type"].endswith(":method-not-allowed")
    assert (blank["type"], blank["title"], blank["detail"]) == (
        "about:blank",
        "I'm a Teapot",
        "short",
    )


@pytest.mark.parametrize("path", ["/error", "/wrong"])
async def test_the_log_says_where_it_broke(path: str, caplog: pytest.LogCaptureFixture) -> None:
    """With the request's id, and without the text, which may hold what was sent or stored."""
    error = ValueError(SECRET)
    error.__cause__ = errors.StoreUnavailable("the database is away")
    with caplog.at_level(logging.INFO):
        async with client_of(failing(error)) as client:
            answer = await client.get(path, headers={"X-Request-ID": "r-1"})
    assert answer.json()["type"].endswith(":internal")
    [record] = [each for each in caplog.records if each.name == "ledger.http"]
    assert vars(record)["request_id"] == "r-1"
    kind = "ValueError" if path == "/error" else ResponseValidationError.__name__
    assert re.match(rf"request failed: {kind} at \S+\.py:\d+", record.getMessage())
    assert ("the database is away" in record.getMessage()) is (path == "/error")
    assert SECRET not in caplog.text


async def test_the_description_of_a_service_has_the_form_of_problems() -> None:
    """Each route refers to it by every status that any route may have."""
    schema = failing(ValueError()).openapi()
    assert {"Problem", "ProblemError"} <= set(schema["components"]["schemas"])
    assert "HTTPValidationError" not in schema["components"]["schemas"]
    answers = schema["paths"]["/asked"]["post"]["responses"]
    assert set(answers) == {"200", *map(str, problems.COMMON)}
    content = answers["503"]["content"]
    assert content == {
        "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}
    }


async def test_others_may_have_problems_of_their_own() -> None:
    """An application says what kind its errors are, and those that inherit from them."""

    class Closed(Exception):
        """The market is."""

    class ClosedEarly(Closed):
        """It was to be open."""

    kind = problems.Kind("closed", 409, "The market is closed", retry_after_seconds=9)
    assert problems.kind_of(ClosedEarly()) is problems.INTERNAL
    problems.define(Closed, kind)
    try:
        assert problems.kind_of(ClosedEarly()) is kind
        assert kind in problems.kinds()
    finally:
        del problems._kinds[Closed]


def test_every_problem_is_described() -> None:
    """docs/problems.md has a row for each type of the whole service, with its status."""
    rows = re.findall(r"^\| `([a-z-]+)` \| (\d{3}) \|", DOCUMENT.read_text("utf-8"), re.MULTILINE)
    assert rows == [(kind.slug, str(kind.status)) for kind in problems.kinds()]


def test_ids_of_problems_are_names() -> None:
    """The types are URNs, each for one status."""
    slugs = [kind.slug for kind in problems.kinds()]
    assert len(set(slugs)) == len(slugs)
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", slug) for slug in slugs)


@pytest.mark.parametrize("error", [errors.StoreUnavailable(SECRET), errors.Overloaded("full")])
async def test_after_a_command_nothing_is_said_to_be_unstored(error: Exception) -> None:
    """Whoever is told so would ask again under another key, and have it stored twice."""
    app = bare()

    @app.post("/late")
    async def late(request: Request) -> None:
        request.state.has_stored = True
        raise error

    async with client_of(app) as client:
        answer = await client.post("/late")
    assert answer.json()["type"].endswith(":outcome-unknown")
    assert "nothing" not in answer.text
