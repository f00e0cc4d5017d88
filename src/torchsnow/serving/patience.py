"""The end of patience: connections that send no request, or do not take their answer, are closed."""

from __future__ import annotations

import asyncio
import resource
from collections import Counter
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from torchsnow.serving.callers import caller
from torchsnow.serving.replies import HEADERS, as_error

HEADER_TIMEOUT_S = 10.0
WRITE_TIMEOUT_S = 30.0
MAX_CONNECTIONS = 1000
_OTHER_FILES = 64


def max_connections() -> int:
    """How many there may be: each takes a file, and files are needed for other things."""
    return max(1, min(MAX_CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _OTHER_FILES))


class PatientProtocol(H11Protocol):
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
