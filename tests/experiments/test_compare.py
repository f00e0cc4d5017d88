from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sample_photos import make_photos
from torchsnow.data import load_data
from torchsnow.errors import ExperimentError, TrainingError
from torchsnow.experiments import cell as cell_module
from torchsnow.experiments import compare as compare_module
from torchsnow.experiments import resources as resources_module
from torchsnow.experiments.compare import Comparison
from torchsnow.experiments.plan import Experiment
from torchsnow.methods.snow import make_snow
from torchsnow.report.results import Results, Shipped
from torchsnow.source import load_source


@pytest.fixture(autouse=True)
def _no_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs are measured in processes of their own, which takes long; they have their own test."""

    def costs(experiment: Experiment, source: str, methods: Any, num_classes: int, say: Any) -> list[dict[str, Any]]:
        place = {"image_size": 32, "batch_size": 8, "device": "cpu", "source": source}
        times = {"step_s": 1.0, "step_over_full": 0.5, "peak_bytes": 10, "peak_over_full": 0.5}
        return [{**place, **times, "method": method} for method in methods]

    monkeypatch.setattr(compare_module, "measure_costs", costs)


class Watched:
    """A comparison with what it said and which cells it came to."""

    def __init__(self, experiment: Experiment, path: Path) -> None:
        self.comparison = Comparison(experiment, path, load_data)
        self.said: list[str] = []
        self.cells: list[str] = []

    def run(self) -> Watched:
        self.comparison.run(lambda cell, done, total: self.cells.append(f"{done}/{total} {cell}"), self.said.append)
        return self

    def finish(self) -> Results:
        return self.comparison.finish(self.said.append)


def break_training(monkeypatch: pytest.MonkeyPatch, method: str) -> list[str]:
    """Let a method fail; returns the list of what is trained."""
    trained: list[str] = []
    make: Callable[..., Any] = cell_module.cell_method

    def made(cell: Any, *rest: Any) -> Any:
        trained.append(cell.method)
        if cell.method == method:
            raise TrainingError("the source cannot take it")
        return make(cell, *rest)

    monkeypatch.setattr(cell_module, "cell_method", made)
    return trained


def test_a_comparison_leaves_results_that_can_be_read(experiment: Experiment, tmp_path: Path) -> None:
    watched = Watched(experiment, tmp_path / "out").run()
    results = watched.finish()
    assert results == Results.load(tmp_path / "out" / "results.json")
    assert [(cell.method, cell.seed) for cell in results.cells] == [("head", 0), ("snow", 0), ("head", 1), ("snow", 1)]
    assert watched.cells[0].startswith("0/4 head on ")
    assert not watched.said
    assert not results.failed
    assert (tmp_path / "out" / "results.csv").read_text().count("\n") == 5
    assert "<!doctype html>" in (tmp_path / "out" / "report.html").read_text()
    assert not list((tmp_path / "out").rglob("*.safetensors"))
    assert len(list((tmp_path / "out" / "runs").glob("*/*/results.csv"))) == 6


def test_what_shipped_is_what_is_counted() -> None:
    """A body that does not count is neither shipped nor counted."""
    method = make_snow(load_source("test_resnet", "random"), 3)
    found = {}
    for name, weights in (("probe", (1.0, 0.0)), ("body", (0.0, 2.0)), ("both", (1.0, 2.0))):
        method.delta.head.mix(*weights)
        shipped = Shipped(**cell_module.shipped_task(method, method.shipped_state(), 1))
        assert (shipped.probe_weight, shipped.body_weight, shipped.has_body) == (*weights, name != "probe")
        found[name] = shipped
    for count in ("added_multiply_adds", "num_params"):
        assert getattr(found["probe"], count) < getattr(found["body"], count) < getattr(found["both"], count)


def test_cells_say_what_shipped_and_how_good_the_body_is(experiment: Experiment, tmp_path: Path) -> None:
    head, snow = Watched(replace(experiment, seeds=(0,), lr_tries=1), tmp_path).run().finish().cells
    assert snow.history[1].body_val_accuracy is not None
    assert snow.shipped.probe_weight is not None
    assert head.history[1].body_val_accuracy is head.shipped.body_weight is head.shipped.probe_weight is None
    assert head.shipped.num_params > head.shipped.added_multiply_adds > 0


def test_the_first_seed_searches_and_the_others_take_its_learning_rate(experiment: Experiment, tmp_path: Path) -> None:
    results = Watched(experiment, tmp_path).run().finish()
    for method in experiment.methods:
        first, second = (cell for cell in results.cells if cell.method == method)
        assert [tried.lr for tried in first.tries] == pytest.approx(experiment.lrs(method))
        best = max(tried.val_accuracy for tried in first.tries)
        assert first.val.accuracy == best
        assert next(tried for tried in first.tries if tried.lr == first.lr).val_accuracy == best
        assert second.lr == first.lr
        assert second.tries == ()


def test_the_test_split_is_looked_at_once_a_cell(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    evaluate = cell_module.evaluate

    def watching(model: Any, images: Any, *rest: Any) -> Any:
        seen.append(len(images))
        return evaluate(model, images, *rest)

    monkeypatch.setattr(cell_module, "evaluate", watching)
    results = Watched(experiment, tmp_path).run().finish()
    assert seen == [cell.test_images for cell in results.cells]


def test_finished_cells_are_not_done_again(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Watched(replace(experiment, methods=("head",)), tmp_path).run()
    trained = break_training(monkeypatch, "nothing")
    Watched(experiment, tmp_path).run()
    assert set(trained) == {"snow"}


def test_changed_data_settings_and_code_never_show_old_results(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = make_photos(tmp_path / "photos")
    tiny = replace(experiment, data=(str(photos),), seeds=(0,), methods=("head",), lr_tries=1)

    def key(experiment: Experiment = tiny) -> str:
        watched = Watched(experiment, tmp_path / "out").run()
        (cell,) = watched.finish().cells
        others = len(list((tmp_path / "out" / "cells").iterdir())) - 1
        assert others == 0 or watched.said[0].startswith(f"{others} other cells in ")
        return cell.key

    keys = [key(), key(replace(tiny, epochs=2)), key(replace(tiny, seeds=(1,))), key(replace(tiny, test_images=5))]
    one, other = photos / "red" / "0.png", photos / "green" / "0.png"
    one.rename(photos / "swap")
    other.rename(one)
    (photos / "swap").rename(other)
    keys.append(key())
    monkeypatch.setattr(resources_module, "code_digest", lambda: "of another version")
    keys.append(key())
    assert len(set(keys)) == len(keys) == len(list((tmp_path / "out" / "cells").iterdir()))


def test_a_cell_of_another_working_directory_is_not_taken_for_one_of_this(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = replace(experiment, data=("photos",), seeds=(0,), methods=("head",), lr_tries=1)
    found = []
    for place, size in (("here", 10), ("there", 20)):
        make_photos(tmp_path / place / "photos", size)
        monkeypatch.chdir(tmp_path / place)
        found.append(Watched(named, tmp_path / "out").run().finish().cells[0])
    assert found[0].key != found[1].key
    assert found[0].train_images < found[1].train_images


def test_a_cell_in_the_place_of_another_is_refused(experiment: Experiment, tmp_path: Path) -> None:
    watched = Watched(replace(experiment, methods=("head",)), tmp_path).run()
    one, other = sorted((tmp_path / "cells").iterdir())
    one.write_bytes(other.read_bytes())
    with pytest.raises(ExperimentError, match="is not of the cell that its name says"):
        watched.finish()


def test_a_stopped_comparison_goes_on_to_the_same_results(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Watched(experiment, tmp_path / "whole").run().finish()
    with monkeypatch.context() as broken:
        calls = []
        fit = cell_module.fit

        def stopping(*args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            if len(calls) == 4:
                raise KeyboardInterrupt
            return fit(*args, **kwargs)

        broken.setattr(cell_module, "fit", stopping)
        with pytest.raises(KeyboardInterrupt):
            Watched(experiment, tmp_path / "parted").run()
    parted = Watched(experiment, tmp_path / "parted").run().finish()
    for one, other in zip(whole.cells, parted.cells, strict=True):
        assert one.test == other.test
        assert one.tries == other.tries


def test_a_cell_that_fails_leaves_the_others(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        break_training(broken, "head")
        watched = Watched(experiment, tmp_path).run()
        results = watched.finish()
    assert [failure.error for failure in results.failed] == ["the source cannot take it"] * 2
    assert {cell.method for cell in results.cells} == {"snow"}
    assert "head on" in watched.said[0]
    assert "the source cannot take it" in (tmp_path / "report.html").read_text()
    again = Watched(experiment, tmp_path)
    again.run()
    assert again.finish().failed
    again.comparison.forget_failed()
    assert not again.run().finish().failed


def test_learning_rates_that_break_down_are_only_lost_tries(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = cell_module.fit

    def diverging(method: Any, splits: Any, settings: Any, *rest: Any, **more: Any) -> Any:
        if settings.lr == max(experiment.lrs("snow")):
            raise TrainingError("the loss is no longer a finite number")
        return fit(method, splits, settings, *rest, **more)

    monkeypatch.setattr(cell_module, "fit", diverging)
    results = Watched(replace(experiment, methods=("snow",)), tmp_path).run().finish()
    assert [tried.val_accuracy is None for tried in results.cells[0].tries] == [False, True]
    assert not results.failed


def _do_shard(experiment: Experiment, path: Path, number: int, count: int, done: Any) -> None:
    """In a process of its own; tells the cells that it trained."""
    run_cell = compare_module.run_cell

    def watched(cell: Any, *rest: Any) -> Any:
        done.put(str(cell))
        return run_cell(cell, *rest)

    compare_module.run_cell = watched
    Comparison(experiment, path, load_data).run(lambda *place: None, print, (number, count))


@pytest.mark.parametrize("shards", [((1, 2), (2, 2)), ((1, 1), (1, 1))], ids=["apart", "the same twice"])
def test_two_processes_do_every_cell_once(
    experiment: Experiment, tmp_path: Path, shards: tuple[tuple[int, int], ...]
) -> None:
    """Whoever finds a cell with another process leaves it; a third pass finds nothing that was lost."""
    context = multiprocessing.get_context("fork")
    done = context.SimpleQueue()
    processes = [context.Process(target=_do_shard, args=(experiment, tmp_path, *shard, done)) for shard in shards]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    trained = []
    while not done.empty():
        trained.append(done.get())
    assert sorted(trained) == sorted(map(str, experiment.cells()))
    merged = Watched(experiment, tmp_path)
    assert merged.comparison.missing() == []
    assert [len(cell.tries) for cell in merged.finish().cells] == [2, 2, 0, 0]


def test_a_damaged_cell_is_named_and_nothing_else_is_lost(experiment: Experiment, tmp_path: Path) -> None:
    watched = Watched(replace(experiment, methods=("head",)), tmp_path).run()
    damaged, sound = sorted((tmp_path / "cells").glob("*.json"))
    damaged.write_text(damaged.read_text()[:40])
    with pytest.raises(ExperimentError, match=f"{damaged.name} is damaged or only half written: remove the file"):
        watched.finish()
    kept = sound.read_text()
    damaged.unlink()
    Watched(replace(experiment, methods=("head",)), tmp_path).run().finish()
    assert sound.read_text() == kept


def test_a_report_over_no_finished_cell_says_so(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_training(monkeypatch, "head")
    watched = Watched(replace(experiment, methods=("head",)), tmp_path).run()
    with pytest.raises(ExperimentError, match=r"no cell|not one|nothing"):
        watched.finish()
    assert not (tmp_path / "results.json").exists()


def test_costs_are_measured_once(experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(experiment, tmp_path).run()
    assert {cost.method for cost in watched.finish().costs} == {"head", "snow"}
    monkeypatch.setattr(compare_module, "measure_costs", None)
    assert len(watched.finish().costs) == 2
    (tmp_path / "costs.json").write_text("{")
    with pytest.raises(TypeError):
        watched.finish()


def test_fewer_images_and_other_settings_vary(experiment: Experiment, tmp_path: Path) -> None:
    varied = replace(
        experiment, methods=("snow:paper",), seeds=(0,), lr_tries=1, vary={"shots": (2, 3), "width_divisor": (4, 8)}
    )
    cells = Watched(varied, tmp_path).run().finish().cells
    assert [cell.train_images for cell in cells] == [6, 6, 9, 9]
    assert cells[0].trained_params > cells[1].trained_params
    assert json.loads((tmp_path / "results.json").read_text())["cells"][0]["variant"] == {
        "shots": 2,
        "width_divisor": 4,
    }


def test_what_cannot_be_had_is_asked_for_and_named_once(experiment: Experiment, tmp_path: Path) -> None:
    watched = Watched(replace(experiment, data=("missing", *experiment.data)), tmp_path)
    asked: list[str] = []

    def load(name: str) -> Any:
        asked.append(name)
        return load_data(name)

    watched.comparison = Comparison(watched.comparison.experiment, tmp_path, load)
    watched.run()
    assert asked.count("missing") == 1
    assert [line for line in watched.said if "'missing' does not exist" in line] == watched.said
    assert len(watched.said) == 1
    results = watched.finish()
    assert len(results.failed) == len(results.cells) == 4
