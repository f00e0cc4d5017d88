"""Lifelong evaluation: tasks learned one after another, and after each of them a look at all so far."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml

from torchsnow.data import ImageSet, LoadedData
from torchsnow.delta.cost import source_cost
from torchsnow.errors import ExperimentError
from torchsnow.experiments.lifelong_learners import Learner, SequentialLearner, SnowLearner
from torchsnow.experiments.lifelong_metrics import (
    average_accuracies,
    backward_transfer,
    forgetting,
    forward_transfer,
    learning_accuracy,
)
from torchsnow.experiments.lifelong_probe import probe_accuracy
from torchsnow.experiments.lifelong_settings import LifelongSettings
from torchsnow.experiments.lifelong_tasks import SequenceTask, make_tasks
from torchsnow.experiments.measuring import median_times_s, wait_for
from torchsnow.io.csv_cells import plain_cell
from torchsnow.io.files import clear_os_errors, write_atomically
from torchsnow.io.lock import FolderLock
from torchsnow.io.yaml_file import read_yaml
from torchsnow.plots import png_bytes, without_harm
from torchsnow.report.lifelong import lifelong_figure, lifelong_page
from torchsnow.source import Source, load_source
from torchsnow.train import RunFolder
from torchsnow.train.batches import plain_images
from torchsnow.train.evaluate import measure, predict

Report = Callable[[str, int, int], None]
"""Called before a piece of work with its name, how many are done, and how many there are."""

_ROUNDS = 5
_BATCH = 8  # images of the timed passes
_ADVICE = "remove the file, and that step is done again"


class Lifelong:
    """The folder of one lifelong evaluation: `settings.yaml`, `hub/`, `steps/*.json`, `runs/`.

    What is finished is kept, and a sequence may grow by data at its end. Whoever writes there owns the folder
    meanwhile, by `owned`. Raises ExperimentError when the folder holds a sequence of other settings.
    """

    def __init__(self, settings: LifelongSettings, path: Path) -> None:
        self.settings, self.path = settings, path
        self._lock = FolderLock(path, ExperimentError)
        self._refuse_other_settings()

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Make the folder and own it; blocks of one thread may be nested.

        Raises ExperimentError when another process or thread owns it, with who that is, and when it holds a sequence
        of other settings by now.
        """
        with self._lock.held():
            self._refuse_other_settings()
            yield

    def _refuse_other_settings(self) -> None:
        file = self.path / "settings.yaml"
        if file.exists():
            self.settings.refuse_other(_read_settings(file), str(self.path))

    def run(self, report: Report, load: Callable[[str], LoadedData]) -> dict[str, Any]:
        """Do what is missing, and return the content of results.json.

        Raises a TorchsnowError for data or a source that cannot be used.
        """
        with self.owned():
            return self._run(report, load)

    def _run(self, report: Report, load: Callable[[str], LoadedData]) -> dict[str, Any]:
        settings = self.settings
        numbers = (settings.train_images, settings.val_images, settings.test_images)
        tasks = make_tasks(settings.data, load, settings.classes_per_task, settings.seed, *numbers)
        source = load_source(settings.source, settings.weights)
        with clear_os_errors("create the folder", self.path, ExperimentError):
            (self.path / "steps").mkdir(exist_ok=True)
        text = yaml.safe_dump(settings.to_dict(), sort_keys=False, allow_unicode=True)
        write_atomically(self.path / "settings.yaml", text, ExperimentError)
        learners: list[Learner] = [
            SnowLearner(source, settings, self.path / "hub"),
            SequentialLearner(source, settings),
        ]
        steps = _Steps(self.path, settings, source, learners)
        for place in range(len(tasks)):
            report(tasks[place].name, place, len(tasks))
            steps.take(tasks[: place + 1])
        return self._results(tasks, source, steps)

    def _results(self, tasks: Sequence[SequenceTask], source: Source, steps: _Steps) -> dict[str, Any]:
        device = self.settings.training("snow").torch_device()
        about = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        baseline = [steps.read("source", task)["accuracy"] for task in tasks]
        passes = [steps.read("passes", task) for task in tasks]
        return {
            "schema": 1,
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
            "settings": self.settings.to_dict(),
            "versions": {name: version(name) for name in ("torchsnow", "torch", "timm")},
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {about}",
            "tasks": [task.to_dict() for task in tasks],
            "source_bytes": sum(tensor.nbytes for tensor in source.model.state_dict().values()),
            "source_multiply_adds": source_cost(source).multiply_adds,
            "source_probe": baseline,
            "learners": {
                learner.name: summary(
                    [steps.read(learner.name, task) for task in tasks],
                    baseline,
                    [times[learner.name] for times in passes],
                )
                for learner in steps.learners
            },
        }


class _Steps:
    """What is done for every task of a sequence, and kept in one JSON file each as soon as it is done."""

    def __init__(self, path: Path, settings: LifelongSettings, source: Source, learners: Sequence[Learner]) -> None:
        self.path, self.settings, self.source, self.learners = path, settings, source, learners
        training = settings.training("snow")
        self.device = training.torch_device()
        self.pool = plain_images(source.input_config, training.framing)

    def take(self, tasks: Sequence[SequenceTask]) -> None:
        """Learn the last of the tasks in every way, or take back what was learned, and look at all of them."""
        task = tasks[-1]
        self._keep("source", task, lambda: {"accuracy": self._probe(self.source.model, task)})
        for learner in self.learners:
            run = RunFolder(self.path / "runs" / f"{learner.name}-{task.name}")
            if self.read(learner.name, task):
                learner.restore(task, run)
            else:
                self._keep(learner.name, task, partial(self._learn, learner, tasks, run))
            learner.keep(run)
        self._keep("passes", task, self._passes)

    def _learn(self, learner: Learner, tasks: Sequence[SequenceTask], run: RunFolder) -> dict[str, Any]:
        """One row of the matrix, with what it took. A training that was interrupted starts anew, for its time."""
        shutil.rmtree(run.path, ignore_errors=True)
        task = tasks[-1]
        ahead = self._probe(learner.features(), task)
        start_s = time.perf_counter()
        learner.learn(task, run, self.pool)
        train_s = time.perf_counter() - start_s
        answers = [self._test(learner, other) for other in tasks]
        stored_bytes, multiply_adds = learner.added(task)
        return {
            "ahead": ahead,
            "accuracies": [accuracy for accuracy, _ in answers],
            "logits_sha256": [digest for _, digest in answers],
            "stored_bytes": stored_bytes,
            "added_multiply_adds": multiply_adds,
            "train_s": round(train_s, 3),
        }

    def _test(self, learner: Learner, task: SequenceTask) -> tuple[float, str]:
        """Test accuracy of a task, and a digest of its logits: equal ones are equal bit by bit."""
        images = self._images(task, "test")
        logits, labels = predict(learner.model(task), images, self.settings.batch_size, self.device)
        digest = hashlib.sha256(logits.contiguous().numpy().tobytes()).hexdigest()
        return measure(logits, labels, task.splits.classes).accuracy, digest

    def _probe(self, features: torch.nn.Module, task: SequenceTask) -> float:
        train, test = self._images(task, "train"), self._images(task, "test")
        return probe_accuracy(features, train, test, self.settings.batch_size, self.device)

    def _images(self, task: SequenceTask, split: str) -> ImageSet:
        return self.pool.with_examples(getattr(task.splits, split), task.splits.classes)

    def _passes(self) -> dict[str, float]:
        """Seconds per image from the image to the logits of all tasks so far, side by side."""
        size = self.settings.image_size
        images = torch.randn(_BATCH, 3, size, size, generator=torch.Generator().manual_seed(0)).to(self.device)

        def run(learner: Learner) -> None:
            learner.whole_pass(images)
            wait_for(self.device.type)

        times = median_times_s({learner.name: partial(run, learner) for learner in self.learners}, _ROUNDS)
        return {name: seconds / _BATCH for name, seconds in times.items()}

    def _keep(self, kind: str, task: SequenceTask, make: Callable[[], dict[str, Any]]) -> None:
        if not self.read(kind, task):
            content = {"task": task.to_dict(), **make()}
            write_atomically(
                self._file(kind, task), json.dumps(content, indent=1, allow_nan=False) + "\n", ExperimentError
            )

    def read(self, kind: str, task: SequenceTask) -> dict[str, Any]:
        """What was kept; empty if nothing was. Raises ExperimentError for a damaged file, or data that changed."""
        file = self._file(kind, task)
        if not file.exists():
            return {}
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            stored = content["task"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ExperimentError(f"{file} is damaged: {_ADVICE}") from error
        if stored != task.to_dict():
            raise ExperimentError(f"{task.data} changed since {file} was written; choose another folder")
        return dict(content)

    def _file(self, kind: str, task: SequenceTask) -> Path:
        return self.path / "steps" / f"{task.name}-{kind}.json"


def summary(steps: Sequence[Mapping[str, Any]], baseline: Sequence[float], pass_s: Sequence[float]) -> dict[str, Any]:
    """One learner's part of results.json, from what was kept of its steps; `pass_s` are seconds per image."""
    matrix = [step["accuracies"] for step in steps]
    digests = [step["logits_sha256"] for step in steps]
    averages = average_accuracies(matrix)
    return {
        "matrix": matrix,
        "ahead": [step["ahead"] for step in steps],
        "average_accuracies": averages,
        "average_accuracy": averages[-1],
        "learning_accuracy": learning_accuracy(matrix),
        "backward_transfer": backward_transfer(matrix),
        "forward_transfer": forward_transfer([step["ahead"] for step in steps], baseline),
        "forgetting": forgetting(matrix),
        "logits_bit_equal": all(digests[i][j] == digests[j][j] for i in range(len(digests)) for j in range(i)),
        "stored_bytes": [step["stored_bytes"] for step in steps],
        "added_multiply_adds": [step["added_multiply_adds"] for step in steps],
        "train_s": [step["train_s"] for step in steps],
        "pass_s": list(pass_s),
    }


def write_results(content: Mapping[str, Any], out: Path, say: Callable[[str], None]) -> None:
    """Write results.json, a CSV file per matrix, lifelong.png and report.html.

    Raises a TorchsnowError when the disk refuses.
    """
    for name, learner in content["learners"].items():
        write_atomically(out / f"matrix-{name}.csv", matrix_csv(content["tasks"], learner["matrix"]), ExperimentError)
    write_atomically(out / "results.json", json.dumps(content, indent=1, allow_nan=False) + "\n", ExperimentError)
    with without_harm(say, "lifelong.png"):
        write_atomically(out / "lifelong.png", png_bytes(lifelong_figure(content)), ExperimentError)
    with without_harm(say, "report.html"):
        lifelong_page(content).save(out / "report.html")


def matrix_csv(tasks: Sequence[Mapping[str, Any]], matrix: Sequence[Sequence[float]]) -> str:
    """A row per learned task, a column per tested one; empty where that was not learned yet."""
    names = [task["name"] for task in tasks]
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["after", *map(plain_cell, names)])
    for name, row in zip(names, matrix, strict=True):
        writer.writerow([plain_cell(name), *row, *[""] * (len(names) - len(row))])
    return text.getvalue()


def _read_settings(file: Path) -> dict[str, Any]:
    try:
        content = read_yaml(file, ExperimentError)
    except ExperimentError as error:
        raise ExperimentError(f"{file} is damaged: choose another folder") from error
    if not isinstance(content, dict):
        raise ExperimentError(f"{file} does not hold settings of a lifelong evaluation; choose another folder")
    return content
