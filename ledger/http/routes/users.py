"""Commands for users."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Annotated
from uuid import UUID

from fastapi import Depends, Response
from pydantic import SecretStr

from ledger.errors import CommandRefused, InvalidCommand
from ledger.http import routing
from ledger.http.answering import changing, making, not_found, stored
from ledger.http.calls import Call, call
from ledger.http.errors import Forbidden
from ledger.http.granting import check_granted
from ledger.http.models import (
    CaseReason,
    NewEmail,
    NewLock,
    NewPassword,
    NewPermissions,
    NewRoles,
    NewUser,
    UserErasure,
    UserStored,
    Why,
)
from ledger.http.permissions import USERS_WRITE
from ledger.services.users import UserChanged

router = routing.router("users")

Administering = Annotated[Call, Depends(call(USERS_WRITE))]
Anybody = Annotated[Call, Depends(call(None, decides=False))]

_ON_A_USER = changing(404, 409, 412)


@router.post(
    "/users",
    status_code=201,
    responses=making(UserStored, 409, 412),
)
async def register_user(body: NewUser, by: Administering, response: Response) -> UserStored:
    """Register a user.

    The username and the e-mail address are theirs alone, however they are written. Only permissions
    and roles that one has oneself can be given; names that this service does not know are free.
    """
    check_granted(by.who, body.permissions, body.roles)
    registered = await by.ledger.users.register(
        **body.given("password"), password=_revealed(body.password), origin=by.origin
    )
    fields = await stored(by, response, registered.appended)
    return UserStored(user_id=registered.user_id, **fields)


@router.post("/users/{user_id}/change-password", responses=changing(404, 409))
async def change_password(
    user_id: UUID, body: NewPassword, by: Anybody, response: Response
) -> UserStored:
    """Give a user another password; all their sessions end.

    For one's own password the current one is needed, and counts as an attempt to log in. For that
    of another user `users:write` is, and all permissions that the user has.
    """
    if user_id == by.who.user_id:
        # A repeated request has the password that it has changed itself.
        earlier = await by.ledger.users.password_changed(user_id=user_id, origin=by.origin)
        if earlier is not None:
            return await _changed(by, response, UserChanged(user_id, earlier))
        await _check_current(by, body.current_password)
    else:
        await _check_in_charge(by, user_id)
    password = body.password.get_secret_value()
    with _existing():
        done = await by.ledger.users.change_password(
            user_id=user_id, password=password, origin=by.origin
        )
    return await _changed(by, response, done)


@router.post("/users/{user_id}/change-email", responses=_ON_A_USER)
async def change_email(
    user_id: UUID, body: NewEmail, by: Administering, response: Response
) -> UserStored:
    """Give a user another e-mail address, or none."""
    with _existing():
        done = await by.ledger.users.change_email(
            user_id=user_id, email=body.email, origin=by.origin
        )
    return await _changed(by, response, done)


@router.post("/users/{user_id}/change-permissions", responses=_ON_A_USER)
async def change_permissions(
    user_id: UUID, body: NewPermissions, by: Administering, response: Response
) -> UserStored:
    """Give a user exactly these permissions; it counts from the next request on."""
    check_granted(by.who, body.permissions)
    with _existing():
        done = await by.ledger.users.change_permissions(
            user_id=user_id, permissions=body.permissions, origin=by.origin
        )
    return await _changed(by, response, done)


@router.post("/users/{user_id}/change-roles", responses=_ON_A_USER)
async def change_roles(
    user_id: UUID, body: NewRoles, by: Administering, response: Response
) -> UserStored:
    """Give a user exactly these roles; it counts from the next request on."""
    check_granted(by.who, (), body.roles)
    with _existing():
        done = await by.ledger.users.change_roles(
            user_id=user_id, roles=body.roles, origin=by.origin
        )
    return await _changed(by, response, done)


@router.post("/users/{user_id}/deactivate", responses=_ON_A_USER)
async def deactivate_user(
    user_id: UUID, body: Why, by: Administering, response: Response
) -> UserStored:
    """Keep a user, but let nobody log in as them, use their keys or go on in their sessions."""
    with _existing():
        done = await by.ledger.users.deactivate(
            user_id=user_id, reason=body.reason, origin=by.origin
        )
    return await _changed(by, response, done)


@router.post("/users/{user_id}/reactivate", responses=_ON_A_USER)
async def reactivate_user(
    user_id: UUID, body: Why, by: Administering, response: Response
) -> UserStored:
    """Let a user act again."""
    with _existing():
        done = await by.ledger.users.reactivate(
            user_id=user_id, reason=body.reason, origin=by.origin
        )
    return await _changed(by, response, done)


@router.post("/users/{user_id}/lock", responses=_ON_A_USER)
async def lock_account(
    user_id: UUID, body: NewLock, by: Administering, response: Response
) -> UserStored:
    """Let nobody log in as a user before a time; a lock can only be made longer."""
    with _existing():
        done = await by.ledger.users.lock(
            user_id=user_id,
            locked_until=body.locked_until,
            reason=body.reason,
            origin=by.origin,
        )
    return await _changed(by, response, done)


@router.post("/users/{user_id}/unlock", responses=_ON_A_USER)
async def unlock_account(
    user_id: UUID, body: Why, by: Administering, response: Response
) -> UserStored:
    """Lift the lock of an account, and forget the failures that led to it."""
    with _existing():
        done = await by.ledger.users.unlock(user_id=user_id, reason=body.reason, origin=by.origin)
    return await _changed(by, response, done)


@router.post("/users/{user_id}/hold", responses=_ON_A_USER)
async def hold_user(
    user_id: UUID, body: CaseReason, by: Administering, response: Response
) -> UserStored:
    """Place a legal hold: nobody can erase the user until it is lifted."""
    with _existing():
        done = await by.ledger.users.hold(user_id=user_id, reason=body.reason, origin=by.origin)
    return await _changed(by, response, done)


@router.post("/users/{user_id}/release", responses=_ON_A_USER)
async def release_user(
    user_id: UUID, body: CaseReason, by: Administering, response: Response
) -> UserStored:
    """Lift a legal hold."""
    with _existing():
        done = await by.ledger.users.release(user_id=user_id, reason=body.reason, origin=by.origin)
    return await _changed(by, response, done)


@router.post("/users/{user_id}/erase", responses=_ON_A_USER)
async def erase_user(
    user_id: UUID, body: CaseReason, by: Administering, response: Response
) -> UserErasure:
    """Destroy a user's personal data for good, also in the past.

    After an error ask again: it finishes what was begun.
    """
    with _existing():
        erased = await by.ledger.users.erase(user_id=user_id, reason=body.reason, origin=by.origin)
    return UserErasure(
        user_id=user_id,
        key_destroyed=erased.key_destroyed,
        plain_events=erased.plain_events,
        **await stored(by, response, erased.appended),
    )


async def _changed(by: Call, response: Response, done: UserChanged) -> UserStored:
    return UserStored(user_id=done.user_id, **await stored(by, response, done.appended))


@contextlib.contextmanager
def _existing() -> Iterator[None]:
    """Answer 404 where a command finds that there never was such a user."""
    try:
        yield
    except CommandRefused as error:
        if error.state == "unknown":
            raise not_found("user") from error
        raise


async def _check_current(by: Call, password: SecretStr | None) -> None:
    """Require the current password, by a login as any other: too many guesses lock the account."""
    if password is None:
        reason = "is needed for a password of one's own"
        raise InvalidCommand("ChangePassword", "current_password", reason)
    user_id = by.who.user_id
    username = await by.ledger.users.username(user_id)
    if username is None:
        raise not_found("user")
    login = await by.ledger.users.login(
        username=username, password=password.get_secret_value(), origin=by.origin
    )
    if login.user_id != user_id:
        reason = "the current password is wrong, or a wrong one was given too often"
        raise Forbidden(USERS_WRITE, reason)


async def _check_in_charge(by: Call, user_id: UUID) -> None:
    """Require that who sets another's password gains nothing by it."""
    if not by.who.may(USERS_WRITE):
        raise Forbidden(USERS_WRITE)
    user = await by.ledger.users.state(user_id)
    check_granted(by.who, user.permissions, user.roles)


def _revealed(password: SecretStr | None) -> str | None:
    return None if password is None else password.get_secret_value()
