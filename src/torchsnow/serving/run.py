"""A server on this machine, from its start to its drained end."""

from __future__ import annotations

import math
import signal
import socket
import sys
from collections.abc import Callable

import uvicorn
from starlette.types import ASGIApp

from torchsnow.errors import ServingError
from torchsnow.hub.live import LiveHub
from torchsnow.serving.app import make_app
from torchsnow.serving.draining import DrainingServer, Served
from torchsnow.serving.logs import log
from torchsnow.serving.patience import PatientProtocol
from torchsnow.serving.service import Service
from torchsnow.serving.settings import ServeSettings
from torchsnow.serving.starting import Starting

# The engine takes Python's lock back after each of its hundreds of operations. With the usual 5 ms, a storm of requests
# that keeps the event loop busy would make it wait for most of the time.
_SWITCH_INTERVAL_S = 0.0005
_MAX_HEAD_BYTES = 32 * 2**10
_BACKLOG = 512


def bind(host: str, port: int) -> socket.socket:
    """A listening place; port 0 is any free one. Raises ServingError when the system refuses."""
    if not 0 <= port < 2**16:
        raise ServingError(f"cannot listen on port {port}; expected 0 to 65535")
    try:
        # With the protocol: asyncio sends small replies at once (TCP_NODELAY) only where it sees that this is TCP.
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
        return listener
    except OSError as error:
        raise ServingError(f"cannot listen on {host} port {port}: {error}; choose another --host or --port") from error


def serve(load: Callable[[], LiveHub], settings: ServeSettings, listener: socket.socket) -> None:
    """Answer until SIGTERM, SIGINT, SIGHUP or SIGQUIT, then finish what has been accepted.

    Liveness is answered while the hub loads. Raises what `load` raises.
    """

    def give_up() -> None:
        server.should_exit = True

    app = Starting(load, settings, give_up)
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


def make_server(service: Service) -> uvicorn.Server:
    """The HTTP server of a service."""
    return _server(make_app(service), service.settings, service)


def _server(app: ASGIApp, settings: ServeSettings, served: Served) -> uvicorn.Server:
    config = uvicorn.Config(
        app,
        http=PatientProtocol,
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
    return DrainingServer(config, served, settings.drain_s)
