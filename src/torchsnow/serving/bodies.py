"""What clients send: counted while it arrives, and read strictly when it is there."""

from __future__ import annotations

import asyncio
import ipaddress
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request

from torchsnow.serving.api_error import ApiError, ClientGone
from torchsnow.serving.settings import ServeSettings


def caller(client: tuple[str, int] | None) -> str:
    """The party behind an address and port: an IPv4 address, or the /64 network that one subscriber of IPv6 has."""
    host = client[0] if client else ""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:  # a Unix socket, or a name that a proxy gave
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    mapped = address.ipv4_mapped
    return str(mapped or ipaddress.ip_network((address, 64), strict=False))


_STOP_S = 1.0  # for a body to arrive, when the server ends
_GRACE_S = 5.0  # for a body to come more slowly than it must


@dataclass(eq=False)
class _Body:
    """One body, as far as it has come. `end_s` is when it must be complete, `due_s` when the client falls behind."""

    caller: str
    end_s: float
    due_s: float
    timer: asyncio.Timeout = field(default_factory=lambda: asyncio.timeout(None))
    size_bytes: int = 0
    is_complete: bool = False
    api_error: ApiError | None = None

    def arrived(self, num_bytes: int, rate: int) -> None:
        """Note some bytes, at the pace of so many a second."""
        self.size_bytes += num_bytes
        self.due_s = min(_now_s() + _GRACE_S, self.due_s + num_bytes / rate)
        self.wait()

    def wait(self) -> None:
        """Wait for more, as long as there is time."""
        self.timer.reschedule(min(self.end_s, self.due_s))

    def reject(self, api_error: ApiError, end_s: float) -> None:
        """Wait no longer than that."""
        self.api_error, self.end_s = api_error, min(self.end_s, end_s)
        if not self.timer.expired():
            self.wait()


class Bodies:
    """Reads the bodies of requests, and knows how many bytes all of them hold together."""

    def __init__(self, settings: ServeSettings) -> None:
        self._settings = settings
        self._held: set[_Body] = set()
        self._held_bytes = 0
        self._end_s = math.inf

    def end(self) -> None:
        """The server stops: bodies that are still arriving have to be there in a moment."""
        self._end_s = _now_s() + _STOP_S
        for body in self._held:
            if not body.is_complete:
                body.reject(_stopping(), self._end_s)

    @contextmanager
    def holding(self) -> Iterator[Callable[[Request, int], Awaitable[bytes]]]:
        """The reader of one request's body; its bytes count as held until the block ends.

        The reader takes the request and the most bytes that it may have. It raises ApiError: 413 for more, known before
        they are read where the client says so, 429 when all requests together hold too much and its caller the most,
        408 when the client is too slow, 415 for a compressed body; and ClientGone.
        """
        body = _Body("", 0.0, 0.0)

        async def read(request: Request, max_bytes: int) -> bytes:
            _validate_headers(request, max_bytes)
            start_s = _now_s()
            body.caller = caller(request.client)
            body.end_s, body.due_s = start_s + self._settings.body_timeout_s, start_s + _GRACE_S
            self._held.add(body)
            content = bytearray()
            try:
                async with body.timer:
                    body.wait()
                    if self._end_s < math.inf:
                        body.reject(_stopping(), self._end_s)
                    async for chunk in _chunks(request):
                        if len(content) + len(chunk) > max_bytes:
                            raise _too_large(max_bytes)
                        body.arrived(len(chunk), self._settings.body_rate)
                        self._held_bytes += len(chunk)
                        if self._held_bytes > self._settings.max_held_bytes:
                            self._make_room(body)
                        content += chunk
            except TimeoutError:
                raise body.api_error or ApiError(408, "slow", "the request did not arrive in time") from None
            body.is_complete = True
            return bytes(content)

        try:
            yield read
        finally:
            self._let_go(body)

    def _make_room(self, newest: _Body) -> None:
        """When too much is held, refuse a body that has not arrived yet, of the caller that holds the most.

        Raises ApiError (429) if that is the caller of `newest`, or there is none.
        """
        while self._held_bytes > self._settings.max_held_bytes:
            by_caller: Counter[str] = Counter()
            for body in self._held:
                by_caller[body.caller] += body.size_bytes
            (greediest, most), own = by_caller.most_common(1)[0], by_caller[newest.caller]
            unfinished = [body for body in self._held if body.caller == greediest and not body.is_complete]
            if most == own or not unfinished:
                raise _busy()
            largest = max(unfinished, key=lambda body: body.size_bytes)
            largest.reject(_busy(), _now_s())
            self._let_go(largest)

    def _let_go(self, body: _Body) -> None:
        if body in self._held:
            self._held.discard(body)
            self._held_bytes -= body.size_bytes


def _busy() -> ApiError:
    return ApiError(429, "busy", "too many requests at once; try again later", 1)


def _stopping() -> ApiError:
    return ApiError(503, "stopping", "the server stops before the request has arrived; try again", 1)


def _now_s() -> float:
    return asyncio.get_running_loop().time()


async def _chunks(request: Request) -> Any:
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        yield message.get("body", b"")
        more = message.get("more_body", False)


def _validate_headers(request: Request, max_bytes: int) -> None:
    if request.headers.get("content-encoding", "identity") != "identity":
        raise ApiError(415, "compressed", "compressed bodies are not taken; pictures are compressed already")
    length = request.headers.get("content-length", "0")
    if not length.isascii() or not length.isdigit():
        raise ApiError(400, "bad_request", "the Content-Length is no number")
    if len(length) > 18 or int(length) > max_bytes:
        raise _too_large(max_bytes)


def _too_large(max_bytes: int) -> ApiError:
    return ApiError(413, "too_large", f"more than the {max_bytes} bytes that a request may have")
