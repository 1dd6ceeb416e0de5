"""What the service logs, and that no secret gets into it."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from ledger.security.api_keys import generate
from projections.serving.logs import REDACTED, RequestLog, configure
from tests.support.secrets import secrets_in

PASSWORD = "hunter2-and-more"
SECRETS = {
    "X-API-Key": "tlk_0123456789abcdefABCDEF_" + "s" * 43 + "abc123",
    "refresh": "lrt_0190f7a0-1111-7abc-8def-0123456789ab_" + "x" * 43,
    "jwt": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
    "hash": "$argon2id$v=19$m=65536,t=3,p=4$c2FsdA$aGFzaA",
    "address": f"postgresql://ada:{PASSWORD}@db/ledger",
}


class Terminal(io.StringIO):
    """A stream that people read."""

    def isatty(self) -> bool:
        """Say so."""
        return True


@pytest.fixture
def _root_as_before() -> Iterator[None]:
    """Leave the loggers as they were."""
    root = logging.getLogger()
    names = ("ledger", "projections", "uvicorn")
    before = (list(root.handlers), root.level, [logging.getLogger(n).level for n in names])
    yield
    root.handlers, root.level = before[0], before[1]
    for name, level in zip(names, before[2], strict=True):
        logging.getLogger(name).setLevel(level)
    logging.captureWarnings(capture=False)


@pytest.fixture
def stream(_root_as_before: None) -> io.StringIO:
    """Where the log goes."""
    return io.StringIO()


@pytest.fixture
def log(stream: io.StringIO) -> RequestLog:
    """What logs requests there."""
    return configure(stream)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    """Return what was logged."""
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_request_is_one_line_of_json(stream: io.StringIO, log: RequestLog) -> None:
    """It has a time, a level and the fields that were given."""
    log("request", method="GET", route="/orders/{order_id}", status=200, latency_ms=1.25)
    [line] = lines(stream)
    assert line.pop("time").endswith("Z")
    assert line == {
        "message": "request",
        "level": "info",
        "method": "GET",
        "route": "/orders/{order_id}",
        "status": 200,
        "latency_ms": 1.25,
    }


def test_what_others_log_looks_the_same(stream: io.StringIO, log: RequestLog) -> None:
    """Warnings of this project, of the server and of Python come as JSON, chatter does not."""
    logging.getLogger("projections.operations").warning("retried", extra={"freed": 3})
    logging.getLogger("uvicorn.error").info("Started %d", 7)
    logging.getLogger("asyncio").info("chatter")
    try:
        raise ValueError("no")
    except ValueError:
        logging.getLogger("ledger.http").exception("failed")
    found = lines(stream)
    assert [(each["message"], each["level"]) for each in found] == [
        ("retried", "warning"),
        ("Started 7", "info"),
        ("failed", "error"),
    ]
    assert found[0]["freed"] == 3
    assert found[0]["logger"] == "projections.operations"
    assert "ValueError: no" in found[2]["exception"]


@pytest.mark.parametrize("name", SECRETS)
def test_what_has_the_form_of_a_secret_is_taken_out(
    name: str, stream: io.StringIO, log: RequestLog
) -> None:
    """Wherever it is: in a message, a field, a field of a field, or the text of an error."""
    secret = SECRETS[name]
    log(f"got {secret}", route=secret, nested={"deep": [secret, {"deeper": secret}]})
    logger = logging.getLogger("ledger")
    logger.warning("got %s", secret, extra={"detail": secret})
    try:
        raise ValueError(secret)
    except ValueError:
        logger.exception("failed")
    printed = stream.getvalue()
    assert len(lines(stream)) == 3
    assert secret not in printed
    assert PASSWORD not in printed
    assert secrets_in(printed) == []
    assert printed.count(REDACTED) >= 6


def test_what_has_the_name_of_a_secret_is_taken_out(stream: io.StringIO, log: RequestLog) -> None:
    """A field that is called so holds nothing in the log; ids of keys stay."""
    log("request", password=PASSWORD, headers={"Authorization": PASSWORD, "x-api-key": PASSWORD})
    log("request", key_id="7", access_token=PASSWORD, name_key=PASSWORD, cookie=[PASSWORD])
    assert PASSWORD not in stream.getvalue()
    assert lines(stream)[1]["key_id"] == "7"


def test_real_keys_have_the_form(stream: io.StringIO, log: RequestLog) -> None:
    """A key as it is issued is recognised."""
    key = generate(uuid4())[0].reveal()
    log(f"presented {key}")
    assert key not in stream.getvalue()


@pytest.mark.usefixtures("_root_as_before")
def test_on_a_terminal_the_log_is_for_people() -> None:
    """There, lines are no JSON, and hold no secret either."""
    stream = Terminal()
    configure(stream)("request", status=200, password=PASSWORD)
    assert "200" in stream.getvalue()
    assert not stream.getvalue().startswith("{")
    assert PASSWORD not in stream.getvalue()
