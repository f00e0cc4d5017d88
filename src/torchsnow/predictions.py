"""What the tasks of a hub say of image files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from torchsnow.data import eval_transform, read_image
from torchsnow.errors import DataError, HubError, SourceError
from torchsnow.hub import Hub, not_finite, predict_together
from torchsnow.task_file import Task


@dataclass(frozen=True)
class Prediction:
    """What one task says of one image: probabilities by class name, the most likely first."""

    image: str
    task: str
    probabilities: dict[str, float]

    @property
    def label(self) -> str:
        """The most likely class."""
        return next(iter(self.probabilities))


def predict_images(
    hub: Hub, files: Sequence[Path], names: Sequence[str] | None, on_bad: Callable[[Path, str], None]
) -> list[Prediction]:
    """Classify image files by the named tasks (by default all), image by image.

    Tasks of one framing share one source pass. A file that is no usable image, or that a task cannot answer for, is
    passed to `on_bad` with the reason, and so is the hub with a task that is damaged, and the others answer; a damaged
    task that is asked for by name raises HubError. Raises HubError for an unknown task and for a hub without any.
    """
    on_damaged = None if names is not None else lambda problem: on_bad(hub.folder.path, problem.message)
    tasks = hub.tasks(names, on_damaged)
    if not hub.names():
        raise HubError(f"the hub {hub.folder.path} has no tasks yet; train one first")
    framings = sorted({task.framing for task in tasks.values()})
    result = []
    for file in files:
        try:
            image = read_image(file)
        except DataError as error:
            on_bad(file, str(error))
            continue
        for framing in framings:
            pixels = eval_transform(hub.source.input_config, framing)(image)[None]
            asked = {name: task for name, task in tasks.items() if task.framing == framing}
            for name, logits in _answers(hub, asked, pixels, file, on_bad).items():
                result.append(_prediction(file, name, tasks[name].classes, logits[0]))
    return result


def _answers(
    hub: Hub, tasks: Mapping[str, Task], pixels: torch.Tensor, file: Path, on_bad: Callable[[Path, str], None]
) -> dict[str, torch.Tensor]:
    """The logits of those tasks that can answer."""
    try:
        logits = predict_together(hub.source, tasks, pixels)
    except SourceError as error:  # in this framing: other tasks read images of another
        on_bad(file, f"no answer of {', '.join(tasks)} for {file}: {error}")
        return {}
    for name in not_finite(logits):
        on_bad(file, f"no answer of {name} for {file}: its logits are not finite numbers")
        del logits[name]
    return logits


def _prediction(file: Path, name: str, classes: Sequence[str], logits: torch.Tensor) -> Prediction:
    probabilities = logits.softmax(0)
    order = logits.argsort(descending=True, stable=True).tolist()
    return Prediction(str(file), name, {classes[i]: float(probabilities[i]) for i in order})
