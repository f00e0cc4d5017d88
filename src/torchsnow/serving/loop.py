"""Work in the background that nothing but the end of the server stops."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from torchsnow.serving.logs import log_fault

LONGEST_PAUSE_S = 5.0  # after rounds that failed, one after the other
_FIRST_PAUSE_S = 0.05


class Loop:
    """Does a piece of work round after round, `pause_s` apart, from `start` to `stop`.

    `work` says whether its round was a good one. An exception is logged with its trace and makes a bad round; the loop
    continues, after pauses that grow while rounds are bad, so that a fault that stays does not flood the log.
    """

    def __init__(self, name: str, work: Callable[[], Awaitable[bool]], pause_s: float = 0.0) -> None:
        self.name = name
        self._work, self._pause_s = work, pause_s
        self._good_s = time.monotonic()
        self._task: asyncio.Task[None] | None = None

    def age_s(self) -> float:
        """Seconds since the last good round, or the last `progress`; before there is one, since the start."""
        return time.monotonic() - self._good_s

    def progress(self) -> None:
        """Note that a long round gets on."""
        self._good_s = time.monotonic()

    def start(self) -> None:
        """Begin, on the running event loop."""
        self.progress()
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """End, in the middle of a round if need be."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        num_bad = 0
        while True:
            num_bad = 0 if await self._is_good() else num_bad + 1
            longer_s = min(LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(num_bad, 10)) if num_bad else 0.0
            await asyncio.sleep(max(self._pause_s, longer_s))

    async def _is_good(self) -> bool:
        try:
            is_good = await self._work()
        except Exception as error:
            log_fault("a background loop failed; it continues", error, loop=self.name)
            return False
        if is_good:
            self.progress()
        return is_good
