"""The application as a whole: who may ask for what, health, metrics, and its description."""

from __future__ import annotations

import re
from random import Random
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from prometheus_client.parser import text_string_to_metric_families

from ledger.domain.requests import RequestHandled
from ledger.http.permissions import ROLES
from ledger.services import Ledger
from ledger.settings import Settings
from projections.groups import TRADING
from projections.projector import Projector
from projections.serving.app import make_app
from projections.serving.running import Parts
from tests.projections.random_events import random_events
from tests.projections.serving.conftest import Open
from tests.projections.serving.people import a_key, a_token, a_user
from tests.projections.support import append

PUBLIC = re.compile(
    r"GET /health/(live|ready)|GET /metrics|POST /sessions(/refresh)?|GET /log/(?!tile/entries).+"
    r"|GET /proofs/consistency|[A-Z]+ /console(/.*)?"
)
"""What needs no key and no token: the public log is public, and pages have log-ins."""

METRICS = {"Authorization": "Bearer a token of the metrics"}
READS = ("workers", "parked", "rebuilds", "pool", "tables")
WRITES: dict[str, dict[str, Any]] = {
    "parked/retry": {"table": "orders", "value": "x"},
    "parked/skip": {"table": "orders", "offset": 0, "reason": "no reason"},
    "rebuilds": {"tables": []},
}
"""Commands that change nothing here: there is nothing to retry or to skip, or no table."""


def routes_of(app: FastAPI) -> set[tuple[str, str]]:
    """Return method and path of all routes."""
    found = set()
    for context in iter_route_contexts(app.routes):
        for method in context.methods or ():
            found.add((method, str(context.path)))
    return found


def filled(path: str) -> str:
    """Put something into the parameters of a path."""
    uuid = "01960f7a-0000-7000-8000-000000000001"
    return re.sub(r"\{[a-z_]*(id|key)(:uuid)?\}", uuid, path).replace("{", "").replace("}", "")


async def test_no_route_answers_a_stranger(app: FastAPI, client: httpx.AsyncClient) -> None:
    """Without credentials, or with bad ones, all routes but the public ones answer 401."""
    routes = {each for each in routes_of(app) if not PUBLIC.fullmatch(" ".join(each))}
    assert len(routes) > 60
    strangers = [{}, {"X-API-Key": "tlk_no"}, {"Authorization": "Bearer e30.e30.e30"}]
    for method, path in sorted(routes):
        for headers in strangers:
            answer = await client.request(method, filled(path), headers=headers)
            assert answer.status_code == 401, (method, path, answer.text)
            assert "www-authenticate" in answer.headers


@pytest.mark.parametrize("role", ROLES)
async def test_who_may_operate(role: str, ledger: Ledger, client: httpx.AsyncClient) -> None:
    """Each role may look and act as its permissions say, by key and by token alike."""
    user_id = await a_user(ledger, role)
    for headers in (await a_key(ledger, user_id, role), await a_token(client, role)):
        for path in READS:
            answer = await client.get(f"/operations/{path}", headers=headers)
            is_allowed = "operations:read" in ROLES[role]
            assert answer.status_code == (200 if is_allowed else 403), answer.text
        for path, body in WRITES.items():
            answer = await client.post(f"/operations/{path}", headers=headers, json=body)
            is_allowed = "operations:write" in ROLES[role]
            assert answer.status_code in ({404, 422} if is_allowed else {403}), answer.text


async def test_operators_see_what_there_is(
    ledger: Ledger, app: FastAPI, client: httpx.AsyncClient
) -> None:
    """Lag, sizes and connections are those of the tables behind the service."""
    user_id = await a_user(ledger, "auditor")
    headers = await a_key(ledger, user_id, "auditor")
    await append(ledger.journal, random_events(Random(2), 40))
    await Projector(app.state.database, ledger.journal, TRADING).catch_up()
    workers = (await client.get("/operations/workers", headers=headers)).json()
    assert [each["group"] for each in workers] == ["trading", "marks", "postings"]
    assert workers[0]["checkpoint"] >= 40
    assert workers[1]["lag_events"] > 40
    tables = (await client.get("/operations/tables", headers=headers)).json()
    assert next(each for each in tables if each["table"] == "users")["rows"] > 0
    assert (await client.get("/operations/pool", headers=headers)).json()["open"] > 0
    assert (await client.get("/operations/parked", headers=headers)).json() == []
    assert (await client.get("/operations/rebuilds", headers=headers)).json() == []


async def test_bad_commands_of_operators_are_problems(
    ledger: Ledger, client: httpx.AsyncClient
) -> None:
    """What is not parked is not found; unknown tables and empty reasons are refused."""
    headers = await a_key(ledger, await a_user(ledger, "operator"), "operator")
    asked = {
        ("parked/retry", 404): {"table": "orders", "value": "nothing"},
        ("parked/retry", 422): {"table": "events", "value": "x"},
        ("parked/skip", 422): {"table": "orders", "offset": 1, "reason": " "},
        ("rebuilds", 422): {"tables": ["users"], "unknown": 1},
    }
    for (path, status), body in asked.items():
        answer = await client.post(f"/operations/{path}", headers=headers, json=body)
        assert answer.status_code == status, answer.text
        assert answer.headers["content-type"] == "application/problem+json"


async def test_metrics_are_for_whoever_has_their_token(
    client: httpx.AsyncClient, ledger: Ledger, sqlite_url: str, open_app: Open
) -> None:
    """Nobody else sees them, whatever else they may do; without a token there are none."""
    key = await a_key(ledger, await a_user(ledger, "admin"), "admin")
    for headers in ({}, key, {"Authorization": "Bearer another"}, {"Authorization": "bearer"}):
        assert (await client.get("/metrics", headers=headers)).status_code == 401
    answer = await client.get("/metrics", headers=METRICS)
    assert answer.status_code == 200
    names = {each.name for each in text_string_to_metric_families(answer.text)}
    assert {"ledger_http_requests", "projections_lag_seconds"} <= names
    async with open_app(Settings(database_url=sqlite_url), Parts()) as (_, other):
        assert (await other.get("/metrics", headers=METRICS)).status_code == 404


async def test_metrics_know_routes_under_a_prefix_by_their_whole_path(
    client: httpx.AsyncClient,
) -> None:
    """The console's pages are told from routes of the API that are called alike."""
    await client.get("/console/login")
    await client.get("/health/live")
    text = (await client.get("/metrics", headers=METRICS)).text
    assert 'ledger_http_requests_total{method="GET",route="/health/live",status="200"} 1.0' in text
    assert 'route="/console/login"' in text


async def test_the_service_is_ready(client: httpx.AsyncClient) -> None:
    """Anybody may ask whether it lives and can work."""
    assert (await client.get("/health/live")).json() == {"status": "live"}
    answer = await client.get("/health/ready")
    assert answer.status_code == 200
    checks = {"database": "ok", "schema": "ok", "projections": "ok", "running": "ok"}
    assert answer.json() == {"status": "ready", "checks": checks}


async def test_a_service_that_ends_is_not_ready(app: FastAPI, client: httpx.AsyncClient) -> None:
    """It lives, but takes no more work; what was seen a moment ago does not count."""
    await client.get("/health/ready")
    app.state.readiness.is_stopping = True
    answer = await client.get("/health/ready")
    assert (answer.status_code, answer.json()["checks"]["running"]) == (503, "failed")
    assert (await client.get("/health/live")).status_code == 200


async def test_a_database_that_is_not_migrated_is_not_ready(
    app: FastAPI, client: httpx.AsyncClient
) -> None:
    """Nor does the answer say more than that."""
    async with app.state.database.transaction() as connection:
        await connection.exec_driver_sql("ALTER TABLE parked_keys RENAME TO elsewhere")
    answer = await client.get("/health/ready")
    assert answer.status_code == 503
    assert answer.json()["checks"] == {
        "database": "ok",
        "schema": "failed",
        "projections": "unknown",
        "running": "ok",
    }


async def test_the_description_is_for_those_who_may_call(
    app: FastAPI, ledger: Ledger, client: httpx.AsyncClient
) -> None:
    """It names each route once, with the ways to say who one is; there are no pages made of it."""
    headers = await a_key(ledger, await a_user(ledger, "trader"), "trader")
    described = (await client.get("/openapi.json", headers=headers)).json()
    assert described["info"]["title"] == "Trading ledger"
    assert set(described["components"]["securitySchemes"]) >= {"ApiKey", "Bearer"}
    ids = [way["operationId"] for ways in described["paths"].values() for way in ways.values()]
    assert len(set(ids)) == len(ids) > 50
    for path in ("/docs", "/redoc"):
        assert (await client.get(path, headers=headers)).status_code == 404


async def test_all_methods_of_a_path_are_named(client: httpx.AsyncClient) -> None:
    """Whoever uses another is told each that there is, also where several routes have them."""
    answer = await client.put("/operations/rebuilds")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, POST")
    answer = await client.put("/positions/protection")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


async def test_a_page_that_asks_for_itself_is_recorded_once(
    sqlite_url: str, open_app: Open
) -> None:
    """The console's page of operations has one entry while it is looked at; others, each time."""
    settings = Settings(database_url=sqlite_url, http_audits_reads=True)
    async with open_app(settings, Parts()) as (app, client):
        await a_user(app.state.ledger, "auditor")
        token = (await a_token(client, "auditor"))["Authorization"].removeprefix("Bearer ")
        cookies = {"Cookie": f"ledger_session={token}"}
        for path in ("/operations", "/operations", "/security", "/operations", "/security"):
            assert (await client.get(f"/console{path}", headers=cookies)).status_code == 200
        events = [each.event async for each in app.state.ledger.journal.read()]
    actions = [each.action for each in events if isinstance(each, RequestHandled)]
    assert actions == [f"GET /console/{page}" for page in ("operations", "security", "security")]


def test_without_the_console_there_is_none(sqlite_url: str) -> None:
    """Nothing of it is there."""
    app = make_app(Settings(database_url=sqlite_url), parts=Parts(console=False))
    assert not [path for _, path in routes_of(app) if path.startswith("/console")]
