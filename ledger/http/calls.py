"""What a route that writes has of its request: who calls, and how the command is to be stored.

    @router.post("/orders")
    async def place(body: OrderBody, call: Annotated[Call, Depends(call("orders:write"))]): ...

`If-Match`, `Idempotency-Key` and `Prefer` are read here, and `Call.answer` gives what answers them.
"""

from __future__ import annotations

import hmac
import re
from typing import Annotated, Any, cast
from uuid import NAMESPACE_URL, UUID, uuid5

import msgspec
from fastapi import Header, Request, Response
from fastapi.dependencies.utils import request_params_to_args
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.datastructures import Headers

from ledger.deciding import Origin
from ledger.http.auth import API_KEY, BEARER, Principal, ledger_of, metadata_of, require
from ledger.http.errors import Forbidden, IdempotencyKeyReused, IfMatchUnsupported
from ledger.http.middleware import aside
from ledger.http.permissions import ACT_ANY
from ledger.http.problems import log_failure, request_id_of
from ledger.services import Ledger
from ledger.settings import Settings
from ledger.stores import Appended

WAIT_SHARE = 0.8
"""So much of the time for a request may be spent waiting for the tables."""

CAUSATION = b"ledger causation ids"

_WAIT = re.compile(r'(?:^|[,;\s])wait\s*=\s*"?(?P<seconds>\d{1,9})"?(?=$|[,;\s])', re.IGNORECASE)


class RequestHeader(msgspec.Struct, frozen=True):
    """A header of requests: what it looks like, and what it is for."""

    name: str
    description: str
    example: str
    pattern: str | None = None
    chars_max: int | None = None

    def read(self, headers: Headers) -> str | None:
        """Return the header if it is there; RequestValidationError where it is malformed."""
        text = headers.get(self.name)
        if text is None or self.pattern is None:
            return text
        if len(text) > (self.chars_max or len(text)) or not re.fullmatch(self.pattern, text):
            loc, message = ("header", self.name), f"must be of the form {self.pattern}"
            raise RequestValidationError([{"loc": loc, "msg": message, "type": "header_malformed"}])
        return text

    def described(self) -> dict[str, Any]:
        """Return the header as a parameter in OpenAPI."""
        schema = {"type": "string", "pattern": self.pattern, "maxLength": self.chars_max}
        return {
            "name": self.name,
            "in": "header",
            "description": self.description,
            "required": False,
            "schema": {name: value for name, value in schema.items() if value is not None},
            "example": self.example,
        }


IF_MATCH = RequestHeader(
    "If-Match",
    "The version that the stream must be at; if it is not, `412`.",
    '"3"',
    r'^"[0-9]{1,18}"$',
)
IDEMPOTENCY_KEY = RequestHeader(
    "Idempotency-Key",
    "Names the request: repeated with the same key and body, it is stored once.",
    "6f1c8c0e-order-1",
    r"^[!-~]([ -~]*[!-~])?$",
    255,
)
PREFER = RequestHeader(
    "Prefer",
    "`wait=N`: answer once the tables show what was stored, within N seconds.",
    "wait=2",
)

Prefer = Annotated[str | None, Header(description=PREFER.description, examples=[PREFER.example])]


class Call(msgspec.Struct, frozen=True):
    """A request for a command, by somebody who may ask for it."""

    who: Principal
    ledger: Ledger
    origin: Origin
    expected_version: int | None
    wait_seconds: float | None
    request: Request

    def for_user(self, user_id: UUID | None) -> UUID:
        """Return the user whom a command is for, the caller's own by default.

        Raises Forbidden for another without the permission to act for any.
        """
        if user_id is None or user_id == self.who.user_id:
            return self.who.user_id
        if not self.who.may(ACT_ANY):
            raise Forbidden(ACT_ANY)
        return user_id

    async def answer(
        self, response: Response, size: int | None, appended: Appended | None = None
    ) -> None:
        """Set the headers of the answer, and wait for the tables if that is preferred.

        `size` is one of the journal that includes what was stored. For what was stored before the
        status is 200; raises IdempotencyKeyReused where that was by another request. Where the
        tables cannot be waited for it is answered without: what is stored is stored.
        """
        if appended is not None:
            self.request.state.has_stored = not appended.duplicate
            if appended.duplicate:
                await self._check_repeated(appended)
                response.status_code = 200
        if size is None:
            return
        response.headers["Ledger-Size"] = str(size)
        if self.wait_seconds is not None and await self._projected(size, self.wait_seconds):
            response.headers["Preference-Applied"] = f"wait={self.wait_seconds:g}"

    async def _check_repeated(self, appended: Appended) -> None:
        """Raise IdempotencyKeyReused where what is stored came from another request."""
        if self.origin.command_id is None or self.origin.metadata is None:
            return
        offset = appended.offsets[0]
        async for stored in self.ledger.journal.read(offset, offset + 1):
            if stored.metadata.causation_id != self.origin.metadata.causation_id:
                raise IdempotencyKeyReused

    async def _projected(self, size: int, seconds: float) -> bool:
        """Whether the tables have come to a size, within the time there is."""
        state = self.request.app.state
        wait = getattr(state, "wait_projected", None)
        if wait is None:
            return False
        settings = cast(Settings, state.settings)
        limit_seconds = min(seconds, WAIT_SHARE * settings.http_timeout_seconds)
        try:
            with aside(self.request) as may_wait:
                return may_wait and cast(bool, await wait(size, limit_seconds))
        except Exception as error:  # noqa: BLE001 - it must not hide that the command was stored
            log_failure(request_id_of(self.request), error)
            return False


def call(permission: str | None, *, decides: bool = True, is_keyed: bool = True) -> Caller:
    """Return the dependency that makes the Call of a request which takes a permission.

    A route that `decides` on one stream takes If-Match; any other refuses it (IfMatchUnsupported).
    One that is not `is_keyed` does not look at an Idempotency-Key: something in the body is one.
    """
    return Caller(permission, decides=decides, is_keyed=is_keyed)


class Caller:
    """Makes the Call of a request.

    It reads credentials and headers itself and describes them for OpenAPI: as parameters, each
    would cost as much time as the rest of a request's way to its route.
    """

    def __init__(self, permission: str | None, *, decides: bool, is_keyed: bool) -> None:
        self._authenticated = require(permission)
        self._decides = decides
        self._is_keyed = is_keyed
        taken = ((IF_MATCH, decides), (IDEMPOTENCY_KEY, is_keyed), (PREFER, True))
        headers = [header for header, is_taken in taken if is_taken]
        self.openapi_extra: dict[str, Any] = {
            "parameters": [header.described() for header in headers],
            "security": [{API_KEY.scheme_name: []}, {BEARER.scheme_name: []}],
        }

    async def __call__(self, request: Request) -> Call:
        """Find out who calls, and then what with."""
        headers = request.headers
        key = headers.get("x-api-key")
        token = await BEARER(request) if key is None else None
        who = await self._authenticated(request, key, token)
        if not self._decides and "if-match" in headers:
            raise IfMatchUnsupported
        if not self._is_keyed:
            request.state.has_own_ids = True
        version = IF_MATCH.read(headers)
        return await _call_of(
            request,
            who,
            None if version is None else int(version.strip('"')),
            IDEMPOTENCY_KEY.read(headers) if self._is_keyed else None,
            wait_seconds_of(PREFER.read(headers)),
        )


async def _call_of(
    request: Request,
    who: Principal,
    version: int | None,
    key: str | None,
    wait_seconds: float | None,
) -> Call:
    command_id, metadata = None, metadata_of(request, who)
    if key is not None:
        named = _named(request, who, key)
        command_id = uuid5(NAMESPACE_URL, named)
        causation_id = await _causation_id(request, named)
        metadata = msgspec.structs.replace(metadata, causation_id=causation_id)
    origin = Origin(command_id=command_id, metadata=metadata, expected_version=version)
    return Call(who, ledger_of(request), origin, version, wait_seconds, request)


def wait_seconds_of(prefer: str | None) -> float | None:
    """Return how long to wait at most, by the header `Prefer` (RFC 7240); others are left out."""
    found = None if prefer is None else _WAIT.search(prefer)
    return None if found is None else float(found["seconds"])


def _named(request: Request, who: Principal, key: str) -> str:
    """Return what the command is that a key names; each user and path has keys of its own.

    However an id in the path is spelled, it is the same path.
    """
    named, path = request.path_params, request.scope["path"]
    parameters = cast(APIRoute, request.scope["route"]).dependant.path_params
    values, _ = request_params_to_args(parameters, named)
    spelled = {text: str(values.get(name, text)) for name, text in named.items()}
    path = "/".join(spelled.get(part, part) for part in path.split("/"))
    return f"{who.user_id} {request.method} {path} {key}"


async def _causation_id(request: Request, named: str) -> UUID:
    """Return what tells a repeated request from another that has the same key.

    It is stored for auditors to see, and from it nobody can find out what a body had in it.
    """
    secret = await ledger_of(request).journal.privacy.derived_key(CAUSATION)
    content = named.encode() + b"\n" + await request.body()
    return UUID(bytes=hmac.digest(secret, content, "sha256")[:16], version=5)
