"""What to change when a task turned out worse than a linear probe."""

from __future__ import annotations

from torchsnow.methods.table import METHODS
from torchsnow.train import FitResult, TrainSettings
from torchsnow.train.history import highest_epoch

_LATE = 0.8  # of the epochs: the highest accuracy after that says that training was not done


def below_probe(
    result: FitResult, probe_accuracy: float, settings: TrainSettings, method: str, preset: str
) -> str | None:
    """One sentence with both figures and what to try, or None where the task is as good as the probe, within a standard
    error."""
    accuracy, count = result.metrics.accuracy, result.metrics.num_images
    if accuracy >= probe_accuracy - (probe_accuracy * (1 - probe_accuracy) / count) ** 0.5:
        return None
    return (
        f"the task has {accuracy:.1%} on {count} validation images, and a linear probe {probe_accuracy:.1%}; in "
        f"a new run, try {' or '.join(_changes(result, settings, method, preset))}"
    )


def _changes(result: FitResult, settings: TrainSettings, method: str, preset: str) -> list[str]:
    """Options for the command line, the likeliest first."""
    changes = []
    if METHODS[method].is_delta and (method, preset) != ("snow", "default"):
        changes.append("--method snow --preset default, which starts as a probe,")
    if highest_epoch(result.history).epoch >= _LATE * settings.epochs:
        changes.append(f"--epochs {2 * settings.epochs}")
    else:
        changes.append(f"--lr {settings.lr / 5:.2g}")
    if settings.augmentation != "none":
        changes.append("--augmentation none")
    return changes
