"""Users over HTTP: who may do what to whom, and that nobody makes themselves more."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from ledger.domain.users import EmailChanged, PasswordChanged, RolesChanged, UserRegistered
from ledger.http.permissions import PERMISSIONS
from tests.ledger.http.service import PASSWORD, Service, a_service

NEW_PASSWORD = "an engine weaves algebra"
CHANGES: dict[str, dict[str, Any]] = {
    "change-email": {"email": "ada@example.org"},
    "change-permissions": {"permissions": ["own:read"]},
    "change-roles": {"roles": []},
    "deactivate": {},
    "reactivate": {},
    "lock": {"locked_until": "2999-01-01T00:00:00Z"},
    "unlock": {},
    "hold": {"reason": "case 4711"},
    "release": {"reason": "case 4711"},
    "erase": {"reason": "request 17"},
}


@pytest.fixture
async def service(sqlite_url: str) -> AsyncIterator[Service]:
    """A service on SQLite."""
    async with a_service(sqlite_url) as service:
        yield service


async def admin(service: Service) -> dict[str, str]:
    """Return the headers of somebody with all permissions."""
    return await service.key(*PERMISSIONS)


async def succeeds(service: Service, username: str, password: str) -> bool:
    """Whether somebody can log in so."""
    return (await service.ledger.users.login(username=username, password=password)).succeeded


async def test_a_user_is_registered_once(service: Service) -> None:
    """The same request again is a 200, though hashes differ; a name that is taken is a 409."""
    headers = await admin(service)
    ada = {"username": "ada", "password": PASSWORD, "email": "ada@example.org", "roles": ["trader"]}
    first = await service.post("/users", headers, ada, Idempotency_Key="u")
    again = await service.post("/users", headers, ada, Idempotency_Key="u")
    assert (first.status_code, again.status_code) == (201, 200), first.text
    assert again.json() == first.json() | {"duplicate": True}
    assert await succeeds(service, "ada", PASSWORD)
    taken = await service.post("/users", headers, {"username": "ADA"})
    assert (taken.status_code, taken.json()["type"][-9:]) == (409, "tag-taken")
    events = [each for each in await service.events() if isinstance(each, UserRegistered)]
    [user] = [each for each in events if each.username == "ada"]
    assert (str(user.user_id), user.roles) == (first.json()["user_id"], ("trader",))


async def test_names_that_nobody_can_have_are_refused(service: Service) -> None:
    """Each by its field, without the value in the answer."""
    headers = await admin(service)
    for field, value in (
        ("username", ""),
        ("username", " ada"),
        ("username", "ada@secret"),
        ("username", "a\x00secret"),
        ("username", "secret\ud800"),
        ("username", "secret" * 50),
        ("email", "secret"),
        ("email", "a@b@secret"),
        ("email", "a @secret"),
        ("password", ""),
        ("password", "secret" * 200),
        ("password", "secret\ud800"),
        ("roles", ["trader", "trader"]),
        ("roles", ["secret\x1b"]),
        ("permissions", [str(n) for n in range(101)]),
        ("permissions", "secret"),
    ):
        answer = await service.post("/users", headers, {"username": "ada"} | {field: value})
        assert answer.status_code == 422, (field, value)
        problem = answer.json()
        named = problem.get("field") or problem["errors"][0]["loc"][1]
        assert (named, "secret" in answer.text) == (field, False)


async def test_nobody_gives_what_they_do_not_have(service: Service) -> None:
    """Who may only write users registers no admin, and makes none of anybody, nor of themselves.

    Names that the service does not know are other applications', and free.
    """
    own = await service.user()
    headers = await service.key("users:write", "own:read", user_id=own)
    for path, body in (
        ("/users", {"username": "mallory", "roles": ["admin"]}),
        ("/users", {"username": "mallory", "permissions": ["own:read", "act:any"]}),
        (f"/users/{own}/change-roles", {"roles": ["trader"]}),
        (f"/users/{own}/change-permissions", {"permissions": ["orders:write"]}),
    ):
        refused = await service.post(path, headers, body)
        assert refused.status_code == 403, path
        assert refused.json()["type"].endswith(":forbidden")
    free = {"username": "eve", "roles": ["clerk"], "permissions": ["trade", "own:read"]}
    assert (await service.post("/users", headers, free)).status_code == 201
    assert not [each for each in await service.events() if isinstance(each, RolesChanged)]


async def test_each_command_needs_the_permission_and_a_user(service: Service) -> None:
    """Without `users:write` each is a 403, for a user who does not exist a 404."""
    others = await service.key(*sorted(set(PERMISSIONS) - {"users:write"}))
    headers = await admin(service)
    user_id = await service.user()
    for name, body in CHANGES.items():
        refused = await service.post(f"/users/{user_id}/{name}", others, body)
        assert (refused.status_code, refused.json()["permission"]) == (403, "users:write")
        missing = await service.post(f"/users/{uuid4()}/{name}", headers, body)
        assert missing.status_code == 404, name
    refused = await service.post("/users", others, {"username": "x"})
    assert refused.json()["permission"] == "users:write"


async def test_a_user_is_changed(service: Service) -> None:
    """Each command is stored once under its key, and what does not fit is a 409."""
    headers, user_id = await admin(service), await service.user("ada", password=PASSWORD)
    for name, body in CHANGES.items():
        path = f"/users/{user_id}/{name}"
        answers = [
            await service.post(path, headers, body, Idempotency_Key=f"{name}-{n}")
            for n in (1, 1, 2)
        ]
        codes = [answer.status_code for answer in answers]
        is_idle = name in ("change-email", "change-permissions", "change-roles", "erase")
        assert codes == [200, 200, 200 if is_idle else 409], name
        assert answers[1].json()["duplicate"]
        assert answers[0].json()["user_id"] == str(user_id)
    erased = await service.post(f"/users/{user_id}/erase", headers, {"reason": "request 17"})
    assert erased.json() | {"size": 0} == {
        "user_id": str(user_id),
        "offsets": [],
        "size": 0,
        "duplicate": True,
        "key_destroyed": False,
        "plain_events": 0,
    }


async def test_commands_that_make_no_sense_are_refused(service: Service) -> None:
    """A lock until the past is a 422, one that is shorter a 409; a case needs a readable name."""
    headers, user_id = await admin(service), await service.user()
    past = {"locked_until": "2001-01-01T00:00:00Z"}
    assert (await service.post(f"/users/{user_id}/lock", headers, past)).status_code == 422
    for year, status in (("2990", 200), ("2980", 409)):
        until = {"locked_until": f"{year}-01-01T00:00:00Z"}
        answer = await service.post(f"/users/{user_id}/lock", headers, until)
        assert answer.status_code == status
    for body in ({}, {"reason": ""}, {"reason": "a\n"}, {"reason": None}):
        assert (await service.post(f"/users/{user_id}/hold", headers, body)).status_code == 422
    assert (await service.post("/users/x/hold", headers, {"reason": "a"})).status_code == 422
    held = {"reason": "case"}
    assert (await service.post(f"/users/{user_id}/hold", headers, held)).status_code == 200
    refused = await service.post(f"/users/{user_id}/erase", headers, held)
    assert (refused.status_code, refused.json()["state"]) == (409, "held")


async def test_if_match_is_the_version_of_the_users_stream(service: Service) -> None:
    """A change decided by an older state is a 412."""
    headers, user_id = await admin(service), await service.user()
    path = f"/users/{user_id}/change-roles"
    for version, status in ((2, 412), (1, 200), (1, 412), (2, 200)):
        body = {"roles": ["trader"] if version == 1 else ["auditor"]}
        answer = await service.post(path, headers, body, If_Match=f'"{version}"')
        assert answer.status_code == status


async def test_ones_own_password_takes_the_current_one(service: Service) -> None:
    """A wrong one is a 403 and counts as a failed login; the right one lets it be changed."""
    user_id = await service.user("ada", password=PASSWORD)
    headers = await service.key("own:read", user_id=user_id)
    path = f"/users/{user_id}/change-password"
    new = {"password": NEW_PASSWORD}
    absent = await service.post(path, headers, new)
    assert (absent.status_code, absent.json()["field"]) == (422, "current_password")
    wrong = await service.post(path, headers, new | {"current_password": "a guess"})
    assert wrong.status_code == 403
    right = await service.post(path, headers, new | {"current_password": PASSWORD})
    assert right.status_code == 200, right.text
    assert await succeeds(service, "ada", NEW_PASSWORD)
    for _ in range(5):
        await service.post(path, headers, new | {"current_password": "a guess"})
    locked = await service.post(path, headers, new | {"current_password": NEW_PASSWORD})
    assert locked.status_code == 403
    assert not await succeeds(service, "ada", NEW_PASSWORD)
    assert len([e for e in await service.events() if isinstance(e, PasswordChanged)]) == 1


async def test_anothers_password_takes_all_that_they_have(service: Service) -> None:
    """Else who may write users could become an admin by way of an admin's password."""
    clerk = await service.user("clerk", password=PASSWORD, permissions=["own:read", "trade"])
    boss = await service.user("boss", password=PASSWORD, roles=["admin"])
    new = {"password": NEW_PASSWORD}

    async def change(user_id: UUID, headers: dict[str, str]) -> int:
        answer = await service.post(f"/users/{user_id}/change-password", headers, new)
        return answer.status_code

    desk = await service.key("users:write", "own:read")
    assert await change(boss, desk) == 403
    assert await change(clerk, desk) == 200
    assert await change(await service.user(), await service.key("own:read")) == 403
    assert await change(uuid4(), desk) == 404
    assert await change(boss, await admin(service)) == 200
    assert await succeeds(service, "boss", NEW_PASSWORD)
    texts = [str(each) for each in await service.events()]
    assert not any(PASSWORD in text or NEW_PASSWORD in text for text in texts)


async def test_an_address_can_be_taken_away(service: Service) -> None:
    """Null means none; the field must be there, so that nothing is taken by accident."""
    user_id = await service.user("ada", email="ada@example.org")
    headers, path = await admin(service), f"/users/{user_id}/change-email"
    assert (await service.post(path, headers, {})).status_code == 422
    assert (await service.post(path, headers, {"email": None})).status_code == 200
    [changed] = [each for each in await service.events() if isinstance(each, EmailChanged)]
    assert (changed.email, changed.previous_email) == (None, "ada@example.org")


async def test_a_lock_ends_by_itself(service: Service) -> None:
    """The time is one with a zone, to the microsecond."""
    user_id = await service.user("ada", password=PASSWORD)
    until = service.ledger.journal.now() + timedelta(hours=1)
    body = {"locked_until": until.isoformat(), "reason": "lost laptop"}
    answer = await service.post(f"/users/{user_id}/lock", await admin(service), body)
    assert answer.status_code == 200
    login = await service.ledger.users.login(username="ada", password=PASSWORD)
    assert login.locked_until == until


async def test_a_repeated_change_of_ones_own_password_is_no_guess(service: Service) -> None:
    """The old password, which it has, is not tried again; with another body it is refused."""
    user_id = await service.user("ada", password=PASSWORD)
    headers = await service.key(user_id=user_id)
    path = f"/users/{user_id}/change-password"
    new = {"password": NEW_PASSWORD, "current_password": PASSWORD}
    first = await service.post(path, headers, new, Idempotency_Key="c")
    for _ in range(6):
        again = await service.post(path, headers, new, Idempotency_Key="c")
        assert (again.status_code, again.json()) == (200, first.json() | {"duplicate": True})
    other = new | {"current_password": "a guess"}
    for body in (other, new | {"password": "another one"}):
        refused = await service.post(path, headers, body, Idempotency_Key="c")
        assert refused.json()["type"].endswith(":idempotency-key-reused")
    assert await succeeds(service, "ada", NEW_PASSWORD)
