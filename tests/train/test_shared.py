from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from torchsnow.data import Example, Splits
from torchsnow.errors import TrainingError
from torchsnow.methods.snow import Snow, make_snow
from torchsnow.source import Source
from torchsnow.train import FitResult, RunFolder, TrainSettings, fit
from torchsnow.train.checkpoint import Checkpoint
from torchsnow.train.shared import fit_together
from torchsnow.train.streams import SharedTask, Stream


@pytest.fixture
def settings() -> TrainSettings:
    return TrainSettings(epochs=2, batch_size=8, image_size=32, lr=5e-3, augmentation="light", device="cpu")


def relabelled(splits: Splits, every: int) -> Splits:
    """The same images with other labels: every so many are of the second class."""

    def labels(examples: Sequence[Example]) -> tuple[Example, ...]:
        return tuple(Example(example.path, int(at % every == 0)) for at, example in enumerate(examples))

    return replace(splits, train=labels(splits.train), val=labels(splits.val))


def without_labels(splits: Splits, every: int) -> Splits:
    """The splits of a task that lacks labels for every so many of the images."""

    def known(examples: Sequence[Example]) -> tuple[Example, ...]:
        return tuple(example for at, example in enumerate(examples) if at % every)

    return replace(splits, train=known(splits.train), val=known(splits.val))


def task(
    name: str, source: Source, splits: Splits, settings: TrainSettings, folder: Path, preset: str = "default"
) -> SharedTask:
    return SharedTask(name, make_snow(source, 2, preset), splits, settings, RunFolder(folder / name))


def results(*streams: Stream, **options: Any) -> dict[str, FitResult]:
    found = fit_together(streams, quiet=True, **options)
    assert all(isinstance(result, FitResult) for result in found.values()), found
    return found  # type: ignore[return-value]


def assert_same(alone: Path, shared: Path, rtol: float = 0.0, atol: float = 0.0) -> None:
    """Equal best and last states, tables and choices: bit by bit unless there is a tolerance."""
    for name in ("last.safetensors", "best.safetensors"):
        one, other = Checkpoint.load(alone / name), Checkpoint.load(shared / name)
        assert one.config == other.config
        for then, now in ((one.model, other.model), (one.optimizer, other.optimizer)):
            assert then.keys() == now.keys()
            for key, tensor in then.items():
                torch.testing.assert_close(
                    now[key], tensor, rtol=rtol, atol=atol, msg=lambda text, key=key: f"{key}: {text}"
                )
        for first, second in zip(one.history, other.history, strict=True):
            assert (first.epoch, first.val_accuracy, first.lr) == (second.epoch, second.val_accuracy, second.lr)
            assert first.val_loss == pytest.approx(second.val_loss, rel=rtol, abs=atol)
            assert first.train_loss == pytest.approx(second.train_loss, rel=rtol, abs=atol)
    assert (alone / "splits.json").read_bytes() == (shared / "splits.json").read_bytes()


@pytest.mark.parametrize("preset", ["default", "paper"])
@pytest.mark.parametrize("augmentation", ["none", "light"])
def test_tasks_on_the_same_images_come_out_as_if_alone(
    source: Source, splits: Splits, settings: TrainSettings, tmp_path: Path, preset: str, augmentation: str
) -> None:
    settings = replace(settings, augmentation=augmentation)
    others = [splits, relabelled(splits, 3), relabelled(splits, 2)]
    names = ["colour", "third", "half"]
    stream = Stream(
        [task(name, source, of, settings, tmp_path, preset) for name, of in zip(names, others, strict=True)]
    )
    shared = results(stream)
    for name, of in zip(names, others, strict=True):
        alone = fit(make_snow(source, 2, preset), of, settings, RunFolder(tmp_path / "alone" / name), quiet=True)
        assert_same(tmp_path / "alone" / name, tmp_path / name)
        assert shared[name].metrics == alone.metrics
        assert shared[name].best.epoch == alone.best.epoch
        images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        assert torch.equal(shared[name].model(images), alone.model(images))
