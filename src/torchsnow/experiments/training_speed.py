"""Time and memory of a training step, methods side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from torchsnow.errors import ExperimentError, TorchsnowError
from torchsnow.experiments.measuring import Progress, Step, median_times_s, peak_bytes, silent, wait_for
from torchsnow.methods import make_method, split_name
from torchsnow.source import Precision, load_source
from torchsnow.train import TrainSettings
from torchsnow.train.schedule import make_optimizer
from torchsnow.train.step import MAX_GRADIENT_NORM

_STEPS_FOR_MEMORY = 3  # the optimiser's own memory is there after the first


@dataclass(frozen=True)
class TrainingSpeed:
    """One training step: its seconds, the images that makes per second, and the peak memory of a process that does
    nothing else, above what it held before the networks were made. `precision` is that of the source pass."""

    step_s: float
    images_per_s: float
    peak_bytes: int
    precision: Precision

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class _Case:
    """One method as it is measured; picklable, for a process of its own, where a call makes its steps."""

    source_name: str
    weights: str
    method: str
    precision: Precision
    num_classes: int
    image_size: int
    batch_size: int
    device: str

    def __call__(self) -> Step:
        step = self.step()
        return lambda: [step() for _ in range(_STEPS_FOR_MEMORY)]

    def step(self) -> Step:
        """One step of the optimiser, as `torchsnow.train.fit` does it, on a fixed random batch."""
        settings = TrainSettings(batch_size=self.batch_size, image_size=self.image_size)
        name, preset = split_name(self.method)
        source = load_source(self.source_name, self.weights, self.precision)
        method = make_method(name, source, self.num_classes, preset)
        model = method.model.to(self.device).train()
        optimizer = make_optimizer(method.parameter_groups(settings.lr, settings.weight_decay), settings)
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        images = torch.randn(self.batch_size, 3, self.image_size, self.image_size, device=self.device)
        labels = torch.randint(self.num_classes, (self.batch_size,), device=self.device)

        def step() -> None:
            method.set_progress(0.0)
            optimizer.zero_grad()
            F.cross_entropy(model(images).float(), labels).backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(trained, MAX_GRADIENT_NORM)
            optimizer.step()
            wait_for(self.device)

        return step


def training_speeds(
    source_name: str,
    weights: str,
    methods: Sequence[str],
    *,
    image_size: int,
    batch_size: int,
    rounds: int,
    device: str,
    precision: Precision = "fp32",
    num_classes: int = 10,
    say: Callable[[str], None] = lambda line: None,
    progress: Progress = silent,
) -> dict[str, TrainingSpeed]:
    """Speed and memory of a training step by method ("NAME" or "NAME:PRESET"), on a fixed random batch.

    All methods run in one process, method by method within each of the rounds, and their times are medians; a round
    before the first is not counted. `device` is "cpu" or "cuda". `precision` is that of the source pass; methods that
    train the network itself run in fp32 whatever it is. A method that the source cannot take, or that memory does not
    suffice for, is left out, and `say` is told why. `progress` is called after every step. Raises TorchsnowError for
    a method that does not exist, a source that cannot be had, or a setting out of range.
    """
    for name in methods:
        split_name(name)
    TrainSettings(batch_size=batch_size, image_size=image_size)
    load_source(source_name, weights, precision)  # what is wrong with it is wrong for all methods
    cases, steps, peaks = {}, {}, {}
    for name in dict.fromkeys(methods):
        case = _Case(source_name, weights, name, precision, num_classes, image_size, batch_size, device)
        try:
            cases[name], steps[name] = _fitting(case)
            peaks[name] = peak_bytes(device, cases[name], whole=True)
        except (TorchsnowError, torch.OutOfMemoryError) as error:
            steps.pop(name, None)
            say(f"{name} is left out: {error}")
    try:
        times = median_times_s(steps, rounds, progress)
    except torch.OutOfMemoryError as error:
        raise ExperimentError(
            "there is not enough memory to train all methods side by side; use fewer of them, or a smaller batch"
        ) from error
    return {
        name: TrainingSpeed(time_s, batch_size / time_s, peaks[name], cases[name].precision)
        for name, time_s in times.items()
    }


def _fitting(case: _Case) -> tuple[_Case, Step]:
    """The case and its step, in fp32 if the method does not take another precision. Raises TorchsnowError."""
    try:
        return case, case.step()
    except TorchsnowError:
        if case.precision == "fp32":
            raise
        case = replace(case, precision="fp32")
        return case, case.step()
