from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from torchsnow.experiments import costs as costs_module
from torchsnow.experiments.costs import measure_costs
from torchsnow.experiments.plan import Experiment
from torchsnow.experiments.training_speed import TrainingSpeed
from torchsnow.report import Cost

TIMES = {"full": (0.4, 900), "snow": (0.1, 300), "head": (0.05, 200)}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What would be measured; the times are made up."""
    calls: list[dict[str, Any]] = []

    def speeds(source: str, weights: str, methods: Any, **more: Any) -> dict[str, TrainingSpeed]:
        calls.append({"source": source, "weights": weights, "methods": methods, **more})
        return {name: TrainingSpeed(TIMES[name][0], 1.0, TIMES[name][1], "fp32") for name in methods if name in TIMES}

    monkeypatch.setattr(costs_module, "training_speeds", speeds)
    return calls


def test_costs_are_beside_those_of_full_fine_tuning(experiment: Experiment, asked: list[dict[str, Any]]) -> None:
    rows = measure_costs(experiment, "test_resnet", ["head", "snow"], 3, print)
    assert asked[0]["methods"] == ("full", "head", "snow")
    assert (asked[0]["image_size"], asked[0]["batch_size"], asked[0]["num_classes"]) == (32, 8, 3)
    snow = Cost(**rows[1])
    assert (snow.method, snow.step_over_full, snow.peak_over_full) == ("snow", 0.25, pytest.approx(1 / 3))


def test_methods_that_could_not_be_measured_have_no_costs(experiment: Experiment, asked: list[dict[str, Any]]) -> None:
    experiment = replace(experiment, methods=("head", "bn"))
    assert [row["method"] for row in measure_costs(experiment, "test_resnet", ["head", "bn"], 3, print)] == ["head"]


def test_without_full_fine_tuning_there_is_nothing_to_compare_with(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(costs_module, "training_speeds", lambda *a, **k: {})
    assert measure_costs(experiment, "test_resnet", ["head"], 3, print) == []
