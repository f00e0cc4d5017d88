from __future__ import annotations

import csv
import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from run_checks import NARROW, Killed, assert_same_run, at, raising
from tiny_method import Tiny
from torch import Tensor

from torchsnow.data import Example, ImageSet, Splits, datasets, eval_transform
from torchsnow.errors import TrainingError
from torchsnow.methods import make_method
from torchsnow.methods.snow import Snow, make_snow
from torchsnow.source import Framing, Source
from torchsnow.train import FitResult, RunFolder, TrainSettings, evaluate, fit
from torchsnow.train.batches import plain_images
from torchsnow.train.checkpoint import Checkpoint

FILES = {
    "args.yaml", "splits.json", "log.txt", "results.csv", "selection.csv",
    "subscription.json", "last.safetensors", "best.safetensors", ".lock",
}  # fmt: skip
JOINT = {**NARROW, "head": "joint"}


@pytest.fixture(scope="module")
def trained(source: Source, splits: Splits, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FitResult, Snow]:
    """A narrow copy, trained for three epochs; by one loss, so that its body ships."""
    settings = TrainSettings(epochs=3, batch_size=8, image_size=32, lr=5e-3, augmentation="light", device="cpu")
    path, method = tmp_path_factory.mktemp("runs") / "snow", make_snow(source, 2, changes=JOINT)
    return path, fit(method, splits, settings, RunFolder(path), quiet=True), method


def test_run_folder_is_complete(trained: tuple[Path, FitResult, Snow]) -> None:
    path, result, _ = trained
    assert {file.name for file in path.iterdir()} == FILES
    with (path / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == [0, 1, 2, 3]
    assert float(rows[-1]["val_loss"]) == result.history[-1].val_loss
    with (path / "selection.csv").open(newline="") as file:
        selection = list(csv.DictReader(file))
    assert {row["epoch"] for row in selection} == {"1", "2", "3"}
    assert {row["tap"] for row in selection if row["epoch"] == "2"} >= {"layer3.0.conv1", "head"}


def test_it_learns(trained: tuple[Path, FitResult, Snow]) -> None:
    _, result, _ = trained
    assert result.history[-1].train_loss < result.history[1].train_loss
    assert result.metrics.accuracy > 0.8


def test_result_is_the_best_epoch_as_it_ships(
    trained: tuple[Path, FitResult, Snow], source: Source, splits: Splits
) -> None:
    path, result, _ = trained
    assert not result.model.training
    again = make_snow(source, 2, seed=5, changes=JOINT)
    again.load_trainable_state(Checkpoint.load(path / "best.safetensors").model)
    val = ImageSet(splits.val, splits.classes, eval_transform(source.input_config, Framing(32)))
    images = torch.stack([image for image, _ in val])
    torch.testing.assert_close(result.model(images), again.model.eval()(images), rtol=1e-4, atol=1e-5)
    metrics = evaluate(again.model, val, splits.classes, 8, torch.device("cpu"))
    assert metrics.accuracy == result.metrics.accuracy == result.best.val_accuracy


def test_subscription_is_that_of_the_model(trained: tuple[Path, FitResult, Snow]) -> None:
    path, result, _ = trained
    subscription = json.loads((path / "subscription.json").read_text())
    state = result.model.state_dict()
    assert sorted(state["delta.head.pool.index"].tolist()) == subscription["head"]["index"]
    assert len(subscription["layer3.0.conv1"]["weight"]) == round(subscription["layer3.0.conv1"]["channels"] / 8)


def test_checkpoints_hold_nothing_of_the_source(trained: tuple[Path, FitResult, Snow]) -> None:
    path, _, method = trained
    saved = Checkpoint.load(path / "best.safetensors")
    assert saved.model.keys() == method.delta.state_dict().keys()
    assert saved.optimizer == {}


def test_source_is_bit_identical_after_training(
    source: Source, splits: Splits, settings: TrainSettings, tmp_path: Path
) -> None:
    before = {key: tensor.clone() for key, tensor in source.state_dict().items()}
    fit(make_snow(source, 2), splits, replace(settings, epochs=1), RunFolder(tmp_path), quiet=True)
    after = source.state_dict()
    assert any("running_mean" in key for key in before)
    assert [key for key in before if not torch.equal(before[key], after[key])] == []


@pytest.mark.parametrize(("optimizer", "changes"), [("adamw", NARROW), ("sgd", NARROW), ("adamw", {})])
def test_interrupted_run_resumes_bit_by_bit(
    source: Source,
    splits: Splits,
    settings: TrainSettings,
    tmp_path: Path,
    optimizer: Literal["adamw", "sgd"],
    changes: dict[str, Any],
) -> None:
    settings = replace(settings, epochs=2, optimizer=optimizer, warmup_epochs=1, label_smoothing=0.1)
    whole, parted = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "parted")
    fit(make_snow(source, 2, changes=changes), splits, settings, whole, quiet=True)
    interrupted = at(0.7, raising(KeyboardInterrupt()), make_snow(source, 2, changes=changes))
    with pytest.raises(KeyboardInterrupt, match=r"1 of 2 epochs are safe in .*parted\.$"):
        fit(interrupted, splits, settings, parted, quiet=True)
    assert "stopped. 1 of 2 epochs" in (parted.path / "log.txt").read_text()
    torch.manual_seed(99)  # whatever happened in between must not matter
    fit(make_snow(source, 2, changes=changes), splits, settings, parted, resume=True, quiet=True)
    assert_same_run(whole.path, parted.path)


def test_same_seed_same_result(
    tiny: Tiny, source: Source, splits: Splits, settings: TrainSettings, tmp_path: Path
) -> None:
    runs = {"a": settings, "b": settings, "c": replace(settings, seed=1)}
    for name, own in runs.items():
        fit(Tiny(source.input_config), splits, own, RunFolder(tmp_path / name), quiet=True)
    assert_same_run(tmp_path / "a", tmp_path / "b")
    a, c = (Checkpoint.load(tmp_path / name / "last.safetensors").model["4.weight"] for name in "ac")
    assert not torch.equal(a, c)


@pytest.mark.parametrize("write", range(14))
def test_killed_at_any_write_the_run_can_be_resumed(
    source: Source, splits: Splits, settings: TrainSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: int
) -> None:
    settings = replace(settings, epochs=2)
    fit(Tiny(source.input_config), splits, settings, RunFolder(tmp_path / "whole"), quiet=True)
    replace_file, writes = os.replace, 0

    def killed_at(temporary: Path, path: Path) -> None:
        nonlocal writes
        writes += 1
        if writes > write:
            raise Killed
        replace_file(temporary, path)

    run = RunFolder(tmp_path / "killed")
    monkeypatch.setattr(os, "replace", killed_at)
    with pytest.raises(Killed):
        fit(Tiny(source.input_config), splits, settings, run, quiet=True)
    monkeypatch.undo()
    for checkpoint in run.path.glob("*.safetensors"):
        Checkpoint.load(checkpoint)
    if write < 2:  # the owner and args.yaml
        with pytest.raises(TrainingError, match="no run to resume"):
            fit(Tiny(source.input_config), splits, settings, run, resume=True, quiet=True)
        return
    fit(Tiny(source.input_config), splits, settings, run, resume=True, quiet=True)
    assert_same_run(tmp_path / "whole", run.path)


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_of_another_owner_is_left_alone(
    tiny: Tiny, splits: Splits, settings: TrainSettings, tmp_path: Path, resume: bool
) -> None:
    with RunFolder(tmp_path).owned():
        before = {file.name for file in tmp_path.iterdir()}
        with pytest.raises(TrainingError, match="is in use by process"):
            fit(tiny, splits, settings, RunFolder(tmp_path), resume=resume, quiet=True)
        assert {file.name for file in tmp_path.iterdir()} == before


def test_finished_run_gives_its_result_again(
    source: Source, splits: Splits, settings: TrainSettings, tmp_path: Path
) -> None:
    run = RunFolder(tmp_path)
    first = fit(Tiny(source.input_config), splits, settings, run, quiet=True)
    method = Tiny(source.input_config, seed=0)
    second = fit(method, splits, settings, run, resume=True, quiet=True)
    assert method.progress == []
    assert (second.metrics, second.history) == (first.metrics, first.history)
    assert "this run is finished: epoch 3" in (tmp_path / "log.txt").read_text()


def test_run_is_not_overwritten_and_not_mixed(
    source: Source, splits: Splits, settings: TrainSettings, tmp_path: Path
) -> None:
    run, config = RunFolder(tmp_path / "run"), source.input_config
    with pytest.raises(TrainingError, match="no run to resume"):
        fit(Tiny(config), splits, settings, run, resume=True, quiet=True)
    fit(Tiny(config), splits, settings, run, quiet=True)
    with pytest.raises(TrainingError, match="holds a run already"):
        fit(Tiny(config), splits, settings, run, quiet=True)
    with pytest.raises(TrainingError, match=r"training\.lr = 0\.005, not 0\.1"):
        fit(Tiny(config), splits, replace(settings, lr=0.1), run, resume=True, quiet=True)
    with pytest.raises(TrainingError, match=r"method\.seed = 0, not 1"):
        fit(Tiny(config, seed=1), splits, settings, run, resume=True, quiet=True)
    fewer = replace(splits, train=splits.train[1:])
    with pytest.raises(TrainingError, match=r"data\.train_images = 25, not 24"):
        fit(Tiny(config), fewer, settings, run, resume=True, quiet=True)


class Unreadable(tuple[Example, ...]):
    """A test split that may be named but whose images may not be looked at."""

    def __getitem__(self, index: Any) -> Any:
        raise AssertionError("the test split was read")


def test_test_split_is_never_read(source: Source, splits: Splits, settings: TrainSettings, tmp_path: Path) -> None:
    assert not splits.test[0].path.exists()
    guarded = replace(splits, test=Unreadable(splits.test))
    fit(Tiny(source.input_config), guarded, settings, RunFolder(tmp_path), quiet=True)


def test_best_is_chosen_on_validation(source: Source, splits: Splits, settings: TrainSettings, tmp_path: Path) -> None:
    """A model that is destroyed half way through is not the one that is kept."""
    method = Tiny(source.input_config)

    def destroy() -> None:
        torch.nn.init.constant_(method.model[4].weight, 0.0)
        torch.nn.init.constant_(method.model[4].bias, 0.0)
        method.model[4].bias.data[0] = 9.0

    settings = replace(settings, epochs=4, lr=0.05, augmentation="none", patience=2)
    result = fit(at(0.5, destroy, method), splits, settings, RunFolder(tmp_path), quiet=True)
    assert 0 < result.best.epoch <= 2
    assert result.metrics.accuracy == max(row.val_accuracy for row in result.history) > result.history[-1].val_accuracy
    assert Checkpoint.load(tmp_path / "best.safetensors").history[-1] == result.best
    assert result.model is method.model


def test_patience_stops_early(source: Source, splits: Splits, settings: TrainSettings, tmp_path: Path) -> None:
    method = Tiny(source.input_config)
    method.model[2].momentum = 0.0  # with a rate this low, nothing changes any more
    settings = replace(settings, epochs=9, lr=1e-12, patience=2)
    result = fit(method, splits, settings, RunFolder(tmp_path), quiet=True)
    assert [row.epoch for row in result.history] == [0, 1, 2, 3]


def test_the_start_ships_when_training_makes_it_worse(
    source: Source, splits: Splits, settings: TrainSettings, tmp_path: Path
) -> None:
    settings = replace(settings, lr=0.05, augmentation="none")
    good = fit(Tiny(source.input_config), splits, settings, RunFolder(tmp_path / "good"), quiet=True)
    method = Tiny(source.input_config)
    method.model.load_state_dict(good.model.state_dict())
    spoiled = at(0, lambda: method.model[4].weight.data.zero_(), method)
    run, settings = RunFolder(tmp_path / "run"), replace(settings, epochs=2, lr=1e-12)
    result = fit(spoiled, splits, settings, run, quiet=True)
    start, *trained = result.history
    assert [row.epoch for row in trained] == [1, 2]
    assert (start.train_loss, start.train_accuracy, start.lr, start.images_per_s) == (None, None, None, None)
    assert result.best is start
    assert result.metrics == good.metrics
    assert result.metrics.accuracy == start.val_accuracy > max(row.val_accuracy for row in trained)
    again = fit(Tiny(source.input_config), splits, settings, run, resume=True, quiet=True)
    assert (again.best, again.metrics) == (start, good.metrics)


def test_loss_that_is_not_finite(source: Source, splits: Splits, settings: TrainSettings, tmp_path: Path) -> None:
    method = Tiny(source.input_config)
    spoiled = at(0.5, lambda: method.model[4].weight.data.fill_(math.nan), method)
    with pytest.raises(TrainingError, match=r"learning rate 0\.005 is probably too high; try 0\.0005.* 1 of 3 epochs"):
        fit(spoiled, splits, settings, RunFolder(tmp_path), quiet=True)
    for name in ("last.safetensors", "best.safetensors"):
        saved = Checkpoint.load(tmp_path / name)
        assert [row.epoch for row in saved.history] == [0, 1][: len(saved.history)]
        assert all(bool(tensor.isfinite().all()) for tensor in saved.model.values())
    assert "no longer a finite number" in (tmp_path / "log.txt").read_text()


def test_progress_runs_from_zero_over_all_steps(
    source: Source, splits: Splits, settings: TrainSettings, tmp_path: Path
) -> None:
    method = Tiny(source.input_config)
    fit(method, splits, settings, RunFolder(tmp_path), quiet=True)
    assert method.progress == pytest.approx([step / 9 for step in range(9)])
    assert method.starts == 25


def test_class_weights_matter(source: Source, splits: Splits, settings: TrainSettings, tmp_path: Path) -> None:
    for weights in ("none", "balanced"):
        own = replace(settings, class_weights=weights)
        fit(Tiny(source.input_config), splits, own, RunFolder(tmp_path / weights), quiet=True)
    losses = [
        Checkpoint.load(tmp_path / name / "last.safetensors").history[1].train_loss for name in ("none", "balanced")
    ]
    assert losses[0] != losses[1]


WITH_A_WORKER = """
import sys
from pathlib import Path
import torch
from run_checks import NARROW, Killed, assert_same_run, at, raising
from tiny_method import Tiny
from torchsnow.data import Splits, load_data
from torchsnow.source import load_source
from torchsnow.train import RunFolder, TrainSettings, fit
torch.set_num_threads(1)
splits = Splits.load(Path(sys.argv[2]), load_data(sys.argv[1]))
settings = TrainSettings(
    epochs=1, batch_size=8, image_size=32, lr=5e-3, augmentation="none", device="cpu", num_workers=1
)
config = load_source("test_resnet", weights="random").input_config
fit(Tiny(config), splits, settings, RunFolder(sys.argv[3]), quiet=True)
"""


def test_workers_change_nothing_without_augmentation(
    source: Source, splits: Splits, settings: TrainSettings, tmp_path: Path
) -> None:
    """The one with a worker is a process of its own: this one has too many threads by now to be forked."""
    splits = replace(splits, test=())
    splits.save(tmp_path / "splits.json")
    settings = replace(settings, epochs=1, augmentation="none")
    fit(Tiny(source.input_config), splits, settings, RunFolder(tmp_path / "none"), quiet=True)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    args = [str(splits.root), str(tmp_path / "splits.json"), str(tmp_path / "one")]
    subprocess.run([sys.executable, "-c", WITH_A_WORKER, *args], env=environment, check=True, timeout=240)
    assert_same_run(tmp_path / "none", tmp_path / "one")


def test_global_randomness_is_left_alone(tiny: Tiny, splits: Splits, settings: TrainSettings, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    fit(tiny, splits, settings, RunFolder(tmp_path), quiet=True)
    assert torch.equal(before, torch.get_rng_state())


def test_precision_of_another_source(source: Source, splits: Splits, settings: TrainSettings, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="load it with load_source"):
        fit(make_snow(source, 2), splits, replace(settings, precision="bf16"), RunFolder(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("quiet", [False, True])
@pytest.mark.parametrize("is_terminal", [False, True])
def test_bar(
    tiny: Tiny,
    splits: Splits,
    settings: TrainSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_terminal: bool,
    quiet: bool,
) -> None:
    err = io.StringIO()
    monkeypatch.setattr(err, "isatty", lambda: is_terminal, raising=False)
    monkeypatch.setattr("sys.stderr", err)
    fit(tiny, splits, settings, RunFolder(tmp_path), quiet=quiet)
    assert ("epoch 2: loss" in err.getvalue()) == (not quiet)
    assert ("epoch 3/3" in err.getvalue()) == (is_terminal and not quiet)


SCRIPT = """
import sys
from pathlib import Path
import torch
from torchsnow.data import Splits, load_data
from torchsnow.methods import make_method
from torchsnow.source import load_source
from torchsnow.train import RunFolder, TrainSettings, fit
torch.set_num_threads(1)
data = load_data(sys.argv[1])
settings = TrainSettings(epochs=40, batch_size=8, image_size=32, lr=5e-3, augmentation="light", device="cpu")
splits = Splits.load(Path(sys.argv[2]), data)
method = make_method("snow", load_source("test_resnet", weights="random"), 2)
fit(method, splits, settings, RunFolder(sys.argv[3]), quiet=True)
"""


@pytest.mark.slow
def test_kill_9_leaves_a_run_that_resumes(source: Source, splits: Splits, tmp_path: Path) -> None:
    splits = replace(splits, test=())
    splits.save(tmp_path / "splits.json")
    run = RunFolder(tmp_path / "run")
    args = [sys.executable, "-c", SCRIPT, str(splits.root), str(tmp_path / "splits.json"), str(run.path)]
    with subprocess.Popen(args) as process:
        while not (run.results.exists() and len(run.results.read_text().splitlines()) > 3):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    done = Checkpoint.load(run.last).history[-1].epoch
    assert 2 <= done < 40
    settings = TrainSettings(epochs=40, batch_size=8, image_size=32, lr=5e-3, augmentation="light", device="cpu")
    result = fit(make_snow(source, 2), splits, settings, run, resume=True, quiet=True)
    assert result.history[-1].epoch == 40
    fit(make_snow(source, 2), splits, settings, RunFolder(tmp_path / "whole"), quiet=True)
    assert_same_run(tmp_path / "whole", run.path)


@pytest.mark.parametrize("name", ["head", "taps"])
def test_fixed_values_are_computed_once_and_change_nothing(
    name: str, source: Source, splits: Splits, settings: TrainSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(settings, augmentation="none")
    seen: list[int] = []
    monkeypatch.setattr(Source, "forward", counting_images(Source.forward, seen))
    kept = fit(make_method(name, source, 2), splits, settings, RunFolder(tmp_path / "kept"), quiet=True)
    # the start, one for the size, all once, and the finished model's validation
    assert sum(seen) == 25 + 1 + 25 + 8 + 8
    slow = replace(settings, store_bytes=0)
    again = fit(make_method(name, source, 2), splits, slow, RunFolder(tmp_path / "again"), quiet=True)
    assert sum(seen) > 67 + 4 * 25
    for one, other in zip(kept.history[1:], again.history[1:], strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, abs=1e-4)
        assert one.val_loss == pytest.approx(other.val_loss, abs=1e-4)


def counting_images(forward: Any, seen: list[int]) -> Any:
    def counted(module: Any, images: Tensor, *rest: Any) -> Any:
        seen.append(len(images))
        return forward(module, images, *rest)

    return counted


@pytest.mark.parametrize(("augmentation", "num_views"), [("flip", 2), ("light", 8)])
def test_augmented_images_are_computed_once_in_every_view(
    source: Source,
    splits: Splits,
    settings: TrainSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    augmentation: str,
    num_views: int,
) -> None:
    seen: list[int] = []
    settings = replace(settings, augmentation=augmentation)
    monkeypatch.setattr(Source, "forward", counting_images(Source.forward, seen))
    fit(make_method("head", source, 2), splits, settings, RunFolder(tmp_path / "run"), quiet=True)
    assert sum(seen) == 25 + 1 + num_views * 25 + 8 + 8


def test_a_finished_run_computes_no_features_again(
    source: Source, splits: Splits, settings: TrainSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(tmp_path / "run")
    fit(make_method("head", source, 2), splits, settings, run, quiet=True)
    seen: list[int] = []
    monkeypatch.setattr(Source, "forward", counting_images(Source.forward, seen))
    fit(make_method("head", source, 2), splits, settings, run, resume=True, quiet=True)
    assert sum(seen) == 8  # the finished model's validation


def test_runs_that_share_a_pool_decode_each_image_once(
    source: Source, splits: Splits, settings: TrainSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[Any] = []
    read = datasets.read_image
    monkeypatch.setattr(datasets, "read_image", lambda path: decoded.append(path) or read(path))
    pool, results = plain_images(source.input_config, settings.framing), []
    for number in range(2):
        run = RunFolder(tmp_path / str(number))
        results.append(fit(make_snow(source, 2), splits, settings, run, quiet=True, pool=pool))
    assert len(decoded) == len(set(decoded)) == 33
    alone = fit(make_snow(source, 2), splits, settings, RunFolder(tmp_path / "alone"), quiet=True)
    assert results[1].metrics == alone.metrics
