from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest

from torchsnow.experiments import costs as costs_module
from torchsnow.experiments.costs import measure_costs, plan_text
from torchsnow.experiments.measuring import Workload
from torchsnow.experiments.plan import Experiment
from torchsnow.experiments.resources import ResourceCache
from torchsnow.experiments.training_speed import TrainingSpeed
from torchsnow.report.results import StepCost

TIMES = {"full": (0.4, 900), "snow": (0.1, 300), "head": (0.05, 200)}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What would be measured; the times are made up."""
    calls: list[dict[str, Any]] = []

    def speeds(load: Workload, methods: Any, *more: Any) -> dict[str, TrainingSpeed]:
        calls.append({"methods": methods, **asdict(load)})
        return {name: TrainingSpeed(TIMES[name][0], 1.0, TIMES[name][1], "fp32") for name in methods if name in TIMES}

    monkeypatch.setattr(costs_module, "training_speeds", speeds)
    return calls


def test_costs_are_beside_those_of_full_fine_tuning(experiment: Experiment, asked: list[dict[str, Any]]) -> None:
    rows = measure_costs(experiment, "test_resnet", ["head", "snow"], 3, print)
    assert asked[0]["methods"] == ("full", "head", "snow")
    assert (asked[0]["image_size"], asked[0]["batch_size"], asked[0]["num_classes"]) == (32, 8, 3)
    snow = StepCost(**rows[1])
    assert (snow.method, snow.step_over_full, snow.peak_over_full) == ("snow", 0.25, pytest.approx(1 / 3))


def test_methods_that_could_not_be_measured_have_no_costs(experiment: Experiment, asked: list[dict[str, Any]]) -> None:
    experiment = replace(experiment, methods=("head", "bn"))
    assert [row["method"] for row in measure_costs(experiment, "test_resnet", ["head", "bn"], 3, print)] == ["head"]


def test_without_full_fine_tuning_there_is_nothing_to_compare_with(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(costs_module, "training_speeds", lambda *a, **k: {})
    assert measure_costs(experiment, "test_resnet", ["head"], 3, print) == []


def test_the_plan_counts_cells_and_trainings(experiment: Experiment) -> None:
    words = plan_text(experiment.cells(), experiment, ResourceCache(experiment))
    assert words.startswith(
        "4 cells to do (2 methods, 1 data sets, 1 sources, 2 seeds) in 6 trainings of up to 1 epochs"
    )


def test_stored_features_need_few_passes_and_fine_tuning_some_in_every_epoch(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(costs_module, "median_times_s", lambda steps, rounds: {"pass": 8 * 60.0})  # a minute an image
    times = {}
    for method, epochs in (("head", 1), ("head", 9), ("full", 1), ("full", 9)):
        small = replace(experiment, methods=(method,), seeds=(0,), lr_tries=1, epochs=epochs)
        words = plan_text(small.cells(), small, ResourceCache(small))
        number, unit = words.partition("about ")[2].split()[:2]
        times[method, epochs] = float(number) * {"min": 1, "h": 60}[unit]
    assert times["head", 1] == times["head", 9] < times["full", 1] < times["full", 9] / 3


def test_what_cannot_be_had_is_left_out(experiment: Experiment) -> None:
    missing = replace(experiment, data=("missing",))
    assert "about 1 s" in plan_text(missing.cells(), missing, ResourceCache(missing))
