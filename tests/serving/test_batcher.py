from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from torchsnow.hub import Hub
from torchsnow.hub.live import Answer, LiveHub, LiveTask
from torchsnow.serving import batcher as batcher_file
from torchsnow.serving.api_error import ApiError
from torchsnow.serving.batcher import Batcher
from torchsnow.serving.decoders import Decoded
from torchsnow.serving.metrics import Metrics
from torchsnow.serving.pictures import Picture
from torchsnow.serving.settings import ServeSettings
from torchsnow.source import Framing


class SlowHub:
    """A live hub whose passes wait for `gate`, and which notes them."""

    def __init__(self, live: LiveHub) -> None:
        self.live, self.hub = live, live.hub
        self.gate = threading.Event()
        self.passes: list[list[tuple[str, int]]] = []
        self.poison: float | None = None

    def run(self, images: Tensor, tasks: Sequence[LiveTask], rows: Sequence[Sequence[int]]) -> list[Answer]:
        self.gate.wait(30)
        if self.poison is not None and (images == self.poison).any():
            raise RuntimeError("out of memory, say")
        self.passes.append([(task.name, len(own)) for task, own in zip(tasks, rows, strict=True)])
        return self.live.run(images, tasks, rows)


def sent(*contents: bytes) -> list[Picture]:
    return [Picture(content, "x") for content in contents]


def decode(given: Picture, framings: Sequence[Framing], given_up: Callable[[], bool]) -> asyncio.Future[Decoded]:
    decoded = asyncio.get_running_loop().create_future()
    if given.content == b"bad":
        decoded.set_exception(ApiError(422, "bad_image", "no picture"))
    elif given_up():
        decoded.set_result({})
    else:
        decoded.set_result(
            {
                framing: torch.full((3, framing.image_size, framing.image_size), float(given.content[0]))
                for framing in framings
            }
        )
    return decoded


@pytest.fixture
def slow(hub: Hub) -> SlowHub:
    return SlowHub(LiveHub(hub))


def run(
    slow: SlowHub, work: Callable[[Batcher, dict[str, LiveTask]], Coroutine[Any, Any, None]], **settings: Any
) -> Metrics:
    """Run a test's coroutine with a batcher and the tasks by name."""
    metrics = Metrics()

    async def main() -> None:
        batcher = Batcher(slow, decode, ServeSettings(**{"wait_s": 0.02, **settings}), metrics)  # type: ignore[arg-type]
        batcher.loop.start()
        try:
            await work(batcher, {task.name: task for task in slow.live.tasks()})
        finally:
            slow.gate.set()
            await batcher.loop.stop()
            batcher.close()

    asyncio.run(main())
    return metrics


async def settled() -> None:
    """Everything that can continue has continued."""
    for _ in range(20):
        await asyncio.sleep(0.01)


def test_different_tasks_share_a_pass(slow: SlowHub) -> None:
    async def work(batcher: Batcher, tasks: dict[str, LiveTask]) -> None:
        slow.gate.set()
        asked = [batcher.ask(sent(bytes([i])), [tasks["abc"[i % 3]]], 10) for i in range(6)]
        for i, (answers,) in enumerate(await asyncio.gather(*asked)):
            assert list(answers) == ["abc"[i % 3]]

    run(slow, work, batch_size=6)
    assert sorted(slow.passes[0]) == [("a", 2), ("b", 2), ("c", 2)]
    assert len(slow.passes) == 1


def test_no_pass_has_more_than_a_batch(slow: SlowHub) -> None:
    async def work(batcher: Batcher, tasks: dict[str, LiveTask]) -> None:
        slow.gate.set()
        assert len(await batcher.ask(sent(*(bytes([i]) for i in range(10))), [tasks["a"]], 10)) == 10

    run(slow, work, batch_size=4)
    assert [own for ((_, own),) in slow.passes] == [4, 4, 2]


def test_a_full_queue_refuses_and_says_when_to_come_again(slow: SlowHub) -> None:
    async def work(batcher: Batcher, tasks: dict[str, LiveTask]) -> None:
        asked = [asyncio.ensure_future(batcher.ask(sent(b"x"), [tasks["a"]], 10)) for _ in range(20)]
        await settled()
        refused = [task.exception() for task in asked if task.done()]
        assert len(refused) == 20 - 4 - 8  # two batches of two in work, eight wait
        for error in refused:
            assert isinstance(error, ApiError)
            assert (error.status, error.code) == (429, "queue_full")
            assert (error.retry_after_s or 0) >= 1
        slow.gate.set()
        assert len([1 for result in await asyncio.gather(*asked, return_exceptions=True) if len_of(result)]) == 12

    metrics = run(slow, work, batch_size=2, queue_size=8)
    assert 'torchsnow_rejected_total{reason="queue_full"} 8.0' in metrics.text()


def test_what_the_queue_has_no_room_for_need_not_be_read(slow: SlowHub) -> None:
    async def work(batcher: Batcher, tasks: dict[str, LiveTask]) -> None:
        batcher.validate_room({"a"})
        asked = [asyncio.ensure_future(batcher.ask(sent(b"x"), [tasks["a"]], 10)) for _ in range(20)]
        await settled()
        with pytest.raises(ApiError, match="too many images wait"):
            batcher.validate_room({"a"})
        batcher.validate_room({"a", "b"})  # one for b, who has none waiting, would be let in
        asked += [asyncio.ensure_future(batcher.ask(sent(b"x"), [tasks["b"]], 10)) for _ in range(20)]
        await settled()
        with pytest.raises(ApiError, match="too many images wait"):
            batcher.validate_room({"a", "b"})
        slow.gate.set()
        await asyncio.gather(*asked, return_exceptions=True)
        batcher.validate_room({"a"})

    run(slow, work, batch_size=2, queue_size=8)


@pytest.mark.parametrize("others", [0, 5])
def test_what_would_be_late_is_not_computed_while_others_wait(slow: SlowHub, others: int) -> None:
    async def work(batcher: Batcher, tasks: dict[str, LiveTask]) -> None:
        batcher._s_per_image = 1.0
        batches = [asyncio.ensure_future(batcher.ask(sent(b"x"), [tasks["c"]], 10)) for _ in range(2)]  # in work
        await settled()
        late = asyncio.ensure_future(batcher.ask(sent(b"x"), [tasks["a"]], 1.5))
        await settled()
        in_time = [asyncio.ensure_future(batcher.ask(sent(b"x"), [tasks["b"]], 10)) for _ in range(others)]
        await settled()
        slow.gate.set()
        await asyncio.gather(*batches, *in_time)
        if others:
            with pytest.raises(ApiError, match="not answered before the deadline"):
                await late
        else:
            assert list((await late)[0]) == ["a"]

    run(slow, work, batch_size=2, queue_size=20)
    assert ("a" in {name for names in slow.passes for name, _ in names}) == (others == 0)


def test_a_request_that_is_alone_is_let_in_however_slow_the_passes_were(slow: SlowHub) -> None:
    async def work(batcher: Batcher, tasks: dict[str, LiveTask]) -> None:
        slow.gate.set()
        batcher._s_per_image = 100.0
        assert len(await batcher.ask(sent(*(bytes([i]) for i in range(16))), [tasks["a"]], 10)) == 16
        assert batcher._s_per_image < 50

    run(slow, work, batch_size=4)


def len_of(result: Any) -> int:
    return 0 if isinstance(result, BaseException) else len(result)


def test_a_hot_task_neither_starves_another_nor_keeps_it_out(slow: SlowHub) -> None:
    order: list[str] = []

    async def ask(batcher: Batcher, task: LiveTask) -> None:
        await batcher.ask(sent(b"x"), [task], 10)
        order.append(task.name)

    async def work(batcher: Batcher, tasks: dict[str, LiveTask]) -> None:
        hot = [asyncio.ensure_future(ask(batcher, tasks["a"])) for _ in range(40)]
        await settled()
        rare = [asyncio.ensure_future(ask(batcher, tasks["b"])) for _ in range(3)]
        await settled()
        assert not any(task.done() for task in rare)  # they were let in, though the queue was full
        slow.gate.set()
        await asyncio.gather(*hot, *rare, return_exceptions=True)

    run(slow, work, batch_size=2, queue_size=10)
    assert order.count("b") == 3
    assert max(i for i, name in enumerate(order) if name == "b") < 4 + 2 * 3 + 2  # next to a's, in turns


def test_the_deadline_ends_the_wait_and_frees_the_places(slow: SlowHub) -> None:
    async def work(batcher: Batcher, tasks: dict[str, LiveTask]) -> None:
        asked = [batcher.ask(sent(b"x"), [tasks["a"]], 0.1) for _ in range(10)]
        for error in await asyncio.gather(*asked, return_exceptions=True):
            assert isinstance(error, ApiError)
            assert (error.status, error.code) == (429, "deadline")
        slow.gate.set()
        await settled()
        assert len(await batcher.ask(sent(b"y"), [tasks["b"]], 10)) == 1

    run(slow, work, batch_size=2, queue_size=20)
    assert ("a", 2) in slow.passes[0]
    assert slow.passes[1:] == [[("b", 1)]]  # what was given up was never computed


def test_a_client_that_goes_away_frees_its_place(slow: SlowHub) -> None:
    async def work(batcher: Batcher, tasks: dict[str, LiveTask]) -> None:
        stays = [asyncio.ensure_future(batcher.ask(sent(b"z"), [tasks["c"]], 10)) for _ in range(4)]  # in work
        await settled()
        gone = [asyncio.ensure_future(batcher.ask(sent(b"x"), [tasks["a"]], 10)) for _ in range(6)]
        await settled()
        for task in gone:
            task.cancel()
        await settled()
        stays += [asyncio.ensure_future(batcher.ask(sent(b"y"), [tasks["a"]], 10)) for _ in range(6)]
        await settled()
        slow.gate.set()
        assert [len(answers) for answers in await asyncio.gather(*stays)] == [1] * 10

    metrics = run(slow, work, batch_size=2, queue_size=6)
    assert "queue_full" not in metrics.text()
    assert "torchsnow_queue_images 0.0" in metrics.text()


def test_a_bad_picture_fails_alone(slow: SlowHub) -> None:
    async def work(batcher: Batcher, tasks: dict[str, LiveTask]) -> None:
        slow.gate.set()
        good, bad, mixed = await asyncio.gather(
            batcher.ask(sent(b"x"), [tasks["a"]], 10),
            batcher.ask(sent(b"bad"), [tasks["a"]], 10),
            batcher.ask(sent(b"y", b"bad"), [tasks["b"]], 10),
            return_exceptions=True,
        )
        assert len_of(good) == 1
        assert all(isinstance(error, ApiError) and error.status == 422 for error in (bad, mixed))

    run(slow, work)


def test_an_image_that_breaks_a_pass_fails_alone(slow: SlowHub, caplog: pytest.LogCaptureFixture) -> None:
    slow.poison = 7.0

    async def work(batcher: Batcher, tasks: dict[str, LiveTask]) -> None:
        slow.gate.set()
        asked = [batcher.ask(sent(bytes([i])), [tasks["a"]], 10) for i in (1, 7, 2)]
        first, poisoned, last = await asyncio.gather(*asked, return_exceptions=True)
        assert (len_of(first), len_of(last)) == (1, 1)
        assert isinstance(poisoned, ApiError)
        assert (poisoned.status, "memory" in poisoned.message) == (500, False)
        assert len(await batcher.ask(sent(b"x"), [tasks["a"]], 10)) == 1

    run(slow, work)
    assert "out of memory, say" in caplog.text


def test_a_fault_of_the_batcher_itself_is_said_and_passes_go_on(
    slow: SlowHub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(batcher: Batcher, tasks: dict[str, LiveTask]) -> None:
        slow.gate.set()

        def broken(item: object, answers: object) -> None:
            raise MemoryError("while an answer is given")

        with monkeypatch.context() as patch:
            patch.setattr(batcher, "_say", broken)
            with pytest.raises(ApiError, match="out of memory"):
                await batcher.ask(sent(b"x"), [tasks["a"]], 10)
        assert len(await batcher.ask(sent(b"x"), [tasks["a"]], 10)) == 1
        assert batcher.loop.age_s() < 5

    run(slow, work)
    assert "a background loop failed" in caplog.text


def test_a_batcher_without_work_is_alive(slow: SlowHub, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(batcher: Batcher, tasks: dict[str, LiveTask]) -> None:
        await asyncio.sleep(0.5)
        assert batcher.loop.age_s() < 0.4
        asked = asyncio.ensure_future(batcher.ask(sent(b"x"), [tasks["a"]], 10))  # the gate is shut: the pass hangs
        await asyncio.sleep(0.5)
        assert batcher.loop.age_s() >= 0.3
        slow.gate.set()
        assert len(await asked) == 1

    monkeypatch.setattr(batcher_file, "_IDLE_S", 0.05)
    run(slow, work)
