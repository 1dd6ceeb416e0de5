"""What every request goes through: ids, limits and headers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from uuid import UUID

import httpx
import pytest
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from ledger.http.middleware import ENCRYPTED, PLAIN
from tests.ledger.http.applications import bare, client_of, limits_of, served, until

TRACE = "0af7651916cd43dd8448eb211c80319c"


def echoing(**settings: float | str) -> FastAPI:
    """Return an application that says what it was sent."""
    app = bare(**settings)

    @app.get("/ids")
    def ids(request: Request) -> dict[str, str]:
        return {name: str(value) for name, value in request.state._state.items()}

    @app.post("/length")
    async def length(request: Request) -> int:
        return len(await request.body())

    return app


@pytest.mark.parametrize("given", ["abc", "A.b_c:d-9", "x" * 128])
async def test_a_request_keeps_the_id_that_it_comes_with(given: str) -> None:
    """It is the one of the answer, and of what is stored and logged."""
    async with client_of(echoing()) as client:
        answer = await client.get("/ids", headers={"X-Request-ID": given})
    assert answer.headers["X-Request-ID"] == answer.json()["request_id"] == given


@pytest.mark.parametrize("given", ["", "x" * 129, "two words", 'a"b', "a\u00e9"])
async def test_an_id_that_could_do_harm_is_not_taken(given: str) -> None:
    """Another is made, a UUID, which is the correlation too where nothing else is known."""
    async with client_of(echoing()) as client:
        answer = await client.get("/ids", headers=[(b"X-Request-ID", given.encode("latin-1"))])
    ids = answer.json()
    assert answer.headers["X-Request-ID"] == ids["request_id"] == ids["correlation_id"]
    assert UUID(ids["request_id"]).version == 7


async def test_the_trace_is_the_correlation() -> None:
    """It is taken from `traceparent`, unless that is malformed or all zeros."""
    async with client_of(echoing()) as client:
        for trace_id, is_taken in ((TRACE, True), ("0" * 32, False), (TRACE.upper(), False)):
            headers = {"traceparent": f"00-{trace_id}-b7ad6b7169203331-01"}
            ids = (await client.get("/ids", headers=headers)).json()
            assert (UUID(ids["correlation_id"]) == UUID(trace_id)) is is_taken


async def test_the_id_leads_to_the_span_that_is_recorded() -> None:
    """Under a tracer, ids are those of trace and span, so that each leads to the other."""
    tracer = TracerProvider().get_tracer("test")
    async with client_of(echoing()) as client:
        with tracer.start_as_current_span("request") as span:
            ids = (await client.get("/ids")).json()
    context = span.get_span_context()
    assert isinstance(span, trace.Span)
    assert ids["request_id"] == f"{context.trace_id:032x}-{context.span_id:016x}"
    assert UUID(ids["correlation_id"]).int == context.trace_id


async def pieces(count: int, size: int = 512) -> AsyncIterator[bytes]:
    """Give a body piece by piece, so that its length is not known before."""
    for _ in range(count):
        yield b"x" * size


async def test_a_body_has_a_limit() -> None:
    """One byte more than allowed is refused, whether its length was told or not."""
    async with client_of(echoing(http_body_bytes_max=1024)) as client:
        for content in (b"x" * 1024, pieces(2)):
            assert (await client.post("/length", content=content)).json() == 1024
        for content in (b"x" * 1025, pieces(2, 513)):
            answer = await client.post("/length", content=content)
            assert (answer.status_code, answer.json()["title"]) == (413, "The body is too large")
            assert answer.headers["Connection"] == "close"


async def test_too_long_a_body_is_not_read_to_its_end() -> None:
    """A server answers and hangs up while the client would go on sending for ever."""
    async with served(echoing(http_body_bytes_max=1024)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /length HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        writer.write((b"400\r\n" + b"x" * 1024 + b"\r\n") * 2)
        answer = await asyncio.wait_for(reader.read(), 10)
        assert answer.startswith(b"HTTP/1.1 413 ")
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


class Gate:
    """An application with a route that waits until it is let go on."""

    def __init__(self, **settings: float | str) -> None:
        self.open = asyncio.Event()
        self.entered = 0
        self.app = bare(**settings)
        self.app.add_api_route("/wait", self.wait)
        self.app.add_api_route("/stream", self.stream)
        self.app.add_api_route("/quick", self.quick)

    async def wait(self) -> str:
        """Answer when the gate is open."""
        self.entered += 1
        await self.open.wait()
        return "done"

    async def stream(self) -> Response:
        """Begin at once, and end when the gate is open."""

        async def parts() -> AsyncIterator[bytes]:
            yield b"begun "
            self.entered += 1
            await self.open.wait()
            yield b"ended"

        return StreamingResponse(parts())

    async def quick(self) -> str:
        """Answer at once."""
        return "quick"

    @property
    def working(self) -> int:
        """Return how many requests have a place."""
        return limits_of(self.app).working


async def test_more_requests_than_there_is_room_for_are_refused_at_once() -> None:
    """They are told when to come again; when one has ended, the next is let in."""
    gate = Gate(http_requests_max=1)
    async with client_of(gate.app) as client:
        first = asyncio.create_task(client.get("/wait"))
        await until(lambda: gate.entered == 1)
        refused = await client.get("/quick")
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
        assert refused.json()["type"].endswith(":overloaded")
        gate.open.set()
        assert (await first).json() == "done"
        assert (await client.get("/quick")).json() == "quick"
    assert gate.working == 0


async def test_a_stream_that_has_begun_takes_no_place() -> None:
    """Others are let in while somebody listens, and it may take longer than a request may."""
    gate = Gate(http_requests_max=1, http_timeout_seconds=0.05)
    async with served(gate.app) as port, httpx.AsyncClient() as client:
        address = f"http://127.0.0.1:{port}"
        async with client.stream("GET", f"{address}/stream") as stream:
            parts = stream.aiter_bytes()
            assert await anext(parts) == b"begun "
            late = await client.get(f"{address}/wait")
            assert (late.status_code, late.json()["type"].rpartition(":")[2]) == (504, "timeout")
            gate.open.set()
            assert await anext(parts) == b"ended"
    assert gate.working == 0


async def test_a_request_that_takes_too_long_is_given_up() -> None:
    """It is told that what it asked for may have been done; its place is free again."""
    gate = Gate(http_requests_max=1, http_timeout_seconds=0.02)
    async with client_of(gate.app) as client:
        for _ in range(2):
            answer = await client.get("/wait")
            assert answer.status_code == 504
            assert "may have been stored all the same" in answer.json()["detail"]
    assert (gate.working, gate.entered) == (0, 2)


async def test_a_client_that_goes_away_leaves_nothing_behind() -> None:
    """Neither in the midst of its body nor while it waits does it keep others from theirs."""
    gate = Gate(http_requests_max=2)
    read = asyncio.Event()

    @gate.app.post("/read")
    async def reading(request: Request) -> int:
        read.set()
        return len(await request.body())

    async with served(gate.app) as port, httpx.AsyncClient() as client:
        _, sending = await asyncio.open_connection("127.0.0.1", port)
        sending.write(b"POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf")
        _, waiting = await asyncio.open_connection("127.0.0.1", port)
        waiting.write(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(lambda: gate.entered == 1 and read.is_set())
        sending.transport.abort()
        waiting.transport.abort()
        await until(lambda: gate.working == 1)
        gate.open.set()
        await until(lambda: gate.working == 0)
        assert (await client.get(f"http://127.0.0.1:{port}/quick")).json() == "quick"


async def test_an_error_after_the_beginning_cuts_the_answer_off(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The client sees that the answer is not whole; the log says where it broke, without values."""
    app = bare()

    @app.get("/broken")
    async def broken() -> Response:
        async def parts() -> AsyncIterator[bytes]:
            yield b"some"
            raise ValueError("hunter2")

        return StreamingResponse(parts())

    async with served(app) as port, httpx.AsyncClient() as client:
        with caplog.at_level(logging.INFO), pytest.raises(httpx.RemoteProtocolError):
            await client.get(f"http://127.0.0.1:{port}/broken")
    assert "request failed: ValueError at" in caplog.text
    assert "hunter2" not in caplog.text


async def test_every_answer_has_safe_headers() -> None:
    """Answers of routes, of the framework and of the limits; HSTS where the way is encrypted."""
    app = echoing(http_body_bytes_max=1024)
    for scheme, expected in (("http", PLAIN), ("https", ENCRYPTED)):
        async with client_of(app, scheme) as client:
            answers = [
                await client.get("/ids"),
                await client.get("/nowhere"),
                await client.post("/length", content=b"x" * 1025),
            ]
        for answer in answers:
            assert {(n, v) for n, v in answer.headers.raw if n in dict(ENCRYPTED)} == set(expected)


async def test_a_route_may_say_it_better() -> None:
    """What it sets itself is not set again."""
    app = bare()
    policy = {"Content-Security-Policy": "default-src 'self'", "cache-control": "max-age=9"}

    @app.get("/page")
    def page() -> Response:
        return Response("", headers=policy)

    async with client_of(app) as client:
        headers = (await client.get("/page")).headers
    assert headers.get_list("content-security-policy") == ["default-src 'self'"]
    assert headers.get_list("cache-control") == ["max-age=9"]
    assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(("origin", "is_let_in"), [("https://a.example", True), ("null", False)])
async def test_pages_of_named_origins_alone_may_call(origin: str, is_let_in: bool) -> None:
    """Neither without the setting nor from another origin does a browser hand over the answer."""
    asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    async with client_of(
        echoing(http_cors_origins="https://a.example https://b.example")
    ) as client:
        first = await client.options("/length", headers=asked)
        answer = await client.get("/nowhere", headers={"Origin": origin})
    assert (first.status_code == 200) is is_let_in
    assert ("access-control-allow-origin" in answer.headers) is is_let_in
    async with client_of(echoing()) as client:
        assert (await client.options("/length", headers=asked)).status_code == 405
        headers = (await client.get("/ids", headers={"Origin": origin})).headers
    assert not any(name.startswith("access-control") for name in headers)


class Slow:
    """A client that sends half of a body, and then nothing until it is told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    @asynccontextmanager
    async def begun(cls, port: int) -> AsyncIterator[Slow]:
        """Begin a request; in the end hang up."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /length HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf")
        yield cls(reader, writer)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def test_bodies_that_do_not_come_keep_nobody_out() -> None:
    """They take no place; where very many are awaited, the first gives way to the next."""
    app = echoing(http_requests_max=1)
    async with served(app) as port, httpx.AsyncClient() as client, AsyncExitStack() as stack:
        await client.get(f"http://127.0.0.1:{port}/ids")
        outer = limits_of(app)
        slow = []
        for number in range(outer.waiting_max):
            slow.append(await stack.enter_async_context(Slow.begun(port)))
            await until(lambda expected=number + 1: len(outer._awaited) == expected)  # type: ignore[misc]
        assert outer.working == 0
        answer = await client.post(f"http://127.0.0.1:{port}/length", content=b"x")
        assert answer.json() == 1
        late = await asyncio.wait_for(slow[0].reader.read(), 10)
        assert late.startswith(b"HTTP/1.1 408 ")
        slow[1].writer.write(b" here")
        assert (await slow[1].reader.readline()).startswith(b"HTTP/1.1 200 ")
    await until(lambda: not outer._awaited)
    assert outer.working == 0


@pytest.mark.parametrize(("all_seconds", "body_seconds"), [(0.05, 10), (30, 0.05)])
async def test_a_body_has_its_time(all_seconds: float, body_seconds: float) -> None:
    """One that does not come whole is a 408, and the connection ends; the next has as long."""
    app = echoing(http_timeout_seconds=all_seconds)
    async with served(app) as port, httpx.AsyncClient() as client:
        await client.get(f"http://127.0.0.1:{port}/ids")
        limits_of(app).body_seconds_max = body_seconds
        for _ in range(2):
            async with Slow.begun(port) as slow:
                answer = await asyncio.wait_for(slow.reader.read(), 5)
            head, _, body = answer.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 408 ")
            assert b"connection: close" in head.lower()
            assert b":body-timeout" in body
