"""Headers of commands: who, which version, once only, and how long to wait."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated
from uuid import UUID, uuid4

import httpx
import pytest
from fastapi import Depends, FastAPI, Response

from ledger.errors import Overloaded, StoreUnavailable
from ledger.event import RecordedEvent
from ledger.http import install, routing
from ledger.http.calls import Call, call, wait_seconds_of
from ledger.http.middleware import WAITING_SHARE
from ledger.services import Ledger
from tests.ledger.http.applications import client_of, until
from tests.ledger.http.service import Service
from tests.ledger.services.support import a_ledger
from tests.ledger.support import read_all, settings_for

router = routing.router("tests")


@router.post("/users/{user_id}/hold")
async def hold(
    user_id: UUID, by: Annotated[Call, Depends(call("a"))], response: Response
) -> list[int]:
    """Decide on a stream."""
    done = await by.ledger.users.hold(user_id=user_id, reason="r", origin=by.origin)
    assert done.appended is not None
    await by.answer(response, done.appended.size, done.appended)
    return list(done.appended.offsets)


@router.post("/marks")
async def mark(
    by: Annotated[Call, Depends(call("a", decides=False))], response: Response, price: str = "1"
) -> list[int]:
    """Record a fact."""
    marked = await by.ledger.markets.mark(token="BTC", price=price, origin=by.origin)
    await by.answer(response, marked.appended.size, marked.appended)
    return list(marked.appended.offsets)


@router.get("/for")
async def whom(by: Annotated[Call, Depends(call("a"))], user_id: UUID | None = None) -> UUID:
    """Say for whom."""
    return by.for_user(user_id)


@pytest.fixture
async def service(sqlite_url: str) -> AsyncIterator[Service]:
    """The routes above, with a ledger."""
    app = FastAPI()
    install(app, settings_for(sqlite_url, http_timeout_seconds=5))
    app.include_router(router)
    async with a_ledger(sqlite_url) as ledger, client_of(app) as client:
        app.state.ledger = ledger
        yield Service(app, ledger, client)


async def last(ledger: Ledger) -> RecordedEvent:
    """Return the last event of the journal."""
    return (await read_all(ledger.journal))[-1]


async def test_events_say_where_they_come_from(service: Service) -> None:
    """The key or the user, the request's id, its trace and the client's address."""
    user_id = await service.user()
    headers = await service.key("a", user_id=user_id)
    trace = uuid4()
    traced = {"traceparent": f"00-{trace.hex}-b7ad6b7169203331-01", "X-Request-ID": "r-1"}
    answer = await service.client.post("/marks", headers=headers | traced)
    assert answer.status_code == 200
    metadata = (await last(service.ledger)).metadata
    [used] = [e for e in await read_all(service.ledger.journal) if e.type == "ApiKeyUsed"]
    assert metadata.actor == f"key:{used.event.key_id}"  # type: ignore[attr-defined]
    assert (metadata.request_id, metadata.correlation_id) == ("r-1", trace)
    assert (metadata.ip_address, metadata.causation_id) == ("127.0.0.1", None)
    assert used.metadata.correlation_id == trace


async def test_a_version_that_is_given_must_be_the_streams(service: Service) -> None:
    """Else nothing is stored and the answer says both; it is not tried again."""
    user_id = await service.user()
    headers = await service.key("a")
    path = f"/users/{user_id}/hold"
    stale = await service.post(path, headers, If_Match='"0"')
    assert (stale.status_code, stale.json()["expected"], stale.json()["actual"]) == (412, 0, 1)
    assert stale.json()["type"].endswith(":precondition-failed")
    right = await service.post(path, headers, If_Match='"1"')
    assert (right.status_code, right.headers["Ledger-Size"]) == (200, str(right.json()[0] + 1))
    for malformed in ("3", '""', '"-1"', '"1', "*", 'W/"1"', '"' + "9" * 19 + '"'):
        assert (await service.post(path, headers, If_Match=malformed)).status_code == 422


async def test_if_match_is_refused_where_it_means_nothing(service: Service) -> None:
    """A fact is recorded whatever was before, so there is no version to compare."""
    answer = await service.post("/marks", await service.key("a"), If_Match='"1"')
    assert (answer.status_code, answer.json()["type"].rpartition(":")[2]) == (
        400,
        "if-match-unsupported",
    )


async def test_a_repeated_request_is_stored_once(service: Service) -> None:
    """The second answer has the first one's offsets; another user or route has keys of its own."""
    headers, others = await service.key("a"), await service.key("a")
    user_id = await service.user()
    for path, sender in (
        ("/marks", headers),
        (f"/users/{user_id}/hold", headers),
        ("/marks", others),
    ):
        size = await service.ledger.journal.size()
        first = await service.post(path, sender, Idempotency_Key="k")
        again = await service.post(path, sender, Idempotency_Key="k")
        assert (first.status_code, again.status_code) == (200, 200)
        assert first.json() == again.json() == [size + 1]  # after the use of the API key
    assert sum(type(e).__name__ == "PriceMarked" for e in await service.events()) == 2


async def test_a_key_stands_for_one_body(service: Service) -> None:
    """Another body under it is refused, whether the event would be the same or not."""
    headers = await service.key("a")
    user_id = await service.user()
    path = f"/users/{user_id}/hold"
    for target, body in ((path, {"x": 1}), ("/marks", {"x": 1}), ("/marks?price=2", None)):
        await service.post(target.partition("?")[0], headers, Idempotency_Key="k")
        answer = await service.post(target, headers, body, Idempotency_Key="k")
        assert (answer.status_code, answer.json()["type"].rpartition(":")[2]) == (
            422,
            "idempotency-key-reused",
        )
    for malformed in ("", " ", "x" * 256, "\u00e9"):
        encoded = [(b"Idempotency-Key", malformed.encode("latin-1"))]
        found = [(k.encode(), v.encode()) for k, v in headers.items()]
        answer = await service.client.post("/marks", headers=encoded + found)
        assert answer.status_code == 422


async def test_a_repeated_request_may_give_the_version_that_it_had(service: Service) -> None:
    """Its own event has moved the stream: that is no conflict, as for who lost the answer."""
    headers = await service.key("a")
    path = f"/users/{await service.user()}/hold"
    first = await service.post(path, headers, If_Match='"1"', Idempotency_Key="k")
    again = await service.post(path, headers, If_Match='"1"', Idempotency_Key="k")
    assert (first.status_code, again.json()) == (200, first.json())
    stale = await service.post(path, headers, If_Match='"1"', Idempotency_Key="l")
    assert stale.status_code == 412


async def test_of_many_at_one_version_one_is_let_through(service: Service) -> None:
    """Commands that were decided by the same version do not follow one another."""
    headers = await service.key("a")
    path = f"/users/{await service.user()}/hold"
    answers = await asyncio.gather(*(service.post(path, headers, If_Match='"1"') for _ in range(5)))
    assert sorted(answer.status_code for answer in answers) == [200, 412, 412, 412, 412]


async def test_one_acts_for_oneself(service: Service) -> None:
    """For another only with the permission for that."""
    user_id, other = await service.user(), await service.user()
    own = await service.key("a", user_id=user_id)
    anyone = await service.key("a", "act:any", user_id=user_id)
    for headers, asked, status in ((own, other, 403), (own, user_id, 200), (anyone, other, 200)):
        answer = await service.client.get("/for", headers=headers, params={"user_id": str(asked)})
        assert answer.status_code == status
    assert (await service.client.get("/for", headers=own)).json() == str(user_id)


async def wait_for(
    service: Service, prefer: str, *, is_reached: bool
) -> tuple[list[float], httpx.Response]:
    """Send a command with a preference; return how long was waited for, and the answer."""
    waited: list[float] = []

    async def wait_projected(size: int, timeout_seconds: float) -> bool:
        waited.append(timeout_seconds)
        return is_reached and size == await service.ledger.journal.size()

    service.app.state.wait_projected = wait_projected
    return waited, await service.post("/marks", await service.key("a"), Prefer=prefer)


async def test_one_may_wait_to_read_what_one_wrote(service: Service) -> None:
    """The tables are waited for as long as is preferred, within the request's time."""
    waited, answer = await wait_for(service, "handling=lenient, wait=2", is_reached=True)
    assert (waited, answer.headers["Preference-Applied"]) == ([2.0], "wait=2")
    waited, answer = await wait_for(service, "wait=999", is_reached=False)
    assert (waited, answer.status_code) == ([4.0], 200)
    assert "Preference-Applied" not in answer.headers
    del service.app.state.wait_projected
    answer = await service.post("/marks", await service.key("a"), Prefer="wait=2")
    assert (answer.status_code, "Preference-Applied" in answer.headers) == (200, False)


@pytest.mark.parametrize(
    ("prefer", "seconds"),
    [
        (None, None),
        ("wait=5", 5),
        ('respond-async; wait="7"', 7),
        ("Wait = 3 , x", 3),
        ("wait=1.5", None),
        ("wait=-1", None),
        ("await=5", None),
        ("wait=five", None),
    ],
)
def test_other_preferences_are_left_alone(prefer: str | None, seconds: float | None) -> None:
    """What is not understood is no error, as RFC 7240 wants it."""
    assert wait_seconds_of(prefer) == seconds


async def test_tables_that_cannot_be_waited_for_hide_nothing(service: Service) -> None:
    """What is stored is answered so, whatever goes wrong while the tables are waited for."""
    for error in (StoreUnavailable("away"), Overloaded("full"), ValueError("hunter2")):

        async def wait_projected(size: int, seconds: float, error: Exception = error) -> bool:
            raise error

        service.app.state.wait_projected = wait_projected
        answer = await service.post("/marks", await service.key("a"), Prefer="wait=2")
        assert (answer.status_code, "Preference-Applied" in answer.headers) == (200, False)
        assert answer.headers["Ledger-Size"] == str(await service.ledger.journal.size())


async def test_who_waits_for_the_tables_keeps_nobody_out(sqlite_url: str) -> None:
    """They have no place meanwhile; where very many wait, the next is answered without."""
    app, shown, waiting = FastAPI(), asyncio.Event(), 0

    async def wait_projected(size: int, seconds: float) -> bool:
        nonlocal waiting
        waiting += 1
        return await shown.wait()

    app.state.wait_projected = wait_projected
    install(app, settings_for(sqlite_url, http_requests_max=1))
    app.include_router(router)
    async with a_ledger(sqlite_url) as ledger, client_of(app) as client:
        app.state.ledger = ledger
        service = Service(app, ledger, client)
        headers = await service.key("a")
        tasks = []
        for number in range(WAITING_SHARE):
            post = service.post("/marks", headers, Prefer="wait=9")
            tasks.append(asyncio.create_task(post))
            await until(lambda expected=number + 1: waiting == expected)  # type: ignore[misc]
        for prefer in ("wait=9", ""):
            answer = await service.post("/marks", headers, Prefer=prefer)
            assert (answer.status_code, "Preference-Applied" in answer.headers) == (200, False)
        shown.set()
        for answer in await asyncio.gather(*tasks):
            assert answer.headers["Preference-Applied"] == "wait=9"
        answer = await service.post("/marks", headers, Prefer="wait=9")
        assert answer.headers["Preference-Applied"] == "wait=9"


async def test_an_id_may_be_spelled_otherwise(service: Service) -> None:
    """It is the same request: letters of another size and no hyphens make no other command."""
    headers, user_id = await service.key("a"), await service.user()
    found = [
        await service.post(f"/users/{spelled}/hold", headers, Idempotency_Key="k")
        for spelled in (str(user_id), str(user_id).upper(), user_id.hex)
    ]
    assert [each.status_code for each in found] == [200] * 3
    assert len({str(each.json()) for each in found}) == 1
    other = await service.user()
    answer = await service.post(f"/users/{other}/hold", headers, Idempotency_Key="k")
    assert answer.json() != found[0].json()


async def test_nobody_can_guess_a_body_by_what_is_stored_of_it(
    service: Service, migrated_sqlite: Path, tmp_path: Path
) -> None:
    """Another journal has another key, so the same request leaves something else there."""
    user_id = await service.user("ann")
    causes = set()
    file = shutil.copy(migrated_sqlite, tmp_path / "other.db")
    async with a_ledger(f"sqlite:///{file}") as other:
        await other.users.register(username="ann", user_id=user_id)
        for ledger in (service.ledger, other, service.ledger):
            service.app.state.ledger = ledger
            there = Service(service.app, ledger, service.client)
            headers = await there.key("a", user_id=user_id)
            await there.post("/marks", headers, {"secret": 1}, Idempotency_Key="k")
            marks = [e for e in await read_all(ledger.journal) if e.type == "PriceMarked"]
            causes |= {each.metadata.causation_id for each in marks}
            assert len(marks) == 1
    assert len(causes) == 2
    assert None not in causes
