"""The benchmark: what training a task costs, and how fast many tasks are served."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from torchsnow.engines import validate_backend
from torchsnow.errors import ExperimentError
from torchsnow.experiments.measuring import Progress, Workload, silent
from torchsnow.experiments.serving_speed import KINDS, multiply_adds, throughput
from torchsnow.experiments.training_speed import TrainingSpeed, training_speeds
from torchsnow.io.files import write_atomically, write_csv
from torchsnow.methods import split_name
from torchsnow.plots import new_figure, png_bytes, without_harm
from torchsnow.report.figures import look
from torchsnow.source.config import MAX_IMAGE_SIZE
from torchsnow.train import TrainSettings

PARTS = ("training", "inference")
Row = Mapping[str, Any]
_COLUMNS = (
    *("part", "name", "tasks", "seconds", "images_per_s", "images_per_s_with_decoding"),
    *("speedup", "limit", "memory_bytes"),
)
# In the colours that the same ways have as methods of training.
_LOOKS = {"separate": look("full"), "heads": look("head"), "snow": look("snow")}


@dataclass(frozen=True, kw_only=True)
class BenchSettings(Workload):
    """What is measured.

    `parts` are some of `PARTS`. `tasks` are numbers of tasks, ascending, for inference; `methods` ("NAME" or
    "NAME:PRESET") are for training, with full fine-tuning in any case. Raises a TorchsnowError for what cannot be
    measured.
    """

    tasks: tuple[int, ...]
    methods: tuple[str, ...]
    rounds: int
    parts: tuple[str, ...] = PARTS

    def __post_init__(self) -> None:
        unknown = [part for part in self.parts if part not in PARTS]
        if unknown or not self.parts:
            raise ExperimentError(f"there is no part {', '.join(unknown)!r}; expected one of {', '.join(PARTS)}")
        if self.rounds < 1:
            raise ExperimentError(f"rounds is {self.rounds}; expected a whole number of 1 or more")
        if "inference" in self.parts:
            if not self.tasks or min(self.tasks) < 1 or list(self.tasks) != sorted(set(self.tasks)):
                given = ",".join(map(str, self.tasks))
                raise ExperimentError(f"tasks is {given!r}; expected ascending whole numbers of 1 or more, like 1,2,5")
            validate_backend(self.backend, self.device)
            for name in ("image_size", "batch_size"):
                if getattr(self, name) < 1:
                    raise ExperimentError(f"{name} is {getattr(self, name)}; expected a whole number of 1 or more")
            if self.image_size > MAX_IMAGE_SIZE:
                raise ExperimentError(f"image_size is {self.image_size}; expected {MAX_IMAGE_SIZE} pixels or fewer")
        if "training" in self.parts:
            TrainSettings(batch_size=self.batch_size, image_size=self.image_size, precision=self.precision)
            for name in self.methods:
                split_name(name)

    @property
    def trained(self) -> tuple[str, ...]:
        """The methods that are trained, full fine-tuning first."""
        return tuple(dict.fromkeys(("full", *self.methods)))

    @property
    def num_steps(self) -> int:
        """How often `progress` is called, unless a method is left out."""
        training = len(self.trained) if "training" in self.parts else 0
        inference = (len(KINDS) + 1) * len(self.tasks) if "inference" in self.parts else 0
        return (training + inference) * (self.rounds + 1)


def run_bench(
    settings: BenchSettings, say: Callable[[str], None] = lambda line: None, progress: Progress = silent
) -> dict[str, Any]:
    """Measure, and return the content of bench.json; a part that was not asked for is None.

    `say` is told what happens, `progress` is called after every step. Raises TorchsnowError for what cannot be
    measured.
    """
    left_out: list[str] = []
    training = inference = None
    if "training" in settings.parts:
        say("measuring training steps")
        speeds = training_speeds(settings, settings.trained, settings.rounds, left_out.append, progress)
        training = [
            {"method": name, **speed._asdict(), **_over_full(speed, speeds.get("full"))}
            for name, speed in speeds.items()
        ]
    if "inference" in settings.parts:
        rows = throughput(settings, settings.tasks, settings.rounds, say, progress)
        adds = multiply_adds(settings, settings.load_source())
        inference = {"multiply_adds": adds._asdict(), "rows": [row._asdict() for row in rows]}
    uses_openvino = "inference" in settings.parts and settings.backend == "openvino"
    packages = ["torchsnow", "torch", "timm", *(["openvino"] if uses_openvino else [])]
    return {
        "schema": 1,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": asdict(settings),
        "versions": {name: version(name) for name in packages},
        "machine": {
            "processor": platform.machine(),
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name() if settings.device == "cuda" else "cpu",
        },
        "training": training,
        "inference": inference,
        "left_out": left_out,
    }


def _over_full(own: TrainingSpeed, full: TrainingSpeed | None) -> dict[str, Any]:
    """How many times as fast as full fine-tuning, and with what share of its memory; None where it was left out."""
    return {
        "speedup": None if full is None else full.step_s / own.step_s,
        "peak_over_full": None if full is None else own.peak_bytes / full.peak_bytes,
    }


def write_bench(content: Mapping[str, Any], out: Path, say: Callable[[str], None]) -> None:
    """Write bench.json, bench.csv and bench.png. Raises ExperimentError when the disk refuses."""
    training, rows = content["training"] or [], (content["inference"] or {"rows": []})["rows"]
    columns = {"memory_bytes": "peak_bytes", "seconds": "step_s", "name": "method"}
    lines = [
        *(
            {**row, "part": "training", "tasks": 1, **{name: row[own] for name, own in columns.items()}}
            for row in training
        ),
        *({**row, "part": "inference", "name": row["kind"], "seconds": row["pass_s"]} for row in rows),
    ]
    write_csv(out / "bench.csv", _COLUMNS, ([line.get(name) for name in _COLUMNS] for line in lines), ExperimentError)
    write_atomically(out / "bench.json", json.dumps(content, indent=1, allow_nan=False) + "\n", ExperimentError)
    with without_harm(say, "bench.png"):
        write_atomically(out / "bench.png", png_bytes(bench_figure(training, rows)), ExperimentError)


def bench_figure(training: Sequence[Row], inference: Sequence[Row]) -> Figure:
    """One panel per part that was measured, from the rows of bench.json."""
    parts = [(_inference, inference), (_training, training)]
    drawn = [(draw, rows) for draw, rows in parts if rows]
    figure = new_figure(6.2 * max(1, len(drawn)), 4.4)
    for axes, (draw, rows) in zip(figure.subplots(1, len(drawn) or 1, squeeze=False)[0], drawn, strict=False):
        draw(axes, rows)
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _inference(axes: Axes, rows: Sequence[Row]) -> None:
    for kind, name in KINDS.items():
        own = [row for row in rows if row["kind"] == kind]
        axes.plot(_column(own, "tasks"), _column(own, "images_per_s"), label=name, **_LOOKS[kind])
    separate = {row["tasks"]: row["images_per_s"] for row in rows if row["kind"] == "separate"}
    snow = [row for row in rows if row["kind"] == "snow"]
    bound = [separate[row["tasks"]] * row["limit"] for row in snow]
    colour = _LOOKS["snow"]["color"]
    axes.plot(
        _column(snow, "tasks"), bound, color=colour, linestyle="--", label="SNOW, if only multiply-adds took time"
    )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(FixedLocator(_column(snow, "tasks")))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tasks, _: f"{tasks:g}"))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda speed, _: f"{speed:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("tasks")
    axes.set_ylabel("images per second, every image to all tasks")
    axes.set_title("Inference")
    axes.legend(frameon=False, fontsize=9)


def _training(axes: Axes, rows: Sequence[Row]) -> None:
    levels = range(len(rows))
    colours = [look(row["method"])["color"] for row in rows]
    bars = axes.barh(levels, _column(rows, "images_per_s"), color=colours, height=0.6)
    texts = [
        f"{row['images_per_s']:.3g}" + ("" if row["speedup"] is None else f" ({row['speedup']:.2f} x)") for row in rows
    ]
    axes.bar_label(bars, texts, padding=4, fontsize=9)
    axes.margins(x=0.25)
    axes.set_yticks(levels, [row["method"] for row in rows], parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel("images per second (times full fine-tuning's)")
    axes.set_title("Training step")


def _column(rows: Sequence[Row], name: str) -> list[float]:
    return [row[name] for row in rows]
