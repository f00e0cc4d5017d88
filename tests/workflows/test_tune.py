from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from sample_photos import make_photos
from torchsnow.data import LoadedData, Splits, load_data, make_splits
from torchsnow.errors import DivergedError, TrainingError
from torchsnow.hub import Hub
from torchsnow.methods import presets
from torchsnow.source import Source, load_source
from torchsnow.train import RunFolder, TrainSettings
from torchsnow.train.history import Epoch
from torchsnow.train.loop import Loop
from torchsnow.workflows import training, tune
from torchsnow.workflows.place import Place
from torchsnow.workflows.recipe import Recipe
from torchsnow.workflows.training import train_task
from torchsnow.workflows.tune import FINISHED, UNFINISHED, Trial, TunedTask, leader_of, tune_task

RECIPE = Recipe(TrainSettings(epochs=4, batch_size=8, image_size=32, device="cpu"), auto=["lr"])
TIMES = ("images_per_s", "seconds")


@pytest.fixture(scope="module")
def source() -> Source:
    return load_source("test_resnet", weights="random")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> LoadedData:
    return load_data(make_photos(tmp_path_factory.mktemp("data") / "photos"))


@pytest.fixture(autouse=True, scope="module")
def _costs_counted_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        for place, name in ((presets, "within_budget"), (presets, "within_size"), (tune, "within_budget")):
            patched.setattr(place, name, lru_cache(getattr(place, name)))
        yield


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchsnow.plots.draw_run", lambda run, metrics: [])


@pytest.fixture
def tuned(data: LoadedData, source: Source, tmp_path: Path) -> Callable[..., TunedTask]:
    """Tunes in `tmp_path / "run"`, into `tmp_path / "hub"`."""

    def tuned(num_trials: int = 3, recipe: Recipe = RECIPE, **how: Any) -> TunedTask:
        place = Place(tmp_path / "hub", source)
        return tune_task(data, "colours", RunFolder(tmp_path / "run"), recipe, place, num_trials, **how)

    return tuned


@dataclass(frozen=True)
class Whole:
    """A study of three trials that nothing disturbed, its folder, and how many images the source was shown."""

    result: TunedTask
    root: Path
    num_shown: int


@pytest.fixture(scope="module")
def whole(data: LoadedData, source: Source, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    root = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patched:
        shown = count_shown(patched)
        patched.setattr("torchsnow.plots.draw_run", lambda run, metrics: [])
        place = Place(root / "hub", source)
        return Whole(tune_task(data, "colours", RunFolder(root / "run"), RECIPE, place, 3), root, sum(shown))


def count_shown(patched: pytest.MonkeyPatch) -> list[int]:
    """Images of every pass of a source from now on."""
    forward, shown = Source.forward, list[int]()

    def counted(self: Source, images: torch.Tensor, *rest: Any) -> Any:
        shown.append(len(images))
        return forward(self, images, *rest)

    patched.setattr(Source, "forward", counted)
    return shown


def rows(path: Path) -> list[dict[str, str]]:
    """A table without its times."""
    lines = path.read_text().splitlines()
    return [{name: value for name, value in row.items() if name not in TIMES} for row in csv.DictReader(lines)]


class Killed(BaseException):
    """As a signal that nothing catches."""


def kill_in(trial: int, epoch: int, error: type[BaseException], patched: pytest.MonkeyPatch) -> None:
    """Raise an error in the first step of an epoch of a trial."""
    step = Loop._step

    def killed(self: Loop, images: torch.Tensor, labels: torch.Tensor, number: int) -> torch.Tensor:
        if self.run.path.name == str(trial) and number == (epoch - 1) * self.steps:
            raise error
        return step(self, images, labels, number)

    patched.setattr(Loop, "_step", killed)


def test_the_first_trial_is_what_train_does(whole: Whole, data: LoadedData, source: Source, tmp_path: Path) -> None:
    result, run = whole.result, RunFolder(whole.root / "run")
    assert (result.winner, [trial.number for trial in result.trials]) == (0, [0, 1, 2])
    plain = RunFolder(tmp_path / "plain")
    expected = train_task(data, "colours", plain, RECIPE, source, Place(tmp_path / "hub", source))
    of_trial = RunFolder(run.path / "trials" / "0")
    assert rows(plain.results) == rows(of_trial.results) == rows(run.results)
    assert plain.args.read_text() == run.args.read_text()
    ours, theirs = ({path.name for path in folder.path.iterdir()} for folder in (run, plain))
    assert ours - theirs == {"study.json", "trials.csv", "trials"}
    assert theirs <= ours
    of_study, of_train = (Hub.open(root / "hub", source).task("colours").delta for root in (whole.root, tmp_path))
    assert all(torch.equal(one, of_train.state_dict()[key]) for key, one in of_study.state_dict().items())
    shown = result.summary()
    assert shown["test_accuracy"] == expected.summary()["test_accuracy"]
    assert shown["trials"][0]["lr"] == 3e-3
    assert len({(row["grid_width"], row["channels"], row["lr"]) for row in shown["trials"]}) == 3
    assert [row["trial"] for row in rows(run.path / "trials.csv")] == ["0", "1", "2"]


def test_the_default_ships_unless_another_is_better_by_more_than_a_standard_error() -> None:
    def trials(*accuracies: float) -> list[Trial]:
        return [Trial(number, {}, FINISHED, accuracy=share) for number, share in enumerate(accuracies)]

    assert leader_of(trials(0.80, 0.83), 100).number == 0  # the standard error of 0.83 is 0.038
    assert leader_of(trials(0.80, 0.84, 0.85, 0.85), 100).number == 2
    assert leader_of(trials(0.80, 0.83), 1000).number == 1
    assert leader_of([*trials(0.5), Trial(1, {}, UNFINISHED, accuracy=0.9)], 100).number == 0


def test_a_better_trial_ships_as_a_run_of_its_own(
    tuned: Callable[..., TunedTask], data: LoadedData, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune, "leader_of", lambda trials, num_images: trials[-1])
    monkeypatch.setattr(tune.optuna.pruners, "MedianPruner", lambda *_: tune.optuna.pruners.NopPruner())
    told: list[str] = []
    result = tuned(3, say=told.append)
    assert result.winner == 2
    args = yaml.safe_load((tmp_path / "run" / "args.yaml").read_text())
    winner = result.trials[2]
    assert args["training"]["lr"] == winner.lr != 3e-3
    assert args["chosen"]["lr"] == "trial 2 of a study"
    assert args["method"]["spec"]["grid_width"] == winner.grid_width
    assert rows(tmp_path / "run" / "results.csv") == rows(tmp_path / "run" / "trials" / "2" / "results.csv")
    info = Hub.open(tmp_path / "hub", source).info("colours")
    assert info.training["lr"] == winner.lr
    assert info.metrics["val"]["accuracy"] == result.task.fit.metrics.accuracy
    assert sum("the best so far" in line for line in told) == 3


def test_the_images_are_looked_at_once_for_all_trials(
    whole: Whole, tuned: Callable[..., TunedTask], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = count_shown(monkeypatch)
    tuned(1)
    assert sum(shown) == whole.num_shown > 0


@pytest.mark.parametrize(("trial", "epoch"), [(0, 3), (1, 1)])
def test_a_killed_study_goes_on_and_repeats_nothing(
    whole: Whole,
    tuned: Callable[..., TunedTask],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    trial: int,
    epoch: int,
) -> None:
    with monkeypatch.context() as patched:
        kill_in(trial, epoch, Killed, patched)
        with pytest.raises(Killed):
            tuned()
    trials, expected = (root / "run" / "trials" for root in (tmp_path, whole.root))
    ended = [trials / str(number) / "last.safetensors" for number in range(trial)]
    stamps = [path.stat().st_mtime_ns for path in ended]
    result = tuned(resume=True)
    assert [path.stat().st_mtime_ns for path in ended] == stamps
    for path in expected.iterdir():
        assert rows(path / "results.csv") == rows(trials / path.name / "results.csv")
    ours, theirs = ([replace(one, seconds=0) for one in each.trials] for each in (result, whole.result))
    assert ours == theirs
    assert result.winner == whole.result.winner


def test_the_test_split_is_looked_at_once_by_what_ships(
    tuned: Callable[..., TunedTask], data: LoadedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    test_paths = {example.path for example in make_splits(data).test}
    predict, looked = training.predict, list[list[str]]()

    def counted(model: Any, images: Any, *rest: Any) -> Any:
        if {example.path for example in images.examples} & test_paths:
            study = json.loads((tmp_path / "run" / "study.json").read_text())
            looked.append([one["state"] for one in study["trials"]])
        return predict(model, images, *rest)

    def only_others(self: Loop, model: Any, images: Any) -> Any:
        assert not {example.path for example in getattr(images, "examples", ())} & test_paths
        return validate(self, model, images)

    validate = Loop._validate
    monkeypatch.setattr(Loop, "_validate", only_others)
    monkeypatch.setattr(training, "predict", counted)
    tuned()
    assert len(looked) == 1
    assert len(looked[0]) == 3
    assert UNFINISHED not in looked[0]


def test_no_trial_but_the_first_goes_on_when_the_time_is_over(
    tuned: Callable[..., TunedTask], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [trial.state for trial in tuned(3, replace(RECIPE, time_s=1e-9)).trials] == [FINISHED]

    def over(self: Any, trial: Trial, asked: Any, deadline_s: float, history: Sequence[Epoch]) -> None:
        watch(self, trial, asked, -1.0 if len(history) == 3 else deadline_s, history)

    watch = tune._Study._watch
    with monkeypatch.context() as patched:
        patched.setattr(tune._Study, "_watch", over)
        states = [trial.state for trial in tuned(2, resume=True).trials]
    assert states == [FINISHED, UNFINISHED]
    assert len(rows(tmp_path / "run" / "trials" / "1" / "results.csv")) == 3
    result = tuned(2, resume=True)
    assert result.trials[1].state == FINISHED
    assert len(rows(tmp_path / "run" / "trials" / "1" / "results.csv")) == 5


def test_a_trial_that_lags_behind_is_stopped_and_one_that_diverges_is_given_up(
    tuned: Callable[..., TunedTask], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune.optuna.Trial, "should_prune", lambda asked: asked.number == 1)
    fit_stored = tune.fit_stored

    def diverging(task: Any, stored: Any) -> Any:
        if task.run.path.name == "2":
            raise DivergedError("the loss is no longer a finite number")
        return fit_stored(task, stored)

    monkeypatch.setattr(tune, "fit_stored", diverging)
    assert [trial.state for trial in tuned(4).trials] == [FINISHED, "stopped early", "diverged", FINISHED]


@pytest.mark.parametrize("trial", [0, 1])
def test_ctrl_c_leaves_the_best_until_then_in_the_hub(
    tuned: Callable[..., TunedTask], source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trial: int
) -> None:
    kill_in(trial, 3, KeyboardInterrupt, monkeypatch)
    told: list[str] = []
    with pytest.raises(KeyboardInterrupt, match=f"2 of 4 epochs are safe in .*/trials/{trial}"):
        tuned(say=told.append)
    assert sum("the best so far" in line for line in told) == 1
    assert Hub.open(tmp_path / "hub", source).info("colours").metrics["test"] is None
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_epochs_and_learning_rate_are_searched_unless_they_are_given() -> None:
    auto = replace(RECIPE, auto=["epochs", "lr"])
    assert list(tune._space(auto, [4, 8, 16])) == ["pool_divisor", "width", "epochs", "lr"]
    assert list(tune._space(replace(RECIPE, auto=[]), [4, 8, 16])) == ["pool_divisor", "width"]


def test_another_study_and_a_damaged_one_are_refused(tuned: Callable[..., TunedTask], tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="there is no study to resume in"):
        tuned(resume=True)
    tuned(1)
    with pytest.raises(TrainingError, match="holds a study already: resume it"):
        tuned(1)
    other = replace(RECIPE, settings=replace(RECIPE.settings, weight_decay=0.5))
    with pytest.raises(TrainingError, match=r"it was started with training.weight_decay = 0.05, not 0.5"):
        tuned(2, other, resume=True)
    study = tmp_path / "run" / "study.json"
    study.write_text('{"config": {}, "trials": [{"color": 1}]}')
    with pytest.raises(TrainingError, match=r"study.json is damaged"):
        tuned(2, resume=True)


def test_what_cannot_be_tuned_is_refused(
    tuned: Callable[..., TunedTask], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for recipe in (replace(RECIPE, method="head"), replace(RECIPE, preset="paper")):
        with pytest.raises(TrainingError, match="with the preset default or small or large, not"):
            tuned(1, recipe)
    with pytest.raises(TrainingError, match="from stored features: give --store-mb more than 0"):
        tuned(1, replace(RECIPE, settings=replace(RECIPE.settings, store_bytes=0)))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(TrainingError, match="cannot be stored"):
        tuned(1, replace(RECIPE, settings=replace(RECIPE.settings, store_bytes=20_000)))

    def without_val(*given: Any, **named: Any) -> Splits:
        return replace(make_splits(*given, **named), val=())

    monkeypatch.setattr("torchsnow.workflows.training.make_splits", without_val)
    with pytest.raises(TrainingError, match="the validation split is empty"):
        tuned(1)
    assert not (tmp_path / "run" / "study.json").exists()
