"""Results of comparisons that were never run, of any size, the same every time."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torchsnow.report.results import Cell, Failure, Results, Scores, Shipped, StepCost, Trial
from torchsnow.train.history import Epoch

SOURCE = 390_000_000  # multiply-adds
# Test accuracy, stored bytes, trained parameters, multiply-adds of a first and a further task over the source's.
METHODS: Mapping[str, tuple[float, int, int, float, float]] = {
    "full": (0.86, 13_600_000, 3_400_000, 1.0, 1.0),
    "features": (0.84, 9_900_000, 2_400_000, 1.0, 0.34),
    "head": (0.76, 10_400, 2_562, 1.0, 1e-5),
    "snow": (0.83, 520_000, 123_456, 1.034, 0.034),
    "snow:paper": (0.79, 480_000, 119_000, 1.034, 0.034),
    "scratch": (0.62, 410_000, 98_000, 0.03, 0.03),
    "random": (0.81, 520_000, 123_456, 1.034, 0.034),
    "lora": (0.84, 2_100_000, 510_000, 1.0, 1.0),
    "taps": (0.82, 91_000, 21_536, 1.0, 2e-5),
    "side": (0.78, 420_000, 100_500, 1.03, 0.03),
    "bn": (0.80, 180_000, 42_000, 1.0, 1.0),
}
DATA = ("elpv:binary", "photos/leaves", "torchvision:FGVCAircraft", "hf:beans")
_RATES = (0.0016, 0.005, 0.016)


def scores(accuracy: float) -> Scores:
    return Scores(accuracy, accuracy * 0.97, 0.12 * (1 - accuracy), 2 * (1 - accuracy), None)


def shipped(method: str, **changes: Any) -> Shipped:
    """A task of a method as it shipped: of SNOW the body alone."""
    _, _, num_params, first, added = METHODS[method]
    weights = (0.0, 1.0) if method.startswith("snow") else (None, None)
    return replace(Shipped(*weights, num_params, round(first * SOURCE), round(added * SOURCE), SOURCE), **changes)


def cell(method: str = "snow", seed: int = 0, accuracy: float = 0.8, **changes: Any) -> Cell:
    """One finished training that ends with this test accuracy."""
    _, stored_bytes, trained_params, _, _ = METHODS[method]
    history = [Epoch(e, 1 / e, 0.9, 1.2 / e, accuracy * (1 - 0.3 / e), 0.005 / e, 400.0, 6.0) for e in range(1, 6)]
    values: dict[str, Any] = {
        "key": "0" * 64,
        "source": "bundled",
        "data": DATA[0],
        "method": method,
        "seed": seed,
        "variant": {},
        "train_images": 600,
        "val_images": 150,
        "test_images": 400,
        "num_classes": 2,
        "lr": 0.005,
        "tries": tuple(Trial(lr, accuracy - abs(lr - 0.005)) for lr in _RATES) if seed == 0 else (),
        "best_epoch": 5,
        "val": scores(min(1.0, accuracy + 0.01)),
        "test": scores(accuracy),
        "history": tuple(history),
        "trained_params": trained_params,
        "stored_bytes": stored_bytes,
        "shipped": shipped(method),
        "note": "",
        "seconds": 31.2,
    }
    return Cell(**(values | changes))


def cost(method: str = "snow", source: str = "bundled") -> StepCost:
    trained_params = METHODS[method][2]
    step = 0.2 + 0.8 * min(1.0, trained_params / 3_400_000)
    return StepCost(source, method, 0.6 * step, step, round(9e8 * step), step, 80, 32, "cpu")


def results(cells: Iterable[Cell] = (), **changes: Any) -> Results:
    experiment = {"sources": ["bundled"], "data": list(DATA), "seeds": [0, 1, 2], "epochs": 5, "train_images": None}
    versions = {"torchsnow": "0.1.0", "torch": "2.15.0", "timm": "1.0.31"}
    made = Results("offline", "2026-11-23T20:00:00+00:00", experiment, versions, "x86_64, 2 threads, cpu")
    return replace(made, cells=tuple(cells), **changes)


def from_accuracies(accuracies: Mapping[str, Sequence[float]], **changes: Any) -> Results:
    """One place, and for every method its test accuracies by seed."""
    made = [cell(name, seed, value) for name, values in accuracies.items() for seed, value in enumerate(values)]
    return results(made, **changes)


def whole_comparison(sources: Sequence[str] = ("bundled", "resnet50"), seeds: int = 3) -> Results:
    """All methods on all data sets, with one failure and one cost that was not measured."""
    draw = random.Random(0)
    cells = [
        cell(method, seed, _accuracy(draw, method, i), source=source, data=data)
        for source in sources
        for i, data in enumerate(DATA)
        for method in METHODS
        for seed in range(seeds)
        if (source, method) != ("resnet50", "lora")
    ]
    failed = [
        Failure("resnet50", data, "lora", 0, {}, "the source has no layer that can take a low-rank update")
        for data in DATA
    ]
    costs = [cost(method, source) for source in sources for method in METHODS if method not in ("lora", "side")]
    return results(cells, failed=tuple(failed), costs=(*costs, cost("lora", "bundled")))


def _accuracy(draw: random.Random, method: str, data: int) -> float:
    return min(0.99, METHODS[method][0] - 0.07 * data + 0.05 * (data == 3) + draw.gauss(0, 0.012))


def sweep(factor: str = "train_share", values: Sequence[Any] = (1.0, 0.3, 0.1)) -> Results:
    """SNOW over a swept setting on two data sets, with fine-tuning, which does not have it where it is K."""
    draw = random.Random(1)
    cells = []
    for i, data in enumerate(DATA[:2]):
        for method in ("snow", "random", "full"):
            variants = [{}] if method == "full" and factor == "width_divisor" else [{factor: v} for v in values]
            for step, variant in enumerate(variants):
                for seed in range(3):
                    accuracy = _accuracy(draw, method, i) - 0.03 * step
                    cells.append(cell(method, seed, accuracy, data=data, variant=variant))
    return results(cells, name=f"sweep of {factor}")
