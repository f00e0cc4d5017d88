"""The benchmark: what training a task costs, and how fast many tasks are served."""

from __future__ import annotations

import csv
import io
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from torchsnow.errors import ExperimentError
from torchsnow.experiments.measuring import Progress, silent
from torchsnow.experiments.throughput import KINDS, Serving, multiply_adds, throughput
from torchsnow.experiments.training_speed import TrainingSpeed, training_speeds
from torchsnow.io.files import clear_os_errors, plain_row, refuse_unwritable, write_atomically
from torchsnow.methods import split_name
from torchsnow.plots import png_bytes, without_harm
from torchsnow.report.throughput import bench_figure
from torchsnow.source import Precision
from torchsnow.train import TrainSettings

PARTS = ("training", "inference")
_COLUMNS = (
    *("part", "name", "tasks", "seconds", "images_per_s", "images_per_s_with_decoding"),
    *("speedup", "limit", "memory_bytes"),
)


@dataclass(frozen=True)
class BenchSettings:
    """What is measured.

    `parts` are some of `PARTS`. `tasks` are numbers of tasks, ascending, for inference; `methods` ("NAME" or
    "NAME:PRESET") and `precision` (of the source pass) are for training, where full fine-tuning is always beside the
    others. `device` is "cpu" or "cuda". Raises a TorchsnowError for what cannot be measured.
    """

    source: str
    weights: str
    image_size: int
    batch_size: int
    tasks: tuple[int, ...]
    methods: tuple[str, ...]
    rounds: int
    backend: str
    device: str
    precision: Precision = "fp32"
    parts: tuple[str, ...] = PARTS

    def __post_init__(self) -> None:
        odd = [part for part in self.parts if part not in PARTS]
        if odd or not self.parts:
            raise ExperimentError(f"there is no part {', '.join(odd)!r}; expected one of {', '.join(PARTS)}")
        if self.rounds < 1:
            raise ExperimentError(f"rounds is {self.rounds}; expected a whole number of 1 or more")
        if "inference" in self.parts:
            if not self.tasks or min(self.tasks) < 1 or list(self.tasks) != sorted(set(self.tasks)):
                given = ",".join(map(str, self.tasks))
                raise ExperimentError(f"tasks is {given!r}; expected ascending whole numbers of 1 or more, like 1,2,5")
            self.serving()
        if "training" in self.parts:
            TrainSettings(batch_size=self.batch_size, image_size=self.image_size, precision=self.precision)
            for name in self.methods:
                split_name(name)

    def serving(self) -> Serving:
        return Serving(self.source, self.weights, self.image_size, self.batch_size, self.backend, self.device)

    @property
    def num_steps(self) -> int:
        """How often `progress` is called, unless a method is left out."""
        training = len(_with_full(self.methods)) if "training" in self.parts else 0
        inference = (len(KINDS) + 1) * len(self.tasks) if "inference" in self.parts else 0
        return (training + inference) * (self.rounds + 1)


def run_bench(
    settings: BenchSettings, say: Callable[[str], None] = lambda line: None, progress: Progress = silent
) -> dict[str, Any]:
    """Measure, and return the content of bench.json; a part that was not asked for is None.

    `say` is told what is going on, `progress` is called after every step. Raises TorchsnowError for what cannot be
    measured.
    """
    left_out: list[str] = []
    training = inference = None
    if "training" in settings.parts:
        say("measuring training steps")
        training = _training(settings, left_out.append, progress)
    if "inference" in settings.parts:
        serving = settings.serving()
        inference = {
            "multiply_adds": asdict(multiply_adds(serving, serving.source())),
            "rows": [row.to_dict() for row in throughput(serving, settings.tasks, settings.rounds, say, progress)],
        }
    return {
        "schema": 1,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": asdict(settings),
        "versions": {name: version(name) for name in _packages(settings)},
        "machine": {
            "processor": platform.machine(),
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name() if settings.device == "cuda" else "cpu",
        },
        "training": training,
        "inference": inference,
        "left_out": left_out,
    }


def prepare_folder(out: Path) -> None:
    """Make the folder. Raises ExperimentError when nothing can be written there: better now than after measuring."""
    with clear_os_errors("make the folder", out, ExperimentError):
        out.mkdir(parents=True, exist_ok=True)
    refuse_unwritable(out, ExperimentError)


def write_bench(content: Mapping[str, Any], out: Path, say: Callable[[str], None]) -> None:
    """Write bench.json, bench.csv and bench.png. Raises ExperimentError when the disk refuses."""
    training, rows = content["training"] or [], (content["inference"] or {"rows": []})["rows"]
    write_atomically(out / "bench.csv", _csv(training, rows), ExperimentError)
    write_atomically(out / "bench.json", json.dumps(content, indent=1, allow_nan=False) + "\n", ExperimentError)
    with without_harm(say, "bench.png"):
        write_atomically(out / "bench.png", png_bytes(bench_figure(training, rows)), ExperimentError)


def _training(settings: BenchSettings, say: Callable[[str], None], progress: Progress) -> list[dict[str, Any]]:
    speeds = training_speeds(
        settings.source,
        settings.weights,
        _with_full(settings.methods),
        image_size=settings.image_size,
        batch_size=settings.batch_size,
        rounds=settings.rounds,
        device=settings.device,
        precision=settings.precision,
        say=say,
        progress=progress,
    )
    full = speeds.get("full")
    return [{"method": name, **speed.to_dict(), **_beside(speed, full)} for name, speed in speeds.items()]


def _beside(own: TrainingSpeed, full: TrainingSpeed | None) -> dict[str, Any]:
    """How many times as fast as full fine-tuning, and with what share of its memory; None where it was left out."""
    return {
        "speedup": None if full is None else full.step_s / own.step_s,
        "peak_over_full": None if full is None else own.peak_bytes / full.peak_bytes,
    }


def _with_full(methods: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(("full", *methods)))


def _packages(settings: BenchSettings) -> list[str]:
    uses_openvino = "inference" in settings.parts and settings.backend == "openvino"
    return ["torchsnow", "torch", "timm", *(["openvino"] if uses_openvino else [])]


def _csv(training: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> str:
    """One line per figure; what it does not have is empty."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, _COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in training:
        names = {"part": "training", "name": row["method"], "tasks": 1}
        writer.writerow(plain_row({**row, **names, "seconds": row["step_s"], "memory_bytes": row["peak_bytes"]}))
    for row in rows:
        writer.writerow(plain_row({**row, "part": "inference", "name": row["kind"], "seconds": row["pass_s"]}))
    return text.getvalue()
