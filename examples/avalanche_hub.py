"""A hub as a strategy of Avalanche: one task per experience, trained by torchsnow, tested by Avalanche's own metrics.

    pip install torchsnow[demo] avalanche-lib
    python examples/avalanche_hub.py --hub avalanche-hub --epochs 4

It learns scikit-learn's digits in five experiences of two classes, on the bundled source, and prints Avalanche's
accuracy and forgetting after each of them: the forgetting is exactly 0. Any benchmark with task labels will do in their
place: give `run` images that are normalised as the source's `input_config` says. `tasks_one_after_another.py` needs no
Avalanche, and chooses the best epoch by a validation split.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of solvers and loggers that nothing here needs
    from avalanche.benchmarks import nc_benchmark
    from avalanche.evaluation.metrics import accuracy_metrics, forgetting_metrics
    from avalanche.models import MultiTaskModule
    from avalanche.training.plugins import EvaluationPlugin
    from avalanche.training.templates import SupervisedTemplate

import torchsnow as ts

_NEVER = -1e4  # the logit of a class that is not the task's: finite, so that losses stay numbers


def task_name(label: int) -> str:
    """The name of an experience's task in the hub, from its task label."""
    return f"experience-{label:02d}"


class HubModel(MultiTaskModule):
    """Images (B, 3, H, W) and task labels (B,) -> logits (B, num_classes) over the classes of the whole benchmark."""

    def __init__(self, hub: ts.Hub, num_classes: int) -> None:
        super().__init__()
        self.hub, self.num_classes = hub, num_classes

    def forward(self, images: Tensor, task_labels: Tensor) -> Tensor:
        logits = images.new_full((len(images), self.num_classes), _NEVER)
        for label in task_labels.unique().tolist():
            rows = (task_labels == label).nonzero()
            name = task_name(label)
            columns = torch.tensor([int(class_name) for class_name in self.hub.task(name).classes])
            logits[rows, columns] = self.hub.predict(images[rows[:, 0]], [name])[name]
        return logits


class HubStrategy(SupervisedTemplate):
    """Trains a delta per experience and adds it to the hub; evaluation is Avalanche's."""

    def __init__(self, *, hub: ts.Hub, num_classes: int, epochs: int, evaluator: EvaluationPlugin) -> None:
        model = HubModel(hub, num_classes)
        super().__init__(model=model, optimizer=None, train_mb_size=16, eval_mb_size=32, evaluator=evaluator)
        self.hub, self.epochs = hub, epochs

    def make_optimizer(self, **options: Any) -> None:
        """Every delta has its own."""

    def _train_exp(self, experience: Any, eval_streams: Any = None, **options: Any) -> None:
        images = torch.stack([image for image, *_ in experience.dataset])
        ids = [int(target) for _, target, *_ in experience.dataset]
        present = sorted(set(ids))
        labels = torch.tensor([present.index(one) for one in ids])
        model = learn(self.hub.source, images, labels, len(present), self.epochs, self.train_mb_size)
        classes = [str(one) for one in present]
        task = ts.make_task(
            self.hub.source, model.delta, task_name(experience.task_label), classes, ts.Framing(images.shape[-1])
        )
        self.hub.add(task, replace=True)


def learn(
    source: ts.Source, images: Tensor, labels: Tensor, num_classes: int, epochs: int, batch_size: int, lr: float = 5e-3
) -> ts.SnowModel:
    """Train a delta on images (N, 3, H, W) that are in memory, in a plain loop.

    A fifth of them is held out, by which the method sets the share of the body next to its linear head.
    """
    torch.manual_seed(0)
    order = torch.randperm(len(images))
    held = max(2, len(images) // 5)
    val, train = (
        list(zip(images[part].split(32), labels[part].split(32), strict=True)) for part in (order[:held], order[held:])
    )
    method = ts.make_method("snow", source, num_classes)
    cpu = torch.device("cpu")
    method.start(train, cpu)
    optimizer = torch.optim.AdamW(method.parameter_groups(lr, 0.05))
    num_steps = epochs * (len(order[held:]) // batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, num_steps))
    step = 0
    for _ in range(epochs):
        shuffled = order[held:][torch.randperm(len(order) - held)]
        for rows in shuffled[: len(shuffled) // batch_size * batch_size].split(batch_size):
            method.model.train()
            method.set_progress(step / num_steps)
            optimizer.zero_grad()
            F.cross_entropy(method.model(images[rows]), labels[rows]).backward()
            nn.utils.clip_grad_norm_(method.model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            step += 1
    method.tune(val, cpu)
    model = method.finish()
    assert isinstance(model, ts.SnowModel)
    return model


def labelled(images: Tensor, targets: Tensor) -> TensorDataset:
    """Images (N, 3, H, W) and class numbers (N,) as Avalanche takes them."""
    dataset = TensorDataset(images, targets)
    dataset.targets = targets.tolist()
    return dataset


def digits(source: ts.Source, image_size: int, num_experiences: int) -> Any:
    """scikit-learn's digits as an Avalanche benchmark with task labels; every fifth image is for testing."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    pixels = torch.tensor(loaded.images, dtype=torch.float32)[:, None] / 16
    pixels = F.interpolate(pixels, size=(image_size, image_size), mode="bilinear").expand(-1, 3, -1, -1)
    mean, std = (torch.tensor(values)[:, None, None] for values in (source.input_config.mean, source.input_config.std))
    images, targets = (pixels - mean) / std, torch.tensor(loaded.target)
    tested = torch.arange(len(images)) % 5 == 0
    train, test = (labelled(images[part], targets[part]) for part in (~tested, tested))
    return nc_benchmark(train, test, num_experiences, task_labels=True, shuffle=False)


def run(benchmark: Any, hub: ts.Hub, epochs: int) -> list[dict[str, float]]:
    """Learn all experiences, testing those so far after each; Avalanche's metrics of every evaluation."""
    evaluator = EvaluationPlugin(
        accuracy_metrics(stream=True),
        forgetting_metrics(experience=True, stream=True),
        loggers=[],
    )
    strategy = HubStrategy(hub=hub, num_classes=benchmark.n_classes, epochs=epochs, evaluator=evaluator)
    found = []
    for number, experience in enumerate(benchmark.train_stream, start=1):
        strategy.train(experience, eval_streams=[])
        found.append(strategy.eval(benchmark.test_stream[:number]))
    return found


def average_accuracy(metrics: dict[str, float]) -> float:
    """The mean of the tasks' accuracies in one evaluation."""
    return fmean(value for name, value in metrics.items() if name.startswith("Top1_Acc_Stream/eval_phase/"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Learn the digits, and print what Avalanche measures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hub", type=Path, required=True, help="Folder of the new hub.")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--image-size", type=int, default=64, help="Pixels.")
    given = parser.parse_args(arguments)
    source = ts.load_source()
    hub = ts.Hub.create(given.hub, source)
    for number, metrics in enumerate(run(digits(source, given.image_size, 5), hub, given.epochs), start=1):
        forgetting = metrics.get("StreamForgetting/eval_phase/test_stream", 0.0)
        print(f"after experience {number}: accuracy {average_accuracy(metrics):.1%}, forgetting {forgetting}")


if __name__ == "__main__":
    main()
