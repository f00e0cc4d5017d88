"""Stands before every route: who may come in, what is logged and counted, and what happens to our mistakes."""

from __future__ import annotations

import hmac
import re
import secrets
import time
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from torchsnow.serving.admin import ADMIN_PATHS
from torchsnow.serving.api_error import ApiError
from torchsnow.serving.logs import log, log_fault
from torchsnow.serving.metrics import Metrics
from torchsnow.serving.open_inference import LIVE_PATHS, READY_PATHS
from torchsnow.serving.replies import HEADERS, as_error
from torchsnow.serving.settings import ServeSettings
from torchsnow.serving.tracing import Trace, Tracing

REQUEST_ID = "x-request-id"
OPEN_PATHS = frozenset({"/", *LIVE_PATHS, *READY_PATHS})
"""What answers without the token: the page, which holds nothing, and what an orchestrator asks."""


class Guard:
    """Checks the token, and Host and Origin of admin routes; logs and counts every request."""

    def __init__(self, app: ASGIApp, settings: ServeSettings, metrics: Metrics, tracing: Tracing | None = None) -> None:
        self._app, self._settings, self._metrics, self._tracing = app, settings, metrics, tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        start_s, request_id, status = time.monotonic(), _request_id(scope), 0

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), *HEADERS, (REQUEST_ID.encode(), request_id.encode())]
            await send(message)

        scope.setdefault("state", {})
        trace = None if self._tracing is None else self._tracing.begin(Headers(scope=scope))
        try:
            self._check(scope)
            await self._app(scope, receive, noting)
        except ApiError as api_error:
            headers = {"www-authenticate": "Bearer"} if api_error.status == 401 else {}
            reply = as_error(api_error.status, api_error.code, api_error.message, {**headers, "connection": "close"})
            await reply(scope, receive, noting)
        except Exception as error:
            log_fault("a request failed", error, request=request_id)  # Starlette has answered it
        finally:
            self._note(scope, status, request_id, time.monotonic() - start_s, trace)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        if "transfer-encoding" in headers and "content-length" in headers:  # a proxy may have believed the other one
            raise ApiError(400, "bad_http", "a body has a Content-Length or a Transfer-Encoding, not both")
        if scope["path"].startswith(ADMIN_PATHS) or f"{scope['path']}/" in ADMIN_PATHS:
            self._validate_caller(headers, scope["scheme"])
        token = self._settings.token
        if token is not None and scope["path"] not in OPEN_PATHS:
            kind, _, given = headers.get("authorization", "").partition(" ")
            same = hmac.compare_digest(given.strip().encode("latin-1", "replace"), token.encode())
            if kind.lower() != "bearer" or not same:
                raise ApiError(401, "unauthorized", "send the server's token: Authorization: Bearer TOKEN")

    def _validate_caller(self, headers: Headers, scheme: str) -> None:
        """Refuse pages of other sites, also those whose name was made to lead here (DNS rebinding)."""
        host = headers.get("host", "")
        if len(headers.getlist("host")) != 1 or _name(host) not in self._settings.hosts:
            raise ApiError(403, "host", "admin routes are not served under this name; see --allow-host")
        origin = headers.get("origin")
        if origin is not None and origin.lower() not in (f"http://{host}".lower(), f"https://{host}".lower()):
            raise ApiError(403, "origin", "admin routes are not for pages of other sites")

    def _note(self, scope: Scope, status: int, request_id: str, seconds: float, trace: Trace | None) -> None:
        route = getattr(scope.get("route"), "path", "none")  # ours, never what a client wrote
        method, tasks = scope["method"][:16], scope["state"].get("tasks")
        self._metrics.requests.labels(route, str(status)).inc()
        traced = {} if trace is None else {"trace": trace.id}
        seconds = round(seconds, 4)
        log(
            "request",
            request=request_id,
            method=method,
            route=route,
            status=status,
            seconds=seconds,
            tasks=tasks,
            **traced,
        )
        if trace is not None:
            trace.end(method, route, status, tasks or (), request_id)


def _request_id(scope: Scope) -> str:
    """The client's or a proxy's, if it can stand in a log and be searched for, or else a new one."""
    given = Headers(scope=scope).get(REQUEST_ID, "")
    return given if re.fullmatch(r"[A-Za-z0-9_.:=+/-]{1,128}", given) else secrets.token_hex(8)


def _name(host: str) -> str:
    """A Host header without its port."""
    try:
        parts = urlsplit(f"//{host}")
        name, _ = parts.hostname or "", parts.port
    except ValueError:
        return ""
    return f"[{name}]" if ":" in name else name
