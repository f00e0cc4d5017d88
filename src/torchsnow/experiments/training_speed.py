"""Time and memory of a training step, methods side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from torchsnow.errors import ExperimentError, TorchsnowError
from torchsnow.experiments.measuring import Progress, Step, Workload, median_times_s, peak_bytes, silent, wait_for
from torchsnow.methods import make_method, split_name
from torchsnow.source import Precision
from torchsnow.train import TrainSettings
from torchsnow.train.schedule import make_optimizer
from torchsnow.train.step import MAX_GRADIENT_NORM

_STEPS_FOR_MEMORY = 3  # the optimiser's own memory is there after the first


class TrainingSpeed(NamedTuple):
    """One training step: its seconds, the images that makes per second, and the peak memory of a process that does
    nothing else, above what it held before the networks were made. `precision` is that of the source pass."""

    step_s: float
    images_per_s: float
    peak_bytes: int
    precision: Precision


def training_speeds(
    load: Workload,
    methods: Sequence[str],
    rounds: int,
    say: Callable[[str], None] = lambda line: None,
    progress: Progress = silent,
) -> dict[str, TrainingSpeed]:
    """Speed and memory of a training step by method ("NAME" or "NAME:PRESET"), on a fixed random batch.

    All methods run in one process, method by method within each of the rounds, and their times are medians; a round
    before the first is not counted. Methods that train the network itself run in fp32. A method that the source cannot
    take, or that memory does not suffice for, is left out, and `say` is told why. `progress` is called after every
    step. Raises TorchsnowError for a method that does not exist, a source that cannot be had, or a bad setting.
    """
    for name in methods:
        split_name(name)
    TrainSettings(batch_size=load.batch_size, image_size=load.image_size)
    load.load_source()  # what is wrong with it is wrong for all methods
    loads: dict[str, Workload] = {}
    steps, peaks = {}, {}
    for name in dict.fromkeys(methods):
        try:
            loads[name], steps[name] = _fitting(load, name)
            peaks[name] = peak_bytes(load.device, partial(_several_steps, loads[name], name), whole=True)
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
        name: TrainingSpeed(time_s, load.batch_size / time_s, peaks[name], loads[name].precision)
        for name, time_s in times.items()
    }


def _fitting(load: Workload, method: str) -> tuple[Workload, Step]:
    """The load and its step, in fp32 if the method does not take another precision. Raises TorchsnowError."""
    try:
        return load, _training_step(load, method)
    except TorchsnowError:
        if load.precision == "fp32":
            raise
        load = replace(load, precision="fp32")
        return load, _training_step(load, method)


def _several_steps(load: Workload, method: str) -> Step:
    step = _training_step(load, method)
    return lambda: [step() for _ in range(_STEPS_FOR_MEMORY)]


def _training_step(load: Workload, name: str) -> Step:
    """One step of the optimiser, as `torchsnow.train.fit` does it, on a fixed random batch."""
    settings = TrainSettings(batch_size=load.batch_size, image_size=load.image_size)
    method = make_method(split_name(name)[0], load.load_source(), load.num_classes, split_name(name)[1])
    model = method.model.to(load.device).train()
    optimizer = make_optimizer(method.parameter_groups(settings.lr, settings.weight_decay), settings)
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    images, labels = load.images(), torch.randint(load.num_classes, (load.batch_size,), device=load.device)

    def step() -> None:
        method.set_progress(0.0)
        optimizer.zero_grad()
        F.cross_entropy(model(images).float(), labels).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trained, MAX_GRADIENT_NORM)
        optimizer.step()
        wait_for(load.device)

    return step
