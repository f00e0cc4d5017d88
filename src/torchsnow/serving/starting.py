"""A server before its hub is loaded: it lives, is not ready, and lets other requests wait."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from torchsnow.hub.live import LiveHub
from torchsnow.serving.app import make_app
from torchsnow.serving.open_inference import LIVE_PATHS, READY_PATHS
from torchsnow.serving.replies import as_error, as_json
from torchsnow.serving.service import Service
from torchsnow.serving.settings import ServeSettings
from torchsnow.serving.siblings import Place, Siblings


class Starting:
    """The ASGI application of a hub that `load` returns in a while, called in a thread.

    If it raises, that is the `failure`, and `give_up` is called.
    """

    def __init__(
        self,
        load: Callable[[], LiveHub],
        settings: ServeSettings,
        give_up: Callable[[], None],
        place: Place | None = None,
    ) -> None:
        self.failure: Exception | None = None
        self._load, self._settings, self._give_up = load, settings, give_up
        self._app: ASGIApp = self._wait
        self._decided, self._ended = asyncio.Event(), asyncio.Event()
        self._service: Service | None = None
        self._is_draining = False
        self.tls: ssl.SSLContext | None = None  # which the server set, if it speaks HTTPS
        self._siblings = Siblings(self._hear, place)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the time from start to end."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        else:
            await self._app(scope, receive, send)

    def drain(self) -> None:
        """Ask for no more requests."""
        self._is_draining = True
        if self._service is not None:
            self._service.drain()

    def end(self) -> None:
        """Let no request that is still arriving hold up the end."""
        if self._service is not None:
            self._service.end()

    async def _live(self, receive: Receive, send: Send) -> None:
        running = asyncio.create_task(self._run())
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self._ended.set()
        await running
        await send({"type": "lifespan.shutdown.complete"})

    async def _hear(self, question: Mapping[str, Any]) -> Any:
        return await self._service.hear(question) if self._service is not None else None

    async def _run(self) -> None:
        try:
            live = await asyncio.to_thread(self._load)
            self._service = service = Service(live, self._settings, self._siblings)
            service.tls = self.tls
            if self._is_draining:
                service.drain()
            async with self._siblings.listening(), service.running():
                self._app = make_app(self._service)
                self._decided.set()
                await self._ended.wait()
        except Exception as error:
            self.failure = error
            self._decided.set()
            self._give_up()

    async def _wait(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer for health at once, and anything else when the hub is there."""
        if scope["path"] in LIVE_PATHS:
            reply = as_json({"live": True})
        elif scope["path"] in READY_PATHS:
            reply = as_json({"ready": False}, 503)
        else:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._settings.deadline_s):
                    await self._decided.wait()
            if self._app != self._wait:
                return await self._app(scope, receive, send)
            reply = as_error(503, "starting", "the server is still starting; try again later", {"retry-after": "1"})
        return await reply(scope, receive, send)
