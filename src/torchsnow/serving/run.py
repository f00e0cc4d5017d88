"""A server on this machine, from its start to its drained end.

Connections that send no request, or do not take their answer, are closed. When it is told to stop, a server says so,
stops taking connections, and finishes what it has accepted.
"""

from __future__ import annotations

import asyncio
import math
import resource
import signal
import socket
import ssl
import sys
import time
from collections import Counter
from collections.abc import Callable
from types import FrameType
from typing import Any, Protocol

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from torchsnow.hub import Hub
from torchsnow.hub.live import LiveHub
from torchsnow.serving.app import make_app
from torchsnow.serving.bodies import caller
from torchsnow.serving.logs import log
from torchsnow.serving.replies import HEADERS, as_error
from torchsnow.serving.service import Service
from torchsnow.serving.settings import ServeSettings
from torchsnow.serving.siblings import Place
from torchsnow.serving.starting import Starting
from torchsnow.train import torch_device

HEADER_TIMEOUT_S = 10.0
WRITE_TIMEOUT_S = 30.0
MAX_CONNECTIONS = 1000
_OTHER_FILES = 64


def max_connections() -> int:
    """How many there may be: each takes a file, and files are needed for other things."""
    return max(1, min(MAX_CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _OTHER_FILES))


class TimeoutProtocol(H11Protocol):
    """uvicorn's HTTP/1.1, with time limits for the head of a request and for taking a reply, and few connections."""

    _waiting: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """A client is there."""
        super().connection_made(transport)
        if len(self.connections) > max_connections():
            self._one_too_many().transport.close()
        self._wait_for_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """A client is gone."""
        for timer in (self._waiting, self._stalled):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """What came is no HTTP: say so as all errors are said."""
        reply = as_error(400, "bad_http", f"{msg.rstrip('.')}; send HTTP/1.1", {"connection": "close"})
        content = bytes(reply.body)
        head = h11.Response(status_code=400, headers=[*reply.raw_headers, *HEADERS], reason=b"Bad Request")
        for event in (head, h11.Data(data=content), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def on_response_complete(self) -> None:
        """A reply is written; the next request may come."""
        self._wait_for_request()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """The client does not read."""
        self._stalled = self.loop.call_later(WRITE_TIMEOUT_S, self.transport.abort)
        super().pause_writing()

    def resume_writing(self) -> None:
        """The client reads again."""
        if self._stalled is not None:
            self._stalled.cancel()
        super().resume_writing()

    def _one_too_many(self) -> Any:
        """The connection to be closed: an idle one of the caller that has the most, or this if that is its own."""
        connections: Any = self.connections  # all of this class
        held = Counter(caller(connection.client) for connection in connections)
        greediest, most = held.most_common(1)[0]
        if most > held[caller(self.client)]:
            for connection in connections:
                is_idle = connection.cycle is None or connection.cycle.response_complete
                if is_idle and caller(connection.client) == greediest:
                    return connection
        return self

    def _wait_for_request(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
        self._waiting = self.loop.call_later(HEADER_TIMEOUT_S, self._give_up, self.cycle)

    def _give_up(self, cycle: Any) -> None:
        if self.cycle is cycle:  # no request has begun since
            self.transport.close()


class Served(Protocol):
    """What is told of the end."""

    def drain(self) -> None:
        """Ask for no more requests, by readiness; those that come are answered."""

    tls: ssl.SSLContext | None
    """Set to what connections are encrypted with."""

    def end(self) -> None:
        """No more connections are taken: let no request that is still arriving hold up the end."""


class DrainingServer(uvicorn.Server):
    """uvicorn's server, which takes connections for `drain_s` after it was told to stop; Ctrl-C and a second signal
    stop it at once."""

    def __init__(self, config: uvicorn.Config, served: Served, drain_s: float) -> None:
        super().__init__(config)
        self._served, self._drain_s = served, drain_s
        self._end_s = math.inf

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """For a signal."""
        self._served.drain()
        if self._end_s < math.inf or sig == signal.SIGINT:
            super().handle_exit(sig, frame)
        self._end_s = min(self._end_s, time.monotonic() + self._drain_s)

    async def on_tick(self, counter: int) -> bool:
        """Whether to stop now."""
        self.should_exit |= time.monotonic() >= self._end_s
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish what has been accepted."""
        self._served.drain()
        self._served.end()
        await super().shutdown(sockets)


# The engine takes Python's lock back after each of its hundreds of operations. With the usual 5 ms, a storm of requests
# that keeps the event loop busy would make it wait for most of the time.
_SWITCH_INTERVAL_S = 0.0005
_MAX_HEAD_BYTES = 32 * 2**10
_BACKLOG = 512


def serve(
    load: Callable[[], LiveHub], settings: ServeSettings, listener: socket.socket, place: Place | None = None
) -> None:
    """Answer until SIGTERM, SIGINT, SIGHUP or SIGQUIT, then finish what was accepted; as one of several workers, if
    this has a place among them.

    Liveness is answered while the hub loads. Raises what `load` raises.
    """

    def give_up() -> None:
        server.should_exit = True

    app = Starting(load, settings, give_up, place)
    server = _server(app, settings, app)
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    for stop in (signal.SIGTERM, signal.SIGINT):  # uvicorn sets its own, and raises them again when it has drained
        signal.signal(stop, lambda number, frame: None)
    for stop in (signal.SIGHUP, signal.SIGQUIT):
        if signal.getsignal(stop) != signal.SIG_IGN:  # as nohup makes it
            signal.signal(stop, server.handle_exit)
    log("serving", address=listener.getsockname()[:2], admin=settings.token is not None)
    server.run(sockets=[listener])
    log("stopped")
    if app.failure is not None:
        raise app.failure


def answer(hub: Hub, device: str, settings: ServeSettings, listener: socket.socket, place: Place | None = None) -> None:
    """Serve a hub on a device, as `serve` does."""
    on_device = torch_device(device)

    def load() -> LiveHub:
        hub.source.to(on_device)
        return LiveHub(hub)

    serve(load, settings, listener, place)


def make_server(service: Service) -> uvicorn.Server:
    """The HTTP server of a service."""
    return _server(make_app(service), service.settings, service)


def _server(app: ASGIApp, settings: ServeSettings, served: Served) -> uvicorn.Server:
    config = uvicorn.Config(
        app,
        http=TimeoutProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=_BACKLOG,
        proxy_headers=bool(settings.proxies),
        forwarded_allow_ips=[*settings.proxies],
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
        h11_max_incomplete_event_size=_MAX_HEAD_BYTES,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=math.ceil(settings.deadline_s) + 1,
    )
    config.load()
    served.tls = config.ssl
    return DrainingServer(config, served, settings.drain_s)
