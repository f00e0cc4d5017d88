"""What all routes share: from the pictures of a request to the answers of its tasks."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence, Set
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from torchsnow.hub.live import LiveHub, LiveTask
from torchsnow.serving.answers import Answers, Explainer, TaskAnswer, TaskFailure
from torchsnow.serving.api_error import ApiError, ClientGone
from torchsnow.serving.batcher import Batcher
from torchsnow.serving.bodies import Bodies
from torchsnow.serving.certificate import Certificate
from torchsnow.serving.decoders import Decoders
from torchsnow.serving.hub_watcher import HubWatcher
from torchsnow.serving.metrics import Metrics, together
from torchsnow.serving.replies import as_json
from torchsnow.serving.settings import ServeSettings
from torchsnow.serving.siblings import CHANGE_S, Siblings
from torchsnow.serving.tracing import Tracing

DEADLINE_HEADER = "x-deadline-s"
DEADLINE = {
    "name": DEADLINE_HEADER,
    "in": "header",
    "schema": {"type": "number", "exclusiveMinimum": 0},
    "description": "Seconds after which the answer is of no use",
}
"""The header in the words of OpenAPI."""
# What is done in a moment is done on the event loop: under load, going to a thread and back takes longer.
_QUICK_BYTES, _QUICK_NUMBERS = 2**17, 1_000
# A small hub is loaded before the first route answers. Of a large one, each task is, when it is first asked for.
_FIRST_POLL_S = 2.0
Result = TypeVar("Result")


class Service:
    """A hub that answers over a network; one of several processes that do, if it has siblings."""

    def __init__(self, live: LiveHub, settings: ServeSettings, siblings: Siblings | None = None) -> None:
        self.live, self.settings = live, settings
        self._siblings = siblings or Siblings(self.hear)
        self.metrics = Metrics()
        self.bodies = Bodies(settings)
        self.watcher = HubWatcher(live, self.metrics, settings.follow_s)
        self.decoders = Decoders(live.hub.source.input_config, settings)
        self.batcher = Batcher(live, self.decoders.decode, settings, self.metrics)
        self.explainer = Explainer(live)
        self.tracing = Tracing() if settings.traces else None
        self.tls: ssl.SSLContext | None = None  # which the server set, if it speaks HTTPS
        self._loops = (self.watcher.loop, self.batcher.loop)
        self._is_running = self._is_draining = False

    async def hear(self, question: Mapping[str, Any]) -> Any:
        """Answer what a sibling asks, or this process itself."""
        match question["what"]:
            case "ready":
                return self._is_ready()
            case "metrics":
                return await asyncio.to_thread(self.metrics.text)
            case "unloaded":
                return sorted(self.watcher.unloaded)
            case "offer":
                self.watcher.set_offered(question["task"], question["offered"])
            case "look":
                await asyncio.to_thread(self.watcher.poll)
        return True

    async def is_ready(self) -> bool:
        """Whether all workers answer, and follow their hub: nothing has stuck or failed for long."""
        return all(await self._siblings.ask(what="ready"))

    async def figures(self) -> str:
        """The metrics of all workers."""
        texts = await self._siblings.ask(what="metrics")
        return str(texts[0]) if len(texts) == 1 else await asyncio.to_thread(together, texts)

    async def poll(self) -> None:
        """Let all workers take over what was changed in the hub. Raises what the look of this one raises."""
        await self._siblings.ask(CHANGE_S, what="look")

    async def offer(self, name: str, offered: bool) -> None:
        """Offer a task or not, in all workers. Raises ApiError (404) for an unknown one."""
        self.watcher.set_offered(name, offered)
        await self._siblings.ask(CHANGE_S, what="offer", task=name, offered=offered)

    def is_alive(self) -> bool:
        """Whether nothing in this process has stuck or failed for long."""
        return all(loop.age_s() <= self.settings.longest_age_s for loop in self._loops) and not self.decoders.stuck

    def _is_ready(self) -> bool:
        is_offered = self._is_running and not self._is_draining
        return is_offered and self.watcher.has_polled.is_set() and self.is_alive()

    def drain(self) -> None:
        """Ask for no more requests, by readiness; those that come are answered."""
        self._is_draining = True

    def end(self) -> None:
        """Let no request that is still arriving hold up the end."""
        self.bodies.end()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Answer and follow the hub, until the block ends."""
        cert, key, loops = self.settings.tls_cert, self.settings.tls_key, [*self._loops]
        if self.tls is not None and cert is not None and key is not None:
            loops.append(Certificate(self.tls, cert, key).loop)  # the former one will do: no matter of readiness
        for loop in loops:
            self.metrics.watch(loop)
            loop.start()
        await self.decoders.start()
        for unloaded in await self._siblings.ask(what="unloaded"):  # for one that takes the place of another
            self.watcher.take_over_unloaded(unloaded or ())
        await asyncio.to_thread(self.watcher.has_polled.wait, _FIRST_POLL_S)
        self._is_running = True
        try:
            yield
        finally:
            self._is_running = False
            self.watcher.end()
            for loop in loops:
                await loop.stop()
            await self.decoders.close()
            self.batcher.close()
            if self.tracing is not None:
                await self.tracing.close()

    async def answer(
        self,
        request: Request,
        read: Callable[[bytes], Any],
        reply: Callable[..., Response],
        names: Set[str],
    ) -> Response:
        """Read a request's body, ask the tasks, and reply.

        `read` turns the body, in a thread, into what has `images`, `tasks` (None for all), `explain` and `heat`;
        `reply` takes that, the answers of each image, and the seconds since the request began. A request is refused
        unread when the queue has no room for any of the tasks that it may ask for, `names`.
        """
        start_s, timeout_s = time.monotonic(), _deadline_s(request, self.settings.deadline_s)
        self.batcher.validate_room(names)
        with self.bodies.holding() as read_body:
            content = await read_body(request, self.settings.max_body_bytes)
            arrived_s = time.monotonic()
            if len(content) <= _QUICK_BYTES:
                asked = read(content)
            else:
                asked = await asyncio.to_thread(read, content)
            del content
            tasks = self.watcher.tasks_at_hand(asked.tasks)
            if tasks is None:
                tasks = await asyncio.to_thread(self.watcher.tasks, asked.tasks)
            answers = await _unless_gone(request, self._ask(asked, tasks, arrived_s + timeout_s))
        seconds = time.monotonic() - start_s
        self.metrics.answered((task.name for task in tasks), seconds)
        request.state.tasks = [task.name for task in tasks][:8]
        if len(answers) * sum(len(task.classes) for task in tasks) <= _QUICK_NUMBERS:
            return reply(asked, answers, seconds)
        return await asyncio.to_thread(reply, asked, answers, seconds)

    async def _ask(self, asked: Any, tasks: Sequence[LiveTask], end_s: float) -> list[Answers]:
        if asked.heat and len(asked.images) * len(tasks) > self.settings.max_heat_maps:
            most = self.settings.max_heat_maps
            raise ApiError(413, "too_many_heat_maps", f"a request may have heat maps of {most} answers; name few tasks")
        heads = await asyncio.to_thread(self.explainer.heads, tasks, end_s) if asked.explain else None
        answers = await self.batcher.ask(asked.images, tasks, end_s - time.monotonic())
        try:
            async with asyncio.timeout(end_s - time.monotonic()):
                if heads is not None:
                    answers = await self.batcher.run_on_engine(partial(self.explainer.explain, answers, heads))
                if asked.heat:
                    answers = [{name: await self._with_heat(one) for name, one in own.items()} for own in answers]
        except TimeoutError:
            raise ApiError(429, "deadline", "answered, but not explained before the deadline", 1) from None
        return answers

    async def _with_heat(self, answer: TaskAnswer | TaskFailure) -> TaskAnswer | TaskFailure:
        """With a heat map, where there is one. Each is a turn of its own on the engine, so that batches of others come
        between them."""
        if isinstance(answer, TaskFailure):
            return answer
        delta = await asyncio.to_thread(self.explainer.delta, answer.task)
        if delta is None:
            return answer
        heat = await self.batcher.run_on_engine(partial(self.explainer.heat, delta, answer))
        return answer if heat is None else await asyncio.to_thread(self.explainer.drawn, answer, heat)


def named(task: LiveTask) -> dict[str, str]:
    """Which version of which task speaks."""
    return {"task": task.name, "version": task.sha256[:12], "sha256": task.sha256}


def predictions(asked: Any, answers: Sequence[Answers], seconds: float) -> Response:
    """The reply of POST /predict."""
    images = [_of_image(name, own, asked) for name, own in zip(asked.image_names, answers, strict=True)]
    return as_json({"images": images, "seconds": round(seconds, 4)})


def _of_image(name: str | None, answers: Answers, asked: Any) -> dict[str, Any]:
    ordered = [answer for _, answer in sorted(answers.items())]
    answered = [_to_json(answer, asked) for answer in ordered if isinstance(answer, TaskAnswer)]
    failed = [
        {**named(failure.task), "error": failure.message, "code": failure.code}
        for failure in ordered
        if isinstance(failure, TaskFailure)
    ]
    return {"name": name, "answers": answered, "errors": failed}


def _to_json(answer: TaskAnswer, asked: Any) -> dict[str, Any]:
    numbers = answer.probabilities.tolist()
    shares = {answer.task.classes[i]: numbers[i] for i in answer.order()}
    # The order is a list of its own: a browser puts the keys "0", "1", "10" of an object before all others.
    ranking = list(shares)
    of_classes = {"label": ranking[0], "labels": answer.labels, "ranking": ranking, "probabilities": shares}
    answered: dict[str, Any] = {**named(answer.task), **of_classes, "unknown_score": answer.unknown_score}
    if asked.explain:
        answered["lead"] = answer.lead and answer.lead.to_dict()
    if asked.heat:
        answered["heat"] = answer.heat
    return answered


def _deadline_s(request: Request, longest_s: float) -> float:
    given = request.headers.get(DEADLINE_HEADER)
    if given is None:
        return longest_s
    try:
        wanted_s = float(given)
    except ValueError:
        wanted_s = 0.0
    if not wanted_s > 0:
        raise ApiError(400, "bad_request", f"{DEADLINE_HEADER} is not a number of seconds above 0")
    return min(wanted_s, longest_s)


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of some work, which is given up when the client goes away. Raises ClientGone then."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGone
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
