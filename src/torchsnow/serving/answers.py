"""What tasks say of an image, and what that rests on: the lead of the likeliest class over the next one, tap by tap.

A head is linear over averages of taps, so what each tap adds to the difference of two logits is exact. What remains is
of the task's own layers. It takes one more pass of the source, in PyTorch, for who asks for it. Where in the image it
lies, a heat map shows, which takes a pass for each answer."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from torchsnow.delta import Delta
from torchsnow.delta.head import Head, split_by_tap
from torchsnow.errors import DeltaError, HubError
from torchsnow.heat import heat_map, over_photograph
from torchsnow.hub import Entry
from torchsnow.hub.live import LiveHub, LiveTask
from torchsnow.pages import data_address
from torchsnow.serving.api_error import ApiError
from torchsnow.source import Request, Source
from torchsnow.source.grid import ONE_CELL
from torchsnow.task_file.labels import names_of


@dataclass(frozen=True)
class Lead:
    """`logits` by which the likeliest class is above the class `over`, and what adds up to them.

    `taps` are the parts of what the head reads of the source, by tap, the largest first, and `depths` their sums over
    the first, middle and last third of the source; `own` is the part of the task's own layers. In a task of one class,
    `over` is None and `logits` is that class's logit.
    """

    over: str | None
    logits: float
    taps: dict[str, float]
    depths: dict[str, float]
    own: float
    bias: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `ranking` has the taps in order, for objects of JSON have none."""
        taps = {name: round(share, 4) for name, share in self.taps.items()}
        depths = {name: round(share, 4) for name, share in self.depths.items()}
        numbers = {name: round(getattr(self, name), 4) for name in ("logits", "own", "bias")}
        return {"over": self.over, "taps": taps, "ranking": list(taps), "depths": depths, **numbers}


@dataclass(frozen=True)
class TaskAnswer:
    """Logits and probabilities (num_classes,) of one version of a task for one image, `pixels` (3, S, S); its
    `unknown_score`, as in `Answer`; and where they were asked for, what they rest on, and the address of a picture that
    shows where in the image, which holds it."""

    task: LiveTask
    logits: Tensor
    probabilities: Tensor
    pixels: Tensor
    unknown_score: float | None
    lead: Lead | None = None
    heat: str | None = None

    def order(self) -> list[int]:
        """The classes by number, the likeliest first. By logits: of several probabilities of 0, they know the order."""
        order: list[int] = self.logits.argsort(descending=True, stable=True).tolist()
        return order

    @property
    def label(self) -> str:
        """The likeliest class."""
        return self.task.classes[self.order()[0]]

    @property
    def labels(self) -> list[str]:
        """That class alone, or in a task with thresholds all labels that reach theirs."""
        places = names_of(self.probabilities.tolist(), self.order(), self.task.thresholds)
        return [self.task.classes[place] for place in places]


@dataclass(frozen=True)
class TaskFailure:
    """A version of a task that has no answer for an image: a code for programs, and a sentence for people.

    `api_error` is what to say where this machine is at fault, and no task has an answer.
    """

    task: LiveTask
    code: str
    message: str
    api_error: ApiError | None = None


Answers = dict[str, TaskAnswer | TaskFailure]
"""Of one image, by task name; at least one of them is an answer."""


_DEPTHS = ("early", "middle", "late")
_MAX_HEADS = 64  # kept, about a megabyte each on ResNet-50
_MAX_DELTAS = 4  # kept, for requests of several images
Heads = Mapping[str, nn.Module]
"""By the SHA-256 of their task's file."""


class Explainer:
    """Explains answers of a hub's tasks. Everything here takes time: call it from a thread."""

    def __init__(self, live: LiveHub) -> None:
        self._live = live
        self._head = lru_cache(_MAX_HEADS)(self._load_head)
        self._delta = lru_cache(_MAX_DELTAS)(self._load)

    def heads(self, tasks: Sequence[LiveTask], end_s: float) -> Heads:
        """The heads of these versions, but for those that the hub has no longer. Raises ApiError (429) after `end_s`,
        a time of `time.monotonic`."""
        found = {}
        for task in tasks:
            if time.monotonic() > end_s:
                raise ApiError(429, "deadline", "not explained before the deadline; name fewer tasks", 1)
            if (entry := self._entry(task)) is not None:
                try:
                    found[task.sha256] = self._head(task.name, entry)
                except HubError:
                    continue  # the file was damaged since; the answer stands
        return found

    def delta(self, task: LiveTask) -> Delta | None:
        """The delta of this version, if the hub has it still and its file is good."""
        entry = self._entry(task)
        try:
            return None if entry is None else self._delta(task.name, entry)
        except HubError:
            return None

    def heat(self, delta: Delta, answer: TaskAnswer) -> Tensor | None:
        """What every cell of a grid adds to the logit of the answer's class; None for a delta that reads no grid, and
        where that is no finite number."""
        source = self._live.hub.source
        pixels = answer.pixels[None].to(next(source.parameters()).device)
        try:
            heat = heat_map(source, delta, pixels, answer.order()[0])
        except DeltaError:
            return None
        return heat if bool(heat.isfinite().all()) else None

    def drawn(self, answer: TaskAnswer, heat: Tensor) -> TaskAnswer:
        """The answer with its heat map over the image."""
        content = io.BytesIO()
        picture = over_photograph(answer.pixels[None], heat, self._live.hub.source.input_config)
        picture.save(content, "JPEG", quality=80)
        return replace(answer, heat=data_address("jpeg", content.getvalue()))

    def explain(self, answers: Sequence[Answers], heads: Heads) -> list[Answers]:
        """Answers of the same tasks for every image, with their leads, from one source pass for each framing."""
        explained: list[Answers] = [dict(own) for own in answers]
        tasks = [answer.task for answer in answers[0].values() if answer.task.sha256 in heads]
        for framing in {task.framing for task in tasks}:
            names = [task.name for task in tasks if task.framing == framing]
            self._explain(explained, {name: heads[answers[0][name].task.sha256] for name in names})
        return explained

    @torch.no_grad()
    def _explain(self, answers: list[Answers], heads: Heads) -> None:
        source = self._live.hub.source
        answered = [[answer for name in heads if isinstance(answer := own[name], TaskAnswer)] for own in answers]
        rows = [row for row, own in enumerate(answered) if own]
        if not rows:
            return
        pixels = torch.stack([answered[row][0].pixels for row in rows])
        reading = [head for head in heads.values() if isinstance(head, Head)]
        request = Request.together(head.request(ONE_CELL) for head in reading)
        features = source(pixels.to(next(source.parameters()).device), request) if reading else None
        for name, head in heads.items():
            read = head.read(features)[0] if isinstance(head, Head) and features is not None else None
            for place, row in enumerate(rows):
                answer = answers[row][name]
                if isinstance(answer, TaskAnswer):
                    lead = _lead(source, head, None if read is None else read[place], answer)
                    answers[row][name] = replace(answer, lead=lead)

    def _entry(self, task: LiveTask) -> Entry | None:
        """The hub's entry of this version, if it is the current one."""
        entry = self._live.now.entries.get(task.name)
        return entry if entry is not None and entry.sha256 == task.sha256 else None

    def _load(self, name: str, entry: Entry) -> Delta:
        return self._live.hub.version(name, entry).delta

    def _load_head(self, name: str, entry: Entry) -> nn.Module:
        return self._load(name, entry).head


def _lead(source: Source, head: nn.Module, read: Tensor | None, answer: TaskAnswer) -> Lead | None:
    """`read` are the values (num_read,) that the head reads, None for a head that reads nothing of the source. None
    where the parts are too large to be numbers, though the logits are."""
    first, *rest = answer.order()[:2]

    def above(by_class: Tensor) -> Tensor:
        return by_class[first] - by_class[rest[0]] if rest else by_class[first]

    taps: dict[str, float] = {}
    linear = head.fc.local if isinstance(head, Head) else head
    assert isinstance(linear, nn.Linear)
    if isinstance(head, Head) and read is not None:
        shares = (above(head.fc.columns) * head.pool.weight * head.scale * read).cpu()
        taps = {name: float(shares[at].sum()) for name, _, _, at in split_by_tap(source, head)}
    logits, bias = float(above(answer.logits)), float(above(linear.bias))
    if not all(map(math.isfinite, (logits, bias, *taps.values()))):
        return None
    return Lead(
        over=answer.task.classes[rest[0]] if rest else None,
        logits=logits,
        taps=dict(sorted(taps.items(), key=lambda item: -item[1])),
        depths=_by_depth(source, taps),
        own=logits - bias - sum(taps.values()),
        bias=bias,
    )


def _by_depth(source: Source, taps: Mapping[str, float]) -> dict[str, float]:
    """Sums over the thirds of the source's taps, in their order; its last features are of the last."""
    places = {name: 3 * place // len(source.taps) for place, name in enumerate(source.taps)}
    sums = dict.fromkeys(_DEPTHS, 0.0)
    for name, share in taps.items():
        sums[_DEPTHS[places.get(name, 2)]] += share
    return sums
