"""Tasks one after another: a hub forgets nothing, not even the last bit of a logit.

    python examples/tasks_one_after_another.py digits --out sequence --epochs 6 --image-size 64

DATA is cut into tasks of two classes. They are learned one after another into one hub, and after each of them all tasks
so far are tested on images that training has not seen. Printed are the accuracies, a row per learned task, a column per
tested one; and the forgetting (Chaudhry et al., ECCV 2018): what was lost of a task's best accuracy, on average. It is
exactly 0.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

import torchsnow as ts


def cut(splits: ts.data.Splits, first: int) -> ts.data.Splits:
    """The images of the classes `first` and `first + 1`, with labels 0 and 1."""
    parts = {
        name: tuple(
            replace(example, label=example.label - first)
            for example in getattr(splits, name)
            if first <= example.label < first + 2
        )
        for name in ("train", "val", "test")
    }
    return replace(splits, classes=splits.classes[first : first + 2], **parts)


def learn(hub: ts.Hub, name: str, splits: ts.data.Splits, settings: ts.TrainSettings, out: Path) -> None:
    """Train a delta, and add it to the hub as a task."""
    method = ts.make_method("snow", hub.source, len(splits.classes))
    result = ts.fit(method, splits, settings, ts.RunFolder(out / name))
    assert isinstance(result.model, ts.SnowModel)
    hub.add(ts.make_task(hub.source, result.model.delta, name, splits.classes, settings.framing))


def test_images(hub: ts.Hub, splits: ts.data.Splits, settings: ts.TrainSettings) -> tuple[Tensor, Tensor]:
    """Normalised images (N, 3, H, W) and labels (N,) of the test split."""
    transform = ts.eval_transform(hub.source.input_config, settings.framing)
    images = [transform(ts.read_image(example.path)) for example in splits.test]
    return torch.stack(images), torch.tensor([example.label for example in splits.test])


def run(hub: ts.Hub, splits: ts.data.Splits, settings: ts.TrainSettings, out: Path) -> list[list[float]]:
    """Learn all tasks; row i holds the accuracies of tasks 0 to i when task i was the last one learned.

    Raises AssertionError if any logit of an old task is another one than when the task was learned.
    """
    tested: dict[str, tuple[Tensor, Tensor]] = {}
    first: dict[str, Tensor] = {}
    matrix = []
    for number in range(len(splits.classes) // 2):
        name = f"task-{number}"
        own = cut(splits, 2 * number)
        learn(hub, name, own, settings, out)
        tested[name] = test_images(hub, own, settings)
        row = []
        for old, (images, labels) in tested.items():
            logits = hub.predict(images, [old])[old]
            assert torch.equal(logits, first.setdefault(old, logits)), f"{old} has changed"
            row.append(float((logits.argmax(1) == labels).float().mean()))
        matrix.append(row)
    return matrix


def forgetting(matrix: Sequence[Sequence[float]]) -> float:
    """Mean over all tasks but the last of its best accuracy before the end, less that at the end."""
    last = len(matrix) - 1
    return fmean(max(matrix[i][j] for i in range(j, last)) - matrix[last][j] for j in range(last))


def main(arguments: Sequence[str] | None = None) -> None:
    """Learn, test and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="As for torchsnow train; four classes or more.")
    parser.add_argument("--out", type=Path, required=True, help="A new folder, for hub/ and a run per task.")
    parser.add_argument("--source", default="bundled")
    parser.add_argument("--weights", default="pretrained")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--image-size", type=int, default=64, help="Pixels.")
    given = parser.parse_args(arguments)
    settings = ts.TrainSettings(epochs=given.epochs, image_size=given.image_size, batch_size=8)
    splits = ts.make_splits(ts.load_data(given.data))
    hub = ts.Hub.create(given.out / "hub", ts.load_source(given.source, given.weights))
    matrix = run(hub, splits, settings, given.out / "runs")
    for row in matrix:
        print("  ".join(f"{accuracy:6.1%}" for accuracy in row))
    print(f"forgetting {forgetting(matrix)}; every logit is the same, bit by bit, as when its task was learned")


if __name__ == "__main__":
    main()
