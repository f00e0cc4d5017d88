from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from torchsnow.errors import ExperimentError, TorchsnowError
from torchsnow.experiments import serving_speed, training_speed
from torchsnow.experiments.bench import BenchSettings, run_bench, write_bench

TINY: dict[str, Any] = {
    "source": "test_resnet",
    "weights": "random",
    "image_size": 32,
    "batch_size": 2,
    "tasks": (1, 2),
    "methods": ("head",),
    "rounds": 1,
    "backend": "eager",
    "device": "cpu",
}


@pytest.fixture(autouse=True)
def _no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (training_speed, serving_speed):
        monkeypatch.setattr(module, "peak_bytes", lambda device, prepare, whole: 2**20)


def test_both_parts_are_measured_and_written(tmp_path: Path) -> None:
    turns: list[None] = []
    settings = BenchSettings(**TINY)
    content = run_bench(settings, progress=lambda: turns.append(None))
    write_bench(content, tmp_path, print)
    assert json.loads((tmp_path / "bench.json").read_text()) == json.loads(json.dumps(content))
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench.csv", "bench.json", "bench.png"]
    assert len(turns) == settings.num_steps == (2 + 4 * 2) * 2


def test_training_beside_full_fine_tuning() -> None:
    content = run_bench(BenchSettings(**TINY, parts=("training",)))
    full, head = content["training"]
    assert (full["method"], head["method"], content["inference"]) == ("full", "head", None)
    assert (full["speedup"], full["peak_over_full"]) == (1, 1)
    assert head["speedup"] == pytest.approx(full["step_s"] / head["step_s"])


def test_what_is_left_out_is_written_down(monkeypatch: pytest.MonkeyPatch) -> None:
    def short(device: str, steps: Any, whole: bool) -> int:
        if "full" in steps.args:
            raise ExperimentError("too little memory")
        return 5

    monkeypatch.setattr(training_speed, "peak_bytes", short)
    content = run_bench(BenchSettings(**TINY, parts=("training",)))
    assert content["left_out"] == ["full is left out: too little memory"]
    (head,) = content["training"]
    assert (head["method"], head["speedup"], head["peak_over_full"]) == ("head", None, None)


def test_the_table_has_a_line_per_figure(tmp_path: Path) -> None:
    content = run_bench(BenchSettings(**TINY))
    write_bench(content, tmp_path, print)
    with (tmp_path / "bench.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["name"] for line in lines] == ["full", "head", *("separate", "heads", "snow") * 2]
    assert [line["tasks"] for line in lines] == ["1"] * 5 + ["2"] * 3
    assert float(lines[-1]["seconds"]) == content["inference"]["rows"][-1]["pass_s"]
    assert float(lines[0]["memory_bytes"]) == 2**20
    assert lines[0]["limit"] == ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": (2, 1)}, "tasks is '2,1'; expected ascending"),
        ({"tasks": (1, 1)}, "expected ascending"),
        ({"tasks": (0, 1)}, "expected ascending"),
        ({"tasks": ()}, "expected ascending"),
        ({"rounds": 0}, "rounds is 0"),
        ({"backend": "tvm"}, "no backend 'tvm'"),
        ({"methods": ("snwo",)}, "did you mean 'snow'"),
        ({"precision": "fp8"}, "precision is 'fp8'"),
        ({"batch_size": 1}, "batch_size is 1"),
        ({"batch_size": 0, "parts": ("inference",)}, "batch_size is 0"),
        ({"image_size": 0, "parts": ("inference",)}, "image_size is 0"),
        ({"parts": ("speed",)}, "no part 'speed'"),
    ],
)
def test_what_cannot_be_measured_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TorchsnowError, match=message):
        BenchSettings(**{**TINY, **changes})


def test_what_a_part_does_not_use_is_not_looked_at() -> None:
    BenchSettings(**{**TINY, "tasks": (), "parts": ("training",)})
    BenchSettings(**{**TINY, "batch_size": 1, "parts": ("inference",)})
