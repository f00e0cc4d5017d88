from __future__ import annotations

import pytest
import torch

from torchsnow.methods.advice import below_probe
from torchsnow.train import FitResult, TrainSettings
from torchsnow.train.evaluate import metrics_of
from torchsnow.train.history import Epoch

SETTINGS = TrainSettings(epochs=10, lr=5e-3)


def result(best_epoch: int) -> FitResult:
    """A task with an accuracy of three quarters."""
    logits = torch.tensor([[1.0, 0.0]]).repeat(400, 1)
    metrics = metrics_of(logits, torch.tensor([0, 0, 0, 1]).repeat(100), ("a", "b"))
    best = Epoch(best_epoch, 0.1, 0.9, 0.5, 0.75, 1e-3, 1.0, 1.0)
    return FitResult(torch.nn.Identity(), metrics, best, (best,))


@pytest.mark.parametrize("probe_accuracy", [0.0, 0.75, 0.77])
def test_nothing_is_said_of_a_task_that_is_as_good(probe_accuracy: float) -> None:
    assert below_probe(result(5), probe_accuracy, SETTINGS, "snow", "default") is None


@pytest.mark.parametrize(
    ("best_epoch", "augmentation", "method", "preset", "advice"),
    [
        (3, "flip", "snow", "default", "--lr 0.001 or --augmentation none"),
        (0, "none", "full", "default", "--lr 0.001"),
        (8, "none", "full", "default", "--epochs 20"),
        (9, "light", "snow", "default", "--epochs 20 or --augmentation none"),
        (9, "none", "snow", "paper", "--method snow --preset default, which starts as a probe, or --epochs 20"),
        (1, "none", "side", "default", "--method snow --preset default, which starts as a probe, or --lr 0.001"),
    ],
)
def test_advice_fits_the_run(best_epoch: int, augmentation: str, method: str, preset: str, advice: str) -> None:
    settings = TrainSettings(epochs=10, lr=5e-3, augmentation=augmentation)
    said = below_probe(result(best_epoch), 0.812, settings, method, preset)
    assert said == (
        f"the task has 75.0% on 400 validation images, and a linear probe 81.2%; in a new run, try {advice}"
    )
