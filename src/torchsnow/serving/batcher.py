"""One queue over all tasks: requests for different tasks share source passes.

An image goes through three stages: it waits, in an order that is fair to the tasks; it is decoded in another process,
a little ahead of what the next passes can take; then it joins a pass. All of the bookkeeping happens on the
event loop, so there are no locks. An image whose request was given up is dropped at the next stage.
"""

from __future__ import annotations

import asyncio
import bisect
import math
import time
from collections.abc import Callable, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from torchsnow.hub.live import LiveHub, LiveTask
from torchsnow.io.shortage import shortage
from torchsnow.serving.answers import Answers, TaskAnswer, TaskFailure
from torchsnow.serving.api_error import ApiError, api_error_of
from torchsnow.serving.decoders import Decoded
from torchsnow.serving.fair_order import FairOrder
from torchsnow.serving.logs import log_fault, log_trouble
from torchsnow.serving.loop import Loop
from torchsnow.serving.metrics import Metrics
from torchsnow.serving.pictures import Picture
from torchsnow.serving.settings import ServeSettings
from torchsnow.serving.tracing import Stages
from torchsnow.source import Framing
from torchsnow.task_file.labels import probabilities

_IDLE_S = 1.0
_IN_TIME = 0.8  # of the deadline: what may pass until the last in line is answered, for passes are not all alike
_REST_S = 10.0  # for a task that broke a pass: to find out which it was takes many passes
_FAILED = "this image could not be answered; the server's log says why"
_NOT_FINITE = "the task's numbers are too large to compute with: its logits for this image are not finite"
Result = TypeVar("Result")
Decode = Callable[[Picture, Sequence[Framing], Callable[[], bool]], asyncio.Future[Decoded]]
"""(picture, framings, whether it is given up) -> a tensor (3, S, S) per framing, in a while."""


@dataclass(eq=False)
class Item:
    """One image, the tasks that it is for, and what they have answered so far. `place` orders those that wait, `end_s`
    is its deadline."""

    picture: Picture
    tasks: tuple[LiveTask, ...]
    place: float
    end_s: float
    answer: asyncio.Future[Answers]
    decoding: bool = False
    results: Answers = field(default_factory=dict)
    stages: Stages = field(default_factory=Stages)


@dataclass(frozen=True, eq=False)
class QueuedImage:
    """One image, decoded, for those of its tasks that read it in one framing."""

    item: Item
    pixels: Tensor
    tasks: tuple[LiveTask, ...]
    ready_s: float


class Batcher:
    """Answers for images, in batches, while its `loop` runs. To be used from one event loop."""

    def __init__(self, live: LiveHub, decode: Decode, settings: ServeSettings, metrics: Metrics) -> None:
        self._live, self._decode, self._settings, self._metrics = live, decode, settings, metrics
        self._device = next(live.hub.source.parameters()).device
        self._waiting: list[Item] = []  # by place
        self._window: set[Item] = set()  # being decoded, or decoded and not yet answered
        self._ready: dict[Framing, list[QueuedImage]] = {}
        self._order = FairOrder()
        self._resting: dict[str, float] = {}  # versions that broke a pass, by SHA-256: until when they are not run
        self._s_per_image = 0.1  # while there is always work
        self._wake = asyncio.Event()
        self._engine = ThreadPoolExecutor(1, "engine")
        self.loop = Loop("passes", self._round)
        self._source_ns = 0  # when the source was through with the last pass, where that is traced
        if settings.traces:
            live.hub.source.register_forward_hook(self._note_source)
        self._end_s = 0.0  # of the last pass, if there was more to do by then
        metrics.queue.set_function(lambda: len(self._waiting) + len(self._window))

    def close(self) -> None:
        """End the thread, when the loop has stopped; what still waits is never answered."""
        self._engine.shutdown(wait=False, cancel_futures=True)

    async def run_on_engine(self, work: Callable[[], Result]) -> Result:
        """The result of other work for the engine's thread, between two passes."""
        return await asyncio.get_running_loop().run_in_executor(self._engine, work)

    def validate_room(self, names: Set[str]) -> None:
        """Raise ApiError (429) when no image for any of these tasks would be let in: then it need not be read."""
        if names and len(self._waiting) >= self._room() and self._order.soonest(names) >= self._waiting[-1].place:
            raise self._full()

    async def ask(self, images: Sequence[Picture], tasks: Sequence[LiveTask], timeout_s: float) -> list[Answers]:
        """Every image to all of the tasks. Cancelling the call frees its places in the queue.

        Raises ApiError: 429 when the queue is full or the time is over, 415 and 422 for a picture that cannot be used.
        """
        items = self._admit(images, tuple(tasks), time.monotonic() + timeout_s)
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.gather(*(item.answer for item in items))
        except TimeoutError:
            raise self._late() from None
        finally:
            for item in items:
                self._drop(item)

    def _admit(self, images: Sequence[Picture], tasks: tuple[LiveTask, ...], end_s: float) -> list[Item]:
        """New items in the queue; when it is over-full, those at its end are refused, whoever they belong to.

        A request that finds nobody else is let in whatever the pace is said to be: only passes can mend that number.
        """
        is_alone = not self._waiting and not self._window
        loop, names = asyncio.get_running_loop(), [task.name for task in tasks]
        items = [Item(image, tasks, self._order.place(names), end_s, loop.create_future()) for image in images]
        for item in items:
            bisect.insort(self._waiting, item, key=_place)
        self._feed()
        too_many = 0 if is_alone else min(len(self._waiting) - self._room(), len(items))
        for _ in range(too_many):
            last = self._waiting.pop()
            self._order.forget([task.name for task in last.tasks])
            if not last.answer.done():
                last.answer.set_exception(self._full())
        return items

    def _room(self) -> int:
        """Images that may wait, behind those in the window."""
        return min(self._settings.queue_size, max(1, self._in_time() - self._ahead()))

    def _ahead(self) -> int:
        """Images in the window, at most: two passes, and fewer than can be answered, for one must be able to wait."""
        return min(2 * self._settings.batch_size, max(1, self._in_time() - 1))

    def _in_time(self) -> int:
        """Images that can be answered before the deadline, at the present pace."""
        return max(1, int(_IN_TIME * self._settings.deadline_s / self._s_per_image))

    def _full(self) -> ApiError:
        self._metrics.rejected.labels("queue_full").inc()
        return ApiError(429, "queue_full", "too many images wait; try again later", self._retry_after_s())

    def _retry_after_s(self) -> int:
        return min(60, max(1, math.ceil(len(self._waiting) * self._s_per_image)))

    def _late(self) -> ApiError:
        self._metrics.rejected.labels("deadline").inc()
        return ApiError(429, "deadline", "not answered before the deadline", self._retry_after_s())

    def _drop(self, item: Item) -> None:
        if not item.answer.cancel() and not item.answer.cancelled():
            item.answer.exception()  # it has been looked at
        with suppress(ValueError):
            self._waiting.remove(item)
        if not item.decoding:  # or else it leaves when its process is free
            self._leave(item)

    def _leave(self, item: Item) -> None:
        self._window.discard(item)
        self._feed()

    def _feed(self) -> None:
        """Decode a little ahead of the passes."""
        while self._waiting and len(self._window) < self._ahead():
            item = self._waiting.pop(0)
            self._order.reached(item.place)
            self._window.add(item)
            item.decoding = True
            item.stages.end("queue")
            framings = sorted({task.framing for task in item.tasks})
            self._decode(item.picture, framings, item.answer.done).add_done_callback(partial(self._decoded, item))

    def _decoded(self, item: Item, decoding: asyncio.Future[Decoded]) -> None:
        item.decoding = False
        if decoding.cancelled():
            return
        error = decoding.exception()
        if error is not None:
            self._fail(item, error)
            return
        if item.answer.done():
            self._leave(item)
            return
        item.stages.end("decode")
        for framing, pixels in decoding.result().items():
            own = tuple(task for task in item.tasks if task.framing == framing)
            self._ready.setdefault(framing, []).append(QueuedImage(item, pixels, own, time.monotonic()))
        self._wake.set()

    def _fail(self, item: Item, error: BaseException) -> None:
        if not isinstance(error, ApiError):
            log_fault("an image failed", error)
            error = api_error_of(shortage(error)) or ApiError(500, "internal", _FAILED)
        if not item.answer.done():
            item.answer.set_exception(error)
        self._leave(item)

    async def _round(self) -> bool:
        """One pass, or none if nothing is there to be answered for a while."""
        framing = await self._next_framing()
        batch = [] if framing is None else self._take(framing)
        try:
            if batch:
                await self._answer(batch)
        except Exception as error:
            for piece in batch:
                self._fail(piece.item, error)
            raise
        return True

    async def _answer(self, batch: Sequence[QueuedImage]) -> None:
        start_s = self._end_s or time.monotonic()
        try:
            results: list[Answers | Exception] = [*await self.run_on_engine(partial(self._pass, batch))]
        except Exception:
            results = [await self._apart(piece) for piece in batch]
        for piece, answers in zip(batch, results, strict=True):
            self._say(piece.item, self._failures(piece, answers) if isinstance(answers, Exception) else answers)
        now_s = time.monotonic()
        self._s_per_image += 0.2 * ((now_s - start_s) / len(batch) - self._s_per_image)
        self._end_s = now_s if self._window else 0.0

    async def _apart(self, piece: QueuedImage) -> Answers | Exception:
        """One image by itself, and then by halves of its tasks, so that one that fails takes no others with it; the
        error, where all of them fail or nobody waits any more."""
        try:
            return (await self.run_on_engine(partial(self._pass, [piece])))[0]
        except Exception as error:
            if len(piece.tasks) == 1 or piece.item.answer.done() or time.monotonic() > piece.item.end_s:
                return error
        middle = len(piece.tasks) // 2
        halves = [replace(piece, tasks=part) for part in (piece.tasks[:middle], piece.tasks[middle:])]
        results = [await self._apart(half) for half in halves]
        first, second = results
        if isinstance(first, Exception) and isinstance(second, Exception):
            return first
        answers: Answers = {}
        for half, own in zip(halves, results, strict=True):
            if isinstance(own, Exception):  # of these tasks, for the image does for the others
                if shortage(own) is None:
                    self._resting |= {task.sha256: time.monotonic() + _REST_S for task in half.tasks}
                own = self._failures(half, own)
            answers |= own
        return answers

    def _failures(self, piece: QueuedImage, error: Exception) -> Answers:
        """For all tasks of a piece that could not be worked on."""
        log_fault("an image failed", error, tasks=[task.name for task in piece.tasks])
        self._metrics.rejected.labels("internal").inc(len(piece.tasks))
        of_machine = api_error_of(shortage(error))
        code, message = ("internal", _FAILED) if of_machine is None else (of_machine.code, of_machine.message)
        return {task.name: TaskFailure(task, code, message, of_machine) for task in piece.tasks}

    def _say(self, item: Item, answers: Answers) -> None:
        item.results.update(answers)
        if len(item.results) < len(item.tasks):
            return
        failures = [own for own in item.results.values() if isinstance(own, TaskFailure)]
        if len(failures) == len(item.tasks):
            of_machine = next((own.api_error for own in failures if own.api_error is not None), None)
            self._fail(item, of_machine or ApiError(500, failures[0].code, failures[0].message))
            return
        if not item.answer.done():
            item.answer.set_result(item.results)
        self._leave(item)

    async def _next_framing(self) -> Framing | None:
        """The framing of the next pass: as soon as a batch is full, or its first image has waited long enough.

        None after `_IDLE_S` without any: then the loop is seen to be alive.
        """
        end_s = time.monotonic() + _IDLE_S
        while True:
            self._wake.clear()
            first = {framing: pieces[0].ready_s for framing, pieces in self._ready.items()}
            late = [framing for framing in first if time.monotonic() >= first[framing] + self._settings.wait_s]
            if late:
                return min(late, key=first.__getitem__)
            full = [framing for framing, own in self._ready.items() if len(own) >= self._settings.batch_size]
            if full:
                return full[0]
            if time.monotonic() >= end_s:
                return None
            until_s = min(first.values()) + self._settings.wait_s if first else end_s
            with suppress(TimeoutError):
                async with asyncio.timeout(min(until_s, end_s) - time.monotonic()):
                    await self._wake.wait()

    def _take(self, framing: Framing) -> list[QueuedImage]:
        """The next batch. Nothing that would be late is computed while others wait that would not be."""
        alive = [piece for piece in self._ready.pop(framing) if not piece.item.answer.done()]
        batch_size = min(self._settings.batch_size, max(1, self._in_time() // 2))  # one pass may run, and one follow
        answered_s = time.monotonic() + self._s_per_image * min(len(alive), batch_size)
        in_time = [piece for piece in alive if piece.item.end_s >= answered_s]
        if in_time and self._waiting:
            for piece in alive:
                if piece.item.end_s < answered_s:
                    self._fail(piece.item, self._late())
            alive = in_time
        batch, rest = alive[:batch_size], alive[batch_size:]
        if rest:
            self._ready[framing] = rest
        return batch

    def _pass(self, batch: Sequence[QueuedImage]) -> list[Answers]:
        """One source pass, in the engine's thread."""
        asked: dict[tuple[str, str], tuple[LiveTask, list[int]]] = {}
        results: list[Answers] = [{} for _ in batch]
        for row, piece in enumerate(batch):
            for task in piece.tasks:
                if self._resting.get(task.sha256, 0.0) > time.monotonic():
                    results[row][task.name] = TaskFailure(task, "internal", _FAILED)
                else:
                    asked.setdefault((task.name, task.sha256), (task, []))[1].append(row)
        tasks, rows = [task for task, _ in asked.values()], [own for _, own in asked.values()]
        for piece in batch:
            piece.item.stages.end("batch")
        images = torch.stack([piece.pixels for piece in batch]).to(self._device)
        for answer, own_rows in zip(self._live.run(images, tasks, rows), rows, strict=True):
            logits = answer.logits.float().cpu()
            are_finite, shares = logits.isfinite().all(1).tolist(), probabilities(logits, answer.task.thresholds)
            scores = len(own_rows) * [None] if answer.unknown_scores is None else answer.unknown_scores.tolist()
            for place, row in enumerate(own_rows):
                pixels, task = batch[row].pixels, answer.task
                results[row][task.name] = (
                    TaskAnswer(task, logits[place], shares[place], pixels, scores[place])
                    if are_finite[place]
                    else TaskFailure(task, "not_finite", _NOT_FINITE)
                )
            if not all(are_finite):
                log_trouble("the logits of a task are not finite", task=answer.task.name, sha256=answer.task.sha256)
                self._metrics.rejected.labels("not_finite").inc(are_finite.count(False))
        for piece in batch:
            piece.item.stages.end("source", self._source_ns)
            piece.item.stages.end("tasks")
        self._metrics.batch_size.observe(len(batch))
        self._metrics.passes.inc()
        return results

    def _note_source(self, *_: object) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._source_ns = time.time_ns()


def _place(item: Item) -> float:
    return item.place
