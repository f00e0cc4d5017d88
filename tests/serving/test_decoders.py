"""Pictures are decoded in processes that are replaced when they end, or are at one for too long."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import torch
from running_server import picture

from torchsnow.data import eval_transform, read_image
from torchsnow.serving import decoders as module
from torchsnow.serving.api_error import ApiError
from torchsnow.serving.decoders import Decoders
from torchsnow.serving.pictures import Picture
from torchsnow.serving.settings import ServeSettings
from torchsnow.source import Framing, InputConfig

CONFIG = InputConfig((3, 32, 32), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bicubic", 0.875)


def run(work: Callable[[Decoders], Coroutine[Any, Any, None]], **settings: Any) -> None:
    """Run a test's coroutine with decoders; all of their processes are gone afterwards."""

    async def main() -> None:
        decoders = Decoders(CONFIG, ServeSettings(**settings))
        await decoders.start()
        try:
            await work(decoders)
        finally:
            pids = pids_of(decoders)
            start_s = time.monotonic()
            await decoders.close()
            assert time.monotonic() - start_s < 5
            assert not any(Path(f"/proc/{pid}").exists() for pid in pids)

    asyncio.run(main())


def pids_of(decoders: Decoders) -> list[int]:
    return [process.pid for process in decoders._since_s]


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0.01)


async def started(decoders: Decoders) -> list[int]:
    """The processes, when all have started."""
    await until(lambda: len(decoders._since_s) == decoders._settings.decode_processes)
    return pids_of(decoders)


def send(pids: list[int], number: int) -> None:
    for pid in pids:
        os.kill(pid, number)


def decode(decoders: Decoders, content: bytes = picture(), *framings: Framing) -> asyncio.Future[Any]:
    return decoders.decode(Picture(content, "x"), framings or (Framing(32),), lambda: False)


def test_a_picture_is_what_it_is_at_evaluation() -> None:
    async def work(decoders: Decoders) -> None:
        for content in (picture(), picture(1, (90, 31), "L", "JPEG")):
            framings = Framing(24), Framing(32), Framing(24, "center")
            decoded = await decode(decoders, content, *framings)
            image = read_image(io.BytesIO(content))
            assert tuple(decoded) == framings
            for framing, pixels in decoded.items():
                assert torch.equal(pixels, eval_transform(CONFIG, framing)(image))

    run(work)


def test_refusals_are_those_of_the_picture_and_cost_no_process() -> None:
    async def work(decoders: Decoders) -> None:
        before = await started(decoders)
        for content, status, words in (
            (b"text", 415, "the image x is no JPEG"),
            (picture()[:200], 422, "cannot read the image x: damaged or truncated"),
            (picture(size=(50, 50)), 422, "50 x 50 pixels are more than"),
        ):
            with pytest.raises(ApiError, match=words) as refused:
                await decode(decoders, content)
            assert refused.value.status == status
        assert pids_of(decoders) == before

    run(work, max_pixels=2400)


def test_a_process_that_takes_too_long_is_killed_and_replaced(caplog: pytest.LogCaptureFixture) -> None:
    async def work(decoders: Decoders) -> None:
        stopped = await started(decoders)
        send(stopped, signal.SIGSTOP)
        asked = [decode(decoders) for _ in stopped]
        assert not decoders.stuck
        await until(lambda: decoders.stuck)
        assert not any(future.done() for future in asked)
        for error in await asyncio.gather(*asked, return_exceptions=True):
            assert isinstance(error, ApiError)
            assert (error.status, error.message) == (
                422,
                "cannot read the image x: it takes more than 1 s; save it again",
            )
        assert len((await decode(decoders))[Framing(32)]) == 3
        await until(lambda: not decoders.stuck)
        assert not set(await started(decoders)) & set(stopped)
        assert not any(Path(f"/proc/{pid}").exists() for pid in stopped)

    run(work, decode_timeout_s=1)
    assert [record.getMessage() for record in caplog.records] == ["a picture ended its process"] * 2


def test_no_picture_is_decoded_beyond_the_deadline() -> None:
    async def work(decoders: Decoders) -> None:
        send(await started(decoders), signal.SIGSTOP)
        with pytest.raises(ApiError, match=r"more than 0\.5 s"):
            await decode(decoders)

    run(work, decode_processes=1, deadline_s=0.5)


def test_a_process_that_crashes_takes_its_picture_alone() -> None:
    async def work(decoders: Decoders) -> None:
        crashed = await started(decoders)
        send(crashed, signal.SIGSTOP)
        asked = decode(decoders)
        await until(lambda: max(time.monotonic() - since_s for since_s in decoders._since_s.values()) > 0)
        others = [decode(decoders) for _ in range(3)]
        send(crashed, signal.SIGSEGV)
        send(crashed, signal.SIGCONT)
        with pytest.raises(ApiError, match="it makes the decoder fail") as refused:
            await asked
        assert refused.value.status == 422
        assert [len((await other)[Framing(32)]) for other in others] == [3, 3, 3]

    run(work, decode_processes=1)


def test_a_process_that_the_system_kills_is_not_the_pictures_fault() -> None:
    async def work(decoders: Decoders) -> None:
        killed = await started(decoders)
        send(killed, signal.SIGSTOP)
        asked = decode(decoders)
        await until(lambda: max(time.monotonic() - since_s for since_s in decoders._since_s.values()) > 0)
        send(killed, signal.SIGKILL)
        with pytest.raises(ApiError, match="out of memory") as refused:
            await asked
        assert (refused.value.status, refused.value.retry_after_s) == (503, 5)

    run(work, decode_processes=1)


def test_a_process_that_ended_while_it_waited_costs_no_picture() -> None:
    async def work(decoders: Decoders) -> None:
        processes, pids = list(decoders._since_s), await started(decoders)
        send(pids, signal.SIGKILL)
        await until(lambda: all(process.returncode is not None for process in processes))
        assert len((await decode(decoders))[Framing(32)]) == 3

    run(work, decode_processes=1)


def test_what_was_given_up_is_not_decoded() -> None:
    async def work(decoders: Decoders) -> None:
        assert await decoders.decode(Picture(b"never looked at", "x"), (32,), lambda: True) == {}

    run(work)


def test_the_end_does_not_wait_for_a_process_that_is_stuck() -> None:
    async def work(decoders: Decoders) -> None:
        send(await started(decoders), signal.SIGSTOP)
        for _ in range(4):
            decode(decoders)
        await asyncio.sleep(0.1)

    run(work, decode_timeout_s=60, deadline_s=60)


def test_without_processes_they_are_stuck_until_one_starts(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_START_S", 0.1)
    monkeypatch.setattr(module, "_PAUSE_S", 0.1)
    monkeypatch.setattr(sys, "executable", "/no/such/python")

    async def work(decoders: Decoders) -> None:
        assert decoders.stuck
        asked = decode(decoders)
        monkeypatch.undo()
        assert len((await asked)[Framing(32)]) == 3
        assert not decoders.stuck

    run(work)
    assert "a process for decoding did not start" in caplog.text
