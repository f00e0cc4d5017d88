"""What tasks say of an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from torchsnow.hub.live import LiveTask
from torchsnow.serving.refusal import Refusal


@dataclass(frozen=True)
class Lead:
    """`logits` by which the likeliest class is above the class `over`, and what adds up to them.

    `taps` are the parts of what the head reads of the source, by tap, the largest first; `own` is the part of the
    task's own layers. In a task of one class, `over` is None and `logits` is that class's logit.
    """

    over: str | None
    logits: float
    taps: dict[str, float]
    own: float
    bias: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `ranking` has the taps in order, for objects of JSON have none."""
        taps = {name: round(share, 4) for name, share in self.taps.items()}
        numbers = {name: round(getattr(self, name), 4) for name in ("logits", "own", "bias")}
        return {"over": self.over, "taps": taps, "ranking": list(taps), **numbers}


@dataclass(frozen=True)
class TaskAnswer:
    """Logits and probabilities (num_classes,) of one version of a task for one image, `pixels` (3, S, S); and what
    they rest on, where that was asked for."""

    task: LiveTask
    logits: Tensor
    probabilities: Tensor
    pixels: Tensor
    lead: Lead | None = None

    def order(self) -> list[int]:
        """The classes by number, the likeliest first. By logits: of several probabilities of 0, they know the order."""
        order: list[int] = self.logits.argsort(descending=True, stable=True).tolist()
        return order

    @property
    def label(self) -> str:
        """The likeliest class."""
        return self.task.classes[self.order()[0]]


@dataclass(frozen=True)
class TaskFailure:
    """A version of a task that has no answer for an image: a code for programs, and a sentence for people.

    `refusal` is what to say where this machine is at fault, and no task has an answer.
    """

    task: LiveTask
    code: str
    message: str
    refusal: Refusal | None = None


Answers = dict[str, TaskAnswer | TaskFailure]
"""Of one image, by task name; at least one of them is an answer."""
