"""The end of a server: it says that it will stop, stops taking connections, and finishes what it has accepted."""

from __future__ import annotations

import math
import signal
import socket
import time
from types import FrameType
from typing import Protocol

import uvicorn


class Served(Protocol):
    """What is told of the end."""

    def drain(self) -> None:
        """Ask for no more requests, by readiness; those that come are answered."""

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
