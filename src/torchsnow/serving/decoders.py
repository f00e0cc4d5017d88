"""The processes that decode pictures: one that takes too long, or ends, is replaced.

The pools of libraries send pickles, which a decoder that a picture has taken over could forge; so these are plain
subprocesses, of which asyncio takes care.
"""

from __future__ import annotations

import asyncio
import json
import math
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from torchsnow.data.transforms import cut_of, scale
from torchsnow.io.shortage import shortage
from torchsnow.serving.api_error import ApiError, api_error_of
from torchsnow.serving.logs import log_trouble
from torchsnow.serving.pictures import READY, Picture
from torchsnow.serving.settings import ServeSettings
from torchsnow.source import Framing, InputConfig

_START_S, _END_S = 30.0, 5.0
_PAUSE_S = 1.0  # before another try to start a process
_BUFFER_BYTES = 2**20
Decoded = Mapping[Framing, Tensor]
"""A tensor (3, S, S) for every framing, as at evaluation."""


@dataclass(frozen=True, eq=False)
class _Job:
    picture: Picture
    framings: Sequence[Framing]
    given_up: Callable[[], bool]
    decoded: asyncio.Future[Decoded]


class Decoders:
    """Decodes pictures in processes of their own. To be used from one event loop, between `start` and `close`."""

    def __init__(self, config: InputConfig, settings: ServeSettings) -> None:
        self._config, self._settings = config, settings
        self._scale = scale(config)
        self._timeout_s = min(settings.decode_timeout_s, settings.deadline_s)
        self._jobs: asyncio.Queue[_Job] = asyncio.Queue()
        self._keepers: list[asyncio.Task[None]] = []
        self._endings: set[asyncio.Task[None]] = set()
        self._since_s: dict[
            Process, float
        ] = {}  # when each was given the picture that it is at; later than now for none
        self._started = asyncio.Event()

    async def start(self) -> None:
        """Start the processes, and wait for the first of them for a while."""
        self._keepers = [asyncio.create_task(self._keep()) for _ in range(self._settings.decode_processes)]
        with suppress(TimeoutError):
            async with asyncio.timeout(_START_S):
                await self._started.wait()

    async def close(self) -> None:
        """Kill the processes; what still waits is never decoded."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        if self._endings:
            await asyncio.wait(self._endings, timeout=_END_S)

    @property
    def stuck(self) -> bool:
        """Whether no process can be asked: none has started, or all have been at a picture for half of its time."""
        return all(time.monotonic() - since_s > self._timeout_s / 2 for since_s in self._since_s.values())

    def decode(
        self, picture: Picture, framings: Sequence[Framing], given_up: Callable[[], bool]
    ) -> asyncio.Future[Decoded]:
        """A picture in these framings, or in none if it was given up before its turn came.

        Its error is a ApiError: 415 for a format that is not taken, 422 for a picture that cannot be used, whose
        decoding takes too long, or makes the process end.
        """
        job = _Job(picture, framings, given_up, asyncio.get_running_loop().create_future())
        self._jobs.put_nowait(job)
        return job.decoded

    async def _keep(self) -> None:
        """One process after another, until cancelled."""
        while True:
            try:
                async with self._process() as process:
                    await self._work(process)
            except (OSError, EOFError) as error:
                log_trouble("a process for decoding did not start", reason=str(error) or type(error).__name__)
                await asyncio.sleep(_PAUSE_S)

    @asynccontextmanager
    async def _process(self) -> AsyncIterator[Process]:
        """A process that is ready, killed when the block ends."""
        # The same path as here, for the same code, and not the working folder before it.
        code = f"import sys; sys.path[:] = {sys.path!r}; from torchsnow.serving.pictures import main; main()"
        starting = asyncio.create_task(
            asyncio.create_subprocess_exec(sys.executable, "-c", code, stdin=PIPE, stdout=PIPE, limit=_BUFFER_BYTES)
        )
        try:
            process = await asyncio.shield(starting)  # cancelled half-way, it would leave the process behind
            async with asyncio.timeout(_START_S):
                await _replies(process).readuntil(READY)
            self._since_s[process] = math.inf
            self._started.set()
            yield process
        finally:
            ending = asyncio.create_task(self._end(starting))
            self._endings.add(ending)
            ending.add_done_callback(self._endings.discard)

    async def _end(self, starting: asyncio.Task[Process]) -> None:
        """Kill a process that has started, and wait for its end: a task of its own, for that must not be cancelled."""
        try:
            process = await starting
        except OSError:
            return
        self._since_s.pop(process, None)
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()

    async def _work(self, process: Process) -> None:
        """Give pictures to a process until it has ended, or is at one for too long."""
        while True:
            job = await self._jobs.get()
            if process.returncode is not None:
                self._jobs.put_nowait(job)
                return
            if job.given_up():
                job.decoded.set_result({})
                continue
            self._since_s[process] = time.monotonic()
            try:
                async with asyncio.timeout(self._timeout_s):
                    job.decoded.set_result(await self._ask(process, job))
            except ApiError as api_error:
                job.decoded.set_exception(api_error)
            except Exception as error:
                job.decoded.set_exception(await self._failed(process, job, error))
                return
            self._since_s[process] = math.inf

    async def _ask(self, process: Process, job: _Job) -> Decoded:
        content, called = job.picture
        asked = {
            "called": called,
            "bytes": len(content),
            "cuts": [cut_of(self._config, framing) for framing in job.framings],
            "max_pixels": self._settings.max_pixels,
            "formats": self._settings.formats,
            "seconds": math.ceil(self._timeout_s) + 1,
        }
        requests, replies = process.stdin, _replies(process)
        assert requests is not None
        requests.write(json.dumps(asked, allow_nan=False).encode() + b"\n")
        requests.write(content)
        api_error = json.loads(await replies.readuntil())
        if api_error is not None:
            raise ApiError(*api_error)
        return {
            framing: self._tensor(await replies.readexactly(3 * framing.image_size**2), framing.image_size)
            for framing in job.framings
        }

    def _tensor(self, rows: bytes, size: int) -> Tensor:
        pixels = torch.frombuffer(bytearray(rows), dtype=torch.uint8).view(size, size, 3)
        return self._scale(pixels.permute(2, 0, 1).contiguous())

    async def _failed(self, process: Process, job: _Job, error: Exception) -> ApiError:
        """What to say of a picture that has cost a process. Who kills it from outside is a system without memory."""
        is_late, was_killed = isinstance(error, TimeoutError), False
        if not is_late:
            with suppress(TimeoutError):
                async with asyncio.timeout(_PAUSE_S):
                    was_killed = await process.wait() == -signal.SIGKILL
        reason = f"it takes more than {self._timeout_s:g} s" if is_late else "it makes the decoder fail"
        log_trouble(
            "a picture ended its process",
            reason="killed by the system" if was_killed else reason,
            error=repr(error),
            bytes=len(job.picture.content),
        )
        of_machine = api_error_of("out of memory" if was_killed else shortage(error))
        return of_machine or ApiError(
            422, "bad_image", f"cannot read the image {job.picture.called}: {reason}; save it again"
        )


def _replies(process: Process) -> asyncio.StreamReader:
    assert process.stdout is not None
    return process.stdout
