"""What one party holds is counted together, and who holds most makes room for others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from running_server import Running, picture, running
from starlette.requests import Request

from torchsnow.errors import ServingError
from torchsnow.hub import Hub
from torchsnow.hub.live import LiveHub
from torchsnow.serving import bodies as module
from torchsnow.serving import run
from torchsnow.serving.api_error import ApiError
from torchsnow.serving.bodies import Bodies, caller
from torchsnow.serving.run import TimeoutProtocol
from torchsnow.serving.settings import ServeSettings


@pytest.mark.parametrize(
    ("host", "party"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unix", "unix"),
    ],
)
def test_a_party_is_an_address_or_a_subscribers_network(host: str, party: str) -> None:
    assert caller((host, 80)) == party
    assert caller(None) == ""


def request(host: str, chunks: AsyncIterator[bytes]) -> Request:
    async def receive() -> Any:
        async for chunk in chunks:
            return {"type": "http.request", "body": chunk, "more_body": chunk != b"end"}
        raise AssertionError

    return Request({"type": "http", "headers": [], "client": (host, 1)}, receive)


async def fed(chunks: asyncio.Queue[bytes]) -> AsyncIterator[bytes]:
    while True:
        yield await chunks.get()


class Caller:
    """A body that comes as it is told to."""

    def __init__(self, bodies: Bodies, host: str) -> None:
        self.chunks: asyncio.Queue[bytes] = asyncio.Queue()
        self.outcome: asyncio.Task[Any] = asyncio.create_task(self._send(bodies, request(host, fed(self.chunks))))

    async def _send(self, bodies: Bodies, asked: Request) -> bytes:
        with bodies.holding() as read:
            content = await read(asked, 1000)
            await asyncio.sleep(0.05)  # it is being answered
            return content

    async def send(self, *chunks: bytes) -> None:
        for chunk in chunks:
            self.chunks.put_nowait(chunk)
        await asyncio.sleep(0.01)

    async def status(self) -> int:
        try:
            await self.outcome
        except ApiError as api_error:
            return api_error.status
        return 200


def test_who_holds_most_makes_room_for_others() -> None:
    async def main() -> None:
        bodies = Bodies(ServeSettings(max_held_bytes=1000))
        greedy = [Caller(bodies, "10.0.0.1") for _ in range(3)]
        for number, one in enumerate(greedy):
            await one.send(bytes(300 + number))
        modest = Caller(bodies, "10.0.0.2")
        await modest.send(bytes(200), b"end")
        assert [one.outcome.done() for one in greedy] == [False, False, True]
        assert (await greedy[2].status(), await modest.status()) == (429, 200)
        again = Caller(bodies, "10.0.0.1")
        await again.send(bytes(500))
        assert await again.status() == 429  # its own party holds the most
        await greedy[0].send(b"end")
        assert await greedy[0].status() == 200
        greedy[1].outcome.cancel()
        await asyncio.wait([greedy[1].outcome])
        assert bodies._held_bytes == 0

    asyncio.run(main())


def test_bodies_that_are_there_are_not_thrown_away() -> None:
    async def main() -> None:
        bodies = Bodies(ServeSettings(max_held_bytes=1000))
        first, second = Caller(bodies, "10.0.0.1"), Caller(bodies, "10.0.0.2")
        await first.send(bytes(900), b"end")
        await second.send(bytes(200))
        assert (await first.status(), await second.status()) == (200, 429)
        assert bodies._held_bytes == 0

    asyncio.run(main())


def test_a_body_that_falls_behind_its_pace_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_GRACE_S", 0.1)

    async def main() -> None:
        bodies = Bodies(ServeSettings(body_rate=1000))
        stalled, dripping, steady = (Caller(bodies, "10.0.0.1") for _ in range(3))
        start_s = time.monotonic()
        await stalled.send(bytes(900))  # at once, and then nothing
        for _ in range(30):
            await dripping.send(b"x")
            await steady.send(bytes(25))
        assert (await stalled.status(), await dripping.status()) == (408, 408)
        assert time.monotonic() - start_s < 2
        await steady.send(b"end")
        assert await steady.status() == 200

    asyncio.run(main())


def test_at_the_end_bodies_have_to_arrive_in_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_STOP_S", 0.1)

    async def main() -> None:
        bodies = Bodies(ServeSettings())
        dripping, quick = Caller(bodies, "10.0.0.1"), Caller(bodies, "10.0.0.1")
        await dripping.send(b"x")
        bodies.end()
        late = Caller(bodies, "10.0.0.1")
        await quick.send(b"x", b"end")
        start_s = time.monotonic()
        while not (dripping.outcome.done() and late.outcome.done()):
            await dripping.send(b"x")
            await late.send(b"x")
            assert time.monotonic() - start_s < 1
        assert [await one.status() for one in (dripping, quick, late)] == [503, 200, 503]

    asyncio.run(main())


@contextmanager
def unfinished(server: Running, num: int, size_bytes: int) -> Iterator[None]:
    """Connections whose bodies do not end."""
    with ExitStack() as opened:
        for _ in range(num):
            client = opened.enter_context(server.socket())
            client.sendall(b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 900000\r\n\r\n" + bytes(size_bytes))
        yield


def test_unfinished_bodies_of_one_caller_leave_room_for_another(hub: Hub) -> None:
    started = running(LiveHub(hub), max_held_bytes=100_000, proxies=("127.0.0.1",))
    with started as server, unfinished(server, 3, 33_000):
        server.wait_until(lambda: server.service.bodies._held_bytes == 99_000)
        own = server.predict([picture(size=(60, 60))])
        assert (own.status, own.headers["retry-after"]) == (429, "1")
        assert server.predict([picture(size=(60, 60))], **{"x-forwarded-for": "10.0.0.7"}).status == 200
        assert server.service.bodies._held_bytes == 66_000


@pytest.mark.parametrize("proxy", ["*", "example.org", "10.0.0.1/8", ""])
def test_proxies_are_addresses(proxy: str) -> None:
    with pytest.raises(ServingError, match="no address or network"):
        ServeSettings(proxies=(proxy,))


def test_of_too_many_connections_an_idle_one_of_the_greediest_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "MAX_CONNECTIONS", 3)

    class Connection(TimeoutProtocol):
        def __init__(self, host: str, busy: bool) -> None:
            self.client, self.cycle = (host, 1), SimpleNamespace(response_complete=False) if busy else None

    of_one = [Connection("10.0.0.1", busy=True), Connection("10.0.0.1", busy=False), Connection("10.0.0.1", busy=True)]
    other = Connection("10.0.0.2", busy=False)
    other.connections = {*of_one, other}
    assert other._one_too_many() is of_one[1]
    of_one[0].connections = {*of_one, other}
    assert of_one[0]._one_too_many() is of_one[0]
    other.connections.discard(of_one[1])
    assert other._one_too_many() is other  # none of them is idle
