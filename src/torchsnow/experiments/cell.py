"""One cell of a comparison: a method trained on one data set with one seed, and tested once."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from torchsnow.data import ImageSet, Splits, make_splits
from torchsnow.data.splits import reduced
from torchsnow.delta.cost import source_cost
from torchsnow.errors import TrainingError
from torchsnow.experiments.plan import OF_DATA, Experiment, PlannedCell
from torchsnow.experiments.resources import ResourceCache
from torchsnow.methods import make_method, split_name
from torchsnow.task_file import stored_bytes
from torchsnow.train import FitResult, Method, Metrics, RunFolder, TrainSettings, evaluate, fit

_KEPT = ("accuracy", "balanced_accuracy", "calibration_error", "loss", "top5")  # of all metrics


class _Try(NamedTuple):
    """A training with one learning rate."""

    method: Method
    result: FitResult
    settings: TrainSettings

    @property
    def rank(self) -> tuple[float, float]:
        """The better, the larger."""
        return self.result.best.val_accuracy, -self.result.best.val_loss


def run_cell(
    cell: PlannedCell, experiment: Experiment, resources: ResourceCache, folder: Path, lrs: Sequence[float]
) -> dict[str, Any]:
    """Train with each of the learning rates, choose one by the validation split, and test that one.

    Every training has a run folder below `folder`; what was finished there is not done again. Returns the cell as
    plain JSON values. Raises a TorchsnowError when the source cannot take the method, or no learning rate works.
    """
    start = time.monotonic()
    splits = cell_splits(cell, experiment, resources)
    best: _Try | None = None
    tries: list[dict[str, Any]] = []
    for lr in lrs:
        tried = _train(cell, experiment, resources, splits, lr, folder / f"lr-{lr:.3g}")
        if isinstance(tried, _Try):
            tries.append({"lr": lr, "val_accuracy": tried.result.best.val_accuracy})
            best = tried if best is None or tried.rank > best.rank else best
        else:
            tries.append({"lr": lr, "val_accuracy": None})
            failure = tried
    if best is None:
        raise failure
    test, shipped_state = _test(best, splits, resources.pool(cell)), best.method.shipped_state()
    return {
        **cell.to_dict(),
        "train_images": len(splits.train),
        "val_images": len(splits.val),
        "test_images": len(splits.test),
        "num_classes": len(splits.classes),
        "lr": best.settings.lr,
        "tries": tries if len(tries) > 1 else [],
        "best_epoch": best.result.best.epoch,
        "val": _kept(best.result.metrics),
        "test": _kept(test),
        "history": [asdict(row) for row in best.result.history],
        "trained_params": _num_params(best.method),
        "stored_bytes": stored_bytes(shipped_state),
        "shipped": shipped_task(best.method, shipped_state, source_cost(resources.source(cell.source)).multiply_adds),
        "note": splits.note,
        "seconds": round(time.monotonic() - start, 2),
    }


def cell_splits(cell: PlannedCell, experiment: Experiment, resources: ResourceCache) -> Splits:
    """The images of a cell: they depend on the data, the seed and the varied number of images, not on the method."""
    splits = make_splits(resources.data(cell.data), seed=cell.seed)
    if not splits.test:
        raise TrainingError(f"{cell.data} has no test images; a comparison needs some")
    of_data: dict[str, Any] = {"train_images": experiment.train_images}
    of_data |= {name: value for name, value in cell.variant.items() if name in OF_DATA}
    return reduced(splits, **of_data, val_images=experiment.val_images, test_images=experiment.test_images)


def _train(
    cell: PlannedCell, experiment: Experiment, resources: ResourceCache, splits: Splits, lr: float, path: Path
) -> _Try | TrainingError:
    settings = experiment.settings(cell.data, lr, cell.seed)
    method = cell_method(cell, resources, len(splits.classes))
    run = RunFolder(path)
    try:
        result = fit(method, splits, settings, run, resume=run.args.exists(), quiet=True, pool=resources.pool(cell))
    except TrainingError as error:  # such as a learning rate under which the loss does not stay finite
        return error
    return _Try(method, result, settings)


def cell_method(cell: PlannedCell, resources: ResourceCache, num_classes: int) -> Method:
    """The method of a cell, new. Raises a TorchsnowError when the source cannot take it."""
    name, preset = split_name(cell.method)
    changes = {name: value for name, value in cell.variant.items() if name not in OF_DATA}
    return make_method(name, resources.source(cell.source), num_classes, preset, cell.seed, changes)


def _test(best: _Try, splits: Splits, pool: ImageSet) -> Metrics:
    images = pool.with_examples(splits.test, splits.classes)
    settings = best.settings
    return evaluate(best.result.model, images, splits.classes, settings.batch_size, settings.torch_device())


def _kept(metrics: Metrics) -> dict[str, Any]:
    return {name: getattr(metrics, name) for name in _KEPT}


def shipped_task(method: Method, state: Mapping[str, Tensor], source_multiply_adds: int) -> dict[str, Any]:
    """What a task is that ships with this state; its parameters are all its numbers, statistics included."""
    cost, weights = method.multiply_adds(), method.mixing_weights()
    return {
        "probe_weight": weights.probe,
        "body_weight": weights.body,
        "num_params": sum(tensor.numel() for tensor in state.values() if tensor.is_floating_point()),
        "first_multiply_adds": cost.first,
        "added_multiply_adds": cost.added,
        "source_multiply_adds": source_multiply_adds,
    }


def _num_params(method: Method) -> int:
    return sum(parameter.numel() for group in method.parameter_groups(1.0, 0.0) for parameter in group["params"])
