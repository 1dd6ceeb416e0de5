"""Why a request is turned away before its route runs.

`headers` are those of the answer beside the problem. No text says which part of the credentials was
wrong, and none repeats them.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from ledger.errors import LedgerError

TokenFault = Literal["unreadable", "expired", "session_over"]

CHALLENGE = 'Bearer realm="trading-ledger", ApiKey realm="trading-ledger"'


class Unauthenticated(LedgerError):
    """Nobody is known to have sent the request: no credentials, or none that are good now."""

    headers: ClassVar[dict[str, str]] = {"WWW-Authenticate": CHALLENGE}

    def __init__(
        self,
        reason: str = (
            "send an API key in X-API-Key, or an access token as Authorization: Bearer, that is "
            "valid now and whose user may act"
        ),
    ) -> None:
        super().__init__(reason)


class TokenRefused(Unauthenticated):
    """An access token is not good now; `kind` says why to the log, and to nobody else."""

    def __init__(self, kind: TokenFault) -> None:
        super().__init__()
        self.kind = kind


class InvalidCredentials(Unauthenticated):
    """A login was refused, for whatever reason: the answer is the same for all of them."""

    def __init__(self) -> None:
        super().__init__("the username or the password is wrong, or nobody can log in so now")


class Forbidden(LedgerError):
    """It is known who sent the request, and they may not do this; `permission` says what lacks."""

    def __init__(self, permission: str, reason: str | None = None) -> None:
        super().__init__(reason or f"this takes the permission {permission!r}; ask who grants it")
        self.permission = permission


class CommandOnly(LedgerError):
    """Events were sent that only a command of the ledger stores, whatever the caller may do."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what} takes no events from outside: only the ledger's commands store them; use the "
            "route of the command"
        )


class RateLimited(LedgerError):
    """The API key was used as often as its rate limit allows; nothing was done.

    After `retry_seconds` there is room again, unless it was used up meanwhile.
    """

    def __init__(self, retry_seconds: float) -> None:
        super().__init__(
            f"the API key was used as often as it may be; try again in {retry_seconds:g} s at most"
        )
        self.retry_seconds = retry_seconds
        self.headers = {"Retry-After": str(math.ceil(retry_seconds))}


class IdTaken(LedgerError):
    """The id for a new thing is that of somebody else's, of which no more is told."""

    def __init__(self) -> None:
        super().__init__("the id is taken; choose another")


class IfMatchUnsupported(LedgerError):
    """The route does not decide on one stream, so that there is no version to compare with."""

    def __init__(self) -> None:
        super().__init__("this route does not decide on a stream; leave If-Match out")


class IdempotencyKeyReused(LedgerError):
    """An Idempotency-Key came again, with another body: what it stands for was stored before."""

    def __init__(self) -> None:
        super().__init__("the Idempotency-Key stands for another request; use a new one")
