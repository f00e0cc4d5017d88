from __future__ import annotations

from dataclasses import replace

import pytest

from torchsnow.experiments import estimate
from torchsnow.experiments.estimate import plan_words
from torchsnow.experiments.material import Material
from torchsnow.experiments.plan import Experiment


def test_the_plan_counts_cells_and_trainings(experiment: Experiment) -> None:
    words = plan_words(experiment.cells(), experiment, Material(experiment))
    assert words.startswith(
        "4 cells to do (2 methods, 1 data sets, 1 sources, 2 seeds) in 6 trainings of up to 1 epochs"
    )


def test_stored_features_need_few_passes_and_fine_tuning_some_in_every_epoch(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "median_times_s", lambda steps, rounds: {"pass": 8 * 60.0})  # a minute an image
    times = {}
    for method, epochs in (("head", 1), ("head", 9), ("full", 1), ("full", 9)):
        small = replace(experiment, methods=(method,), seeds=(0,), lr_tries=1, epochs=epochs)
        words = plan_words(small.cells(), small, Material(small))
        number, unit = words.partition("about ")[2].split()[:2]
        times[method, epochs] = float(number) * {"min": 1, "h": 60}[unit]
    assert times["head", 1] == times["head", 9] < times["full", 1] < times["full", 9] / 3


def test_what_cannot_be_had_is_left_out(experiment: Experiment) -> None:
    missing = replace(experiment, data=("missing",))
    assert "about 1 s" in plan_words(missing.cells(), missing, Material(missing))
