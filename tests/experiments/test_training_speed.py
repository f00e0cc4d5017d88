from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from torchsnow.errors import TrainingError
from torchsnow.experiments import training_speed
from torchsnow.experiments.measuring import Workload, silent
from torchsnow.experiments.training_speed import TrainingSpeed, training_speeds
from torchsnow.methods import make_method
from torchsnow.train import Method

TINY = Workload(source="test_resnet", weights="random", image_size=32, batch_size=4, device="cpu")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Method]:
    """No processes of their own; "side" cannot be made; the methods that were made."""
    methods: list[Method] = []

    def make(name: str, *args: Any) -> Method:
        if name == "side":
            raise TrainingError("this source is too plain")
        methods.append(make_method(name, *args))
        return methods[-1]

    monkeypatch.setattr(training_speed, "peak_bytes", lambda device, case, whole: 7)
    monkeypatch.setattr(training_speed, "make_method", make)
    return methods


def speeds(*methods: str, rounds: int = 1, say: Any = print, **changes: Any) -> dict[str, TrainingSpeed]:
    progress = changes.pop("progress", silent)
    return training_speeds(replace(TINY, **changes), methods, rounds, say, progress)


@pytest.mark.usefixtures("made")
def test_every_method_is_measured_once() -> None:
    turns: list[None] = []
    found = speeds("full", "snow:paper", "full", progress=lambda: turns.append(None), rounds=2)
    assert list(found) == ["full", "snow:paper"]
    assert len(turns) == 2 * (1 + 2)
    for speed in found.values():
        assert speed.images_per_s == pytest.approx(4 / speed.step_s)
        assert speed.peak_bytes == 7


def test_a_step_trains(made: list[Method]) -> None:
    torch.manual_seed(0)
    speeds("head", rounds=3)
    (method,) = made
    fresh = make_method("head", method.source, 10)
    changed = [name for name, new in method.trainable_state().items() if not new.equal(fresh.trainable_state()[name])]
    assert changed


@pytest.mark.usefixtures("made")
def test_what_the_source_cannot_take_is_left_out_with_the_reason() -> None:
    said: list[str] = []
    assert list(speeds("head", "side", say=said.append)) == ["head"]
    assert said == ["side is left out: this source is too plain"]


def test_a_method_that_memory_does_not_suffice_for_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def short(device: str, steps: Any, whole: bool) -> int:
        if "full" in steps.args:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 7

    monkeypatch.setattr(training_speed, "peak_bytes", short)
    said: list[str] = []
    assert list(speeds("full", "head", say=said.append)) == ["head"]
    assert said == ["full is left out: CUDA out of memory"]


@pytest.mark.usefixtures("made")
def test_bfloat16_is_for_methods_that_keep_the_source() -> None:
    found = speeds("full", "snow", precision="bf16")
    assert {name: speed.precision for name, speed in found.items()} == {"full": "fp32", "snow": "bf16"}


def test_bad_input_is_refused_before_anything_is_measured(made: list[Method]) -> None:
    with pytest.raises(TrainingError, match="did you mean 'snow'"):
        speeds("head", "snwo")
    with pytest.raises(TrainingError, match="batch_size is 1"):
        speeds("head", batch_size=1)
    assert made == []


def test_memory_in_a_process_of_its_own() -> None:
    found = speeds("full")["full"]
    weights_bytes = 4 * 470_000
    assert found.peak_bytes > 4 * weights_bytes  # weights, gradients, and the optimiser's two averages
    assert found.peak_bytes < 2**30
