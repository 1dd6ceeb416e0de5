"""The servers of one process: the service, and its metrics on a port of their own if wanted."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import uvicorn
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from ledger.http.opening import settings_of
from ledger.settings import Settings
from projections.serving.app import METRICS_PATH, bears, make_app, measured
from projections.serving.logs import RequestLog
from projections.serving.protocol import Protocol
from projections.serving.running import Parts, warn_of_token_key

GRACE_SECONDS = 10
BACKLOG = 2048
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Server(uvicorn.Server):
    """A server that leaves signals and the lifespan to whoever runs it.

    `listening` is called once it takes requests.
    """

    def __init__(self, config: uvicorn.Config, listening: Callable[[], None]) -> None:
        super().__init__(config)
        self._listening = listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to take requests."""
        await super().startup(sockets)
        self._listening()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield

    def stop(self) -> None:
        """Take no more requests and finish those under way; the second time, give them up."""
        self.force_exit = self.should_exit
        self.should_exit = True


async def serve(
    settings: Settings,
    parts: Parts,
    *,
    log: RequestLog,
    listening: Callable[[str], None],
    metrics_address: tuple[str, int] | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM; then finish the requests, the batches and the appends.

    `listening` is told each address. Raises OSError where an address is taken, what is wrong with
    the database at the start, and the error with which a background service has ended for good.
    """
    failures: list[Exception] = []
    servers: list[Server] = []

    def failed(error: Exception) -> None:
        failures.append(error)
        if len(failures) == 1:  # asked twice, a server no longer waits for its requests
            _stop(app, servers)

    app = make_app(settings, parts=parts, log=log, failed=failed)
    settings = settings_of(app)
    warn_of_token_key(settings)
    with contextlib.ExitStack() as stack:
        places = [stack.enter_context(_bound(settings.http_host, settings.http_port))]
        apps: list[ASGIApp] = [app]
        if metrics_address is not None:
            places.append(stack.enter_context(_bound(*metrics_address)))
            apps.append(MetricsApp(app))
        for each, place in zip(apps, places, strict=True):
            servers.append(Server(_config(each, settings), partial(listening, _address(place))))
        async with app.router.lifespan_context(app):
            _settle()
            with _signals(lambda: _stop(app, servers)):
                works = zip(servers, places, strict=True)
                await asyncio.gather(*(server.serve([place]) for server, place in works))
    if failures:
        raise failures[0]


def _settle() -> None:
    """Take what lives as long as the process out of the garbage collector's sight.

    A full collection looked at it all, modules and routes, for a tenth of a second in which no
    request was answered.
    """
    gc.collect()
    gc.freeze()


def _stop(app: FastAPI, servers: Sequence[Server]) -> None:
    app.state.readiness.is_stopping = True
    app.state.stopping.set()
    for server in servers:
        server.stop()


@contextlib.contextmanager
def _signals(stop: Callable[[], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    with contextlib.suppress(NotImplementedError):  # on Windows
        for number in SIGNALS:
            loop.add_signal_handler(number, stop)
    yield


def _config(app: ASGIApp, settings: Settings) -> uvicorn.Config:
    proxies = settings.http_trusted_proxies.replace(",", " ").split()
    return uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(proxies),
        forwarded_allow_ips=proxies,
        backlog=BACKLOG,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )


def _bound(host: str, port: int) -> socket.socket:
    """Return a socket that listens; port 0 is one that is free."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.create_server((host, port), family=family, backlog=BACKLOG)
    made.setblocking(False)
    return made


def _address(place: socket.socket) -> str:
    host, port = place.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class MetricsApp:
    """The metrics of an application on a port of their own; with the token where one is set."""

    def __init__(self, app: FastAPI) -> None:
        """Take the application whose metrics they are."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] == "http":
            answer = await self._answer(Request(scope))
            await answer(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        if request.url.path != METRICS_PATH:
            return PlainTextResponse(f"see {METRICS_PATH}\n", 404)
        token = settings_of(self._app).metrics_token
        if token is not None and not bears(request, token):
            return PlainTextResponse("this takes the token of LEDGER_METRICS_TOKEN\n", 401)
        return await measured(self._app.state.metrics, request.headers.get("accept", ""))
