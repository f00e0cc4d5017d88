"""What the worker processes of one server tell each other: whichever is asked, it speaks for all of them.

Every worker listens on a Unix socket in a folder that is the server's own. A question and its reply are one line of
JSON each. A server of one process has no siblings, and asks itself.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchsnow.serving.logs import log_fault

ASK_S, CHANGE_S = 1.0, 30.0
"""How long a sibling may take to answer a question, and one that makes it load tasks."""
_LIMIT_BYTES = 64 * 2**20
Hear = Callable[[Mapping[str, Any]], Awaitable[Any]]
"""(question) -> reply, both values of JSON."""


@dataclass(frozen=True)
class Place:
    """Which of how many workers a process is, the folder of their sockets, and the descriptor of the shared port."""

    number: int = 0
    of: int = 1
    folder: str = ""
    descriptor: int = -1

    def socket_of(self, number: int) -> str:
        """Where a worker listens."""
        return str(Path(self.folder) / str(number))


class Siblings:
    """The workers of a server, this one among them; `hear` answers what any of them asks."""

    def __init__(self, hear: Hear, place: Place | None = None) -> None:
        self._hear, self._place = hear, place or Place()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Answer until the block ends."""
        if self._place.of == 1:
            yield
            return
        path = Path(self._place.socket_of(self._place.number))
        path.unlink(missing_ok=True)  # of one that was killed
        server = await asyncio.start_unix_server(self._answer, path)
        try:
            yield
        finally:
            server.close()

    async def ask(self, timeout_s: float = ASK_S, **question: Any) -> list[Any]:
        """What every worker says, by number; None for one that is not there, or takes longer than that."""
        asked = (self._ask(number, question, timeout_s) for number in range(self._place.of))
        return await asyncio.gather(*asked)

    async def _ask(self, number: int, question: Mapping[str, Any], timeout_s: float) -> Any:
        if number == self._place.number:
            return await self._hear(question)
        try:
            async with asyncio.timeout(timeout_s):
                path = self._place.socket_of(number)
                reader, writer = await asyncio.open_unix_connection(path, limit=_LIMIT_BYTES)
                try:
                    writer.write(_line(question))
                    return json.loads(await reader.readuntil())
                finally:
                    writer.close()
        except (OSError, EOFError, ValueError):
            return None

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(_line(await self._hear(json.loads(await reader.readuntil()))))
            await writer.drain()
        except (OSError, EOFError):
            pass  # whoever asked is gone
        except Exception as error:
            log_fault("a sibling was not answered", error)
        finally:
            writer.close()


def is_alive(place: Place, number: int) -> bool:
    """Whether a worker answers, asked from outside any event loop."""
    with socket.socket(socket.AF_UNIX) as asking:
        asking.settimeout(ASK_S)
        try:
            asking.connect(place.socket_of(number))
            asking.sendall(_line({"what": "alive"}))
            return bool(asking.recv(1))
        except OSError:
            return False


def _line(value: Any) -> bytes:
    return json.dumps(value, allow_nan=False).encode() + b"\n"
