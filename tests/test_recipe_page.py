"""docs/recipe.md is what its script makes of the stored ablations, and they are of the stored experiments."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from torchsnow.experiments.plan import Experiment
from torchsnow.report import Results

ROOT = Path(__file__).parent.parent
STORED = sorted((ROOT / "experiments" / "recipe").glob("*.yaml"))


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("recipe_page", ROOT / "experiments" / "write_recipe_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_the_one_that_the_script_writes(script: ModuleType) -> None:
    assert script.PAGE.read_text() == script.page_text()


def test_every_ablation_is_on_the_page(script: ModuleType) -> None:
    assert {f"recipe-{name}" for name in (*script.ORDER, "more")} == {file.stem for file in STORED}


def test_the_figure_has_a_panel_for_each_quantity(script: ModuleType) -> None:
    panels = script.choosing_figure().axes
    assert [axes.get_title() for axes in panels] == list(script.PANELS.values())
    assert all(len(axes.lines) > 2 for axes in panels)


def test_the_study_of_the_body_is_whole(script: ModuleType) -> None:
    body = script.stored_body()
    rows = script.body_rows(body)
    assert rows.keys() == body["words"].keys()
    assert all(rows["default"])
    assert all(words in script.page_text() for words in body["words"].values())
    panels = script.frontier_figure(body).axes
    assert [axes.get_title() for axes in panels] == list(body["data"].values())
    assert all([len(line.get_xdata()) for line in axes.lines] == [4, 4, 2] for axes in panels)


@pytest.mark.parametrize("file", STORED, ids=lambda file: file.stem)
def test_stored_ablations_are_of_the_stored_experiments(file: Path) -> None:
    """Same budget for all, and every cell finished."""
    results, experiment = Results.load(file.with_suffix(".json")), Experiment.load(file)
    assert results.experiment == experiment.to_dict()
    assert not results.failed
    assert [(cell.data, cell.method, cell.seed, dict(cell.variant)) for cell in results.cells] == [
        (cell.data, cell.method, cell.seed, dict(cell.variant)) for cell in experiment.cells()
    ]
    assert len(experiment.seeds) >= 3
