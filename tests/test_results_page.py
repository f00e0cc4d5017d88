"""docs/results.md is what its script makes of the stored comparisons."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from scripts import load_script
from torchsnow.experiments.plan import Experiment
from torchsnow.report.results import Results

ROOT = Path(__file__).parent.parent
STORED = sorted((ROOT / "experiments" / "results").glob("*.json"))


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script(ROOT / "experiments" / "write_results_page.py")


def test_the_page_is_the_one_that_the_script_writes(script: ModuleType) -> None:
    for page, text in script.pages().items():
        assert page.read_text() == text


def test_a_reader_finds_what_snow_gives_and_costs_on_one_screen(script: ModuleType) -> None:
    screen = "\n".join(script.PAGE.read_text().splitlines()[:40])
    assert "a further task" in screen
    assert "Where SNOW wins and loses" in screen


def test_every_stored_comparison_is_on_the_page(script: ModuleType) -> None:
    assert sorted(script.results_files()) == STORED


@pytest.mark.parametrize("file", STORED, ids=lambda file: file.stem)
def test_stored_comparisons_are_of_the_stored_experiments(file: Path) -> None:
    """Same budget, and cells of it; an experiment that takes days may be stored before it is done."""
    results, experiment = Results.load(file), Experiment.load(ROOT / "experiments" / f"{file.stem}.yaml")
    assert Experiment.from_dict(results.experiment) == experiment
    expected = [(cell.source, cell.data, cell.method, cell.seed, dict(cell.variant)) for cell in experiment.cells()]
    stored = [(cell.source, cell.data, cell.method, cell.seed, dict(cell.variant)) for cell in results.cells]
    assert stored == [cell for cell in expected if cell in stored] != []


@pytest.mark.parametrize("file", STORED, ids=lambda file: file.stem)
def test_every_method_had_the_same_number_of_tries(file: Path) -> None:
    results = Results.load(file)
    tries = {len(cell.tries) for cell in results.cells if cell.seed == results.experiment["seeds"][0]}
    assert len(tries) == 1
    assert all(not cell.tries for cell in results.cells if cell.seed != results.experiment["seeds"][0])
