"""The cost model of docs/scale.md against a simulation, request by request."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from scripts import load_script

ROOT = Path(__file__).parent.parent
RUNS = sorted((ROOT / "benchmarks" / "results").glob("scale_*.json"))


@pytest.fixture(scope="module")
def scale() -> ModuleType:
    return load_script(ROOT / "benchmarks" / "scale.py")


@pytest.mark.parametrize("room", [50, 200, 1000])
def test_the_formula_is_what_a_cache_does(room: int, scale: ModuleType) -> None:
    shares = scale.popularity(1000)
    batches = scale.trace(shares, 1500)
    costs = scale.Costs(0.01, 0.002, 0.001, 0.03, 1e6, 200)
    simulated, _ = scale.simulated_s(costs, batches, room, warm_up=750)
    assert scale.modelled_s(costs, shares, room) == pytest.approx(simulated, rel=0.07)


def test_a_cache_of_equal_tasks_hits_by_its_share(scale: ModuleType) -> None:
    assert scale.hit_rate(np.full(100, 0.01), 25) == pytest.approx(0.25, abs=0.01)
    assert scale.hit_rate(scale.popularity(10), 10) == 1.0


@pytest.mark.parametrize("file", RUNS, ids=lambda file: file.stem)
def test_what_was_measured_is_within_15_percent(file: Path) -> None:
    run = json.loads(file.read_text())
    assert abs(run["simulated_s"] / run["measured_s"] - 1) <= 0.15
    assert abs(run["modelled_s"] / run["measured_s"] - 1) <= 0.15


def test_there_are_runs() -> None:
    assert len(RUNS) == 3
