"""An epoch of a shared run against as many separate ones, side by side in one process.

    python benchmarks/shared_training.py --tasks 1,4,8 --out benchmarks/results/shared_training.json

Solar cells (elpv) with the bundled source; the labels of the tasks are drawn at random, which costs the same as real
ones. "same" gives every task the same images, "other" gives each images of its own,
and there "mixed" makes one batch of them for the source. Times are medians over rounds in
which one way follows the other; a round before the first is not counted. "cpu" is the time of the one thread, which
other work on the machine disturbs less than "wall".
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Literal

import torch

from torchsnow.data import Example, LoadedData, Splits, load_data
from torchsnow.experiments.measuring import Step, peak_bytes
from torchsnow.methods.snow import make_snow
from torchsnow.source import FeatureMaps, Request, Source, load_source
from torchsnow.source.features import gather
from torchsnow.train import RunFolder, TrainSettings
from torchsnow.train.fit import Loop
from torchsnow.train.progress import TrainingBar
from torchsnow.train.shared import Together
from torchsnow.train.streams import SharedTask, Stream

Images = Literal["same", "other"]
MANY = 1_000  # epochs: the run never ends while it is measured


@dataclass(frozen=True)
class Case:
    """Tasks to train, each on so many images; picklable, for a process of its own. A call gives an epoch of them."""

    num_tasks: int
    images: Images
    num_train: int
    num_val: int
    image_size: int
    batch_size: int
    shared: bool

    def __call__(self) -> Step:
        source, data = load_source(), load_data("elpv:binary")
        folder = Path(tempfile.mkdtemp())
        return self.shared_epoch(source, data, folder) if self.shared else self.separate_epochs(source, data, folder)

    def settings(self) -> TrainSettings:
        return TrainSettings(epochs=MANY, batch_size=self.batch_size, image_size=self.image_size, device="cpu")

    def splits(self, data: LoadedData, number: int) -> Splits:
        """The images of one task, with labels of its own."""
        size = self.num_train + self.num_val
        start = number * size if self.images == "other" else 0
        labels = random.Random(number)
        examples = [Example(one.path, labels.randrange(2)) for one in data.examples[start : start + size]]
        assert len(examples) == size
        train, val = tuple(examples[: self.num_train]), tuple(examples[self.num_train :])
        return Splits(train, val, (), data.classes, 0, data.root, data.fingerprint)

    def tasks(self, source: Source, data: LoadedData, folder: Path) -> list[SharedTask]:
        return [
            SharedTask(
                f"task-{number}",
                make_snow(source, 2),
                self.splits(data, number),
                self.settings(),
                RunFolder(folder / f"task-{number}"),
            )
            for number in range(self.num_tasks)
        ]

    def separate_epochs(self, source: Source, data: LoadedData, folder: Path) -> Step:
        """An epoch of each task, one after the other, each as `fit` does it."""
        bar = TrainingBar(MANY, self.num_train, quiet=True)
        loops = [
            Loop(task.method, task.splits, task.settings, task.run, None, None)
            for task in self.tasks(source, data, folder / "separate")
        ]
        for loop in loops:
            loop.begin(bar)
        return lambda: [loop.run_epoch(bar) for loop in loops]

    def shared_epoch(self, source: Source, data: LoadedData, folder: Path, mixes: bool = False) -> Step:
        """An epoch of all tasks together, as `fit_together` does it; with `mixes`, as it does on CUDA."""
        tasks = self.tasks(source, data, folder / f"shared-{mixes}")
        streams = [Stream(tasks)] if self.images == "same" else [Stream([task]) for task in tasks]
        together = Together(streams, TrainingBar(MANY, self.num_train, quiet=True))
        together.mixes = mixes
        together.begin(resume=False)
        return together.epoch


def median_seconds(steps: Mapping[str, Step], rounds: int) -> dict[str, dict[str, float]]:
    """Median wall and CPU seconds of every step, taken step by step within each round."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for _ in range(rounds + 1):
        for name, step in steps.items():
            wall, cpu = time.perf_counter(), time.process_time()
            step()
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {name: dict(zip(("wall", "cpu"), _medians(taken[1:]), strict=True)) for name, taken in times.items()}


def _medians(rows: Sequence[tuple[float, float]]) -> list[float]:
    return [round(median(column), 4) for column in zip(*rows, strict=True)]


def epochs(case: Case, source: Source, data: LoadedData, rounds: int) -> dict[str, dict[str, float]]:
    """Median seconds of an epoch of all tasks, separate and shared."""
    with tempfile.TemporaryDirectory() as folder:
        steps = {
            "separate": case.separate_epochs(source, data, Path(folder)),
            "shared": case.shared_epoch(source, data, Path(folder)),
        }
        if case.images == "other":
            steps["mixed"] = case.shared_epoch(source, data, Path(folder), mixes=True)
        return median_seconds(steps, rounds)


def passes(case: Case, source: Source, rounds: int) -> dict[str, dict[str, float]]:
    """Median seconds of one source pass over a batch and of gathering what every delta reads of it, in three ways."""
    images = torch.randn(case.batch_size, 3, case.image_size, case.image_size)
    deltas = [make_snow(source, 2, changes={"start": "random"}, seed=number).delta for number in range(case.num_tasks)]
    choices = [delta.train().choose() for delta in deltas]
    whole = Request.together(Request(channels=choice) for choice in choices)
    unions = {tap: torch.cat([choice[tap] for choice in choices]).unique() for tap in choices[0]}
    dims = {name: tap.dim for name, tap in source.taps.items()}

    def each() -> None:
        source.shared(images, [(Request(channels=choice), slice(0, len(images))) for choice in choices])

    def from_taps() -> None:
        features: FeatureMaps = source(images, whole)
        for choice in choices:
            for tap, idx in choice.items():
                features.channels(tap, idx)

    def from_unions() -> None:
        features: FeatureMaps = source(images, Request(channels=unions))
        for choice in choices:
            for tap, idx in choice.items():
                gather(features.channels(tap, unions[tap]), dims[tap], torch.searchsorted(unions[tap], idx))

    return median_seconds({"each": each, "union": from_unions, "whole_taps": from_taps}, rounds)


def peak_mib(case: Case) -> int:
    """Peak memory of an epoch in a process of its own, everything included that was made for it."""
    return round(peak_bytes("cpu", case, whole=True) / 2**20)


def measure(args: argparse.Namespace, num_tasks: int, source: Source, data: LoadedData) -> dict[str, object]:
    """All figures for one number of tasks."""
    case = partial(Case, num_tasks, num_train=args.train, num_val=args.val, image_size=args.size, batch_size=args.batch)
    row: dict[str, object] = {"tasks": num_tasks}
    for images in ("same", "other"):
        row[images] = epochs(case(images=images, shared=False), source, data, args.rounds)
        print(row, flush=True)
        row[f"{images}_peak_mib"] = peak_mib(case(images=images, shared=True))
    row["separate_peak_mib"] = peak_mib(replace(case(images="same", shared=False), num_tasks=1))
    row["pass"] = passes(case(images="same", shared=True), source, 4 * args.rounds)
    return row


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", default="1,4,8")
    parser.add_argument("--train", type=int, default=256, help="training images of a task")
    parser.add_argument("--val", type=int, default=48, help="validation images of a task")
    parser.add_argument("--size", type=int, default=96, help="pixels")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(words)
    torch.set_num_threads(1)
    source, data = load_source(), load_data("elpv:binary")
    rows = []
    for number in args.tasks.split(","):
        rows.append(measure(args, int(number), source, data))
        print(rows[-1], flush=True)
        about = {name: value for name, value in vars(args).items() if name not in ("out", "tasks")}
        content = {"source": source.name, "torch": torch.__version__, "threads": 1, **about, "rows": rows}
        args.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
