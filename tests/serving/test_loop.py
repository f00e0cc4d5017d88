from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from torchsnow.serving import loop as loop_file
from torchsnow.serving.loop import Loop


def rounds_in(seconds: float, outcome: Callable[[int], bool], pause_s: float = 0.0) -> tuple[Loop, list[float]]:
    """A loop that ran for a while, and when its rounds began; `outcome` gets the number of the round."""
    begun: list[float] = []

    async def work() -> bool:
        begun.append(time.monotonic())
        return outcome(len(begun))

    loop = Loop("test", work, pause_s)

    async def main() -> None:
        loop.start()
        await asyncio.sleep(seconds)
        await loop.stop()

    asyncio.run(main())
    return loop, begun


def fails(number: int) -> bool:
    raise MemoryError(f"round {number}")


@pytest.mark.parametrize("error", [MemoryError, RuntimeError, KeyError, OSError])
def test_an_exception_is_logged_and_the_loop_goes_on(error: type[Exception], caplog: pytest.LogCaptureFixture) -> None:
    def outcome(number: int) -> bool:
        if number == 2:
            raise error("the second round")
        return True

    loop, begun = rounds_in(0.4, outcome, 0.01)
    assert len(begun) > 3
    assert loop.age_s() < 0.2
    (record,) = caplog.records
    assert record.exc_info is not None
    assert "the second round" in caplog.text


@pytest.mark.parametrize("outcome", [fails, lambda number: False])
def test_the_age_grows_while_rounds_are_bad(outcome: Callable[[int], bool]) -> None:
    loop, begun = rounds_in(0.4, outcome)
    assert loop.age_s() >= 0.4
    assert 2 <= len(begun) <= 4  # after 0, 0.1, 0.3 s and not as fast as it can


def test_pauses_between_bad_rounds_end_at_the_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_file, "LONGEST_PAUSE_S", 0.02)
    _, begun = rounds_in(0.5, fails)
    assert len(begun) > 8


def test_a_round_that_is_stuck_ages_unless_it_gets_on() -> None:
    async def stuck() -> bool:
        await asyncio.sleep(60)
        return True

    async def main() -> None:
        loop = Loop("test", stuck)
        loop.start()
        await asyncio.sleep(0.2)
        assert loop.age_s() >= 0.2
        loop.progress()
        assert loop.age_s() < 0.1
        await loop.stop()

    asyncio.run(main())
