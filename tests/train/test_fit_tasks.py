from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from torchsnow.data import Example, Splits
from torchsnow.errors import DivergedError, TrainingError
from torchsnow.methods.snow import make_snow
from torchsnow.source import Source
from torchsnow.train import FitResult, RunFolder, TrainSettings, fit
from torchsnow.train.checkpoint import Checkpoint
from torchsnow.train.fit import fit_tasks
from torchsnow.train.loop import TaskRun
from torchsnow.train.store import values_of


@pytest.fixture
def settings() -> TrainSettings:
    return TrainSettings(epochs=2, batch_size=8, image_size=32, lr=5e-3, augmentation="light", device="cpu")


def relabelled(splits: Splits, every: int) -> Splits:
    """The same images with other labels: every so many are of the second class."""

    def labels(examples: Sequence[Example]) -> tuple[Example, ...]:
        return tuple(Example(example.path, int(at % every == 0)) for at, example in enumerate(examples))

    return replace(splits, train=labels(splits.train), val=labels(splits.val))


def without_labels(splits: Splits, every: int) -> Splits:
    """The splits of a task that lacks labels for every so many of the images."""

    def known(examples: Sequence[Example]) -> tuple[Example, ...]:
        return tuple(example for at, example in enumerate(examples) if at % every)

    return replace(splits, train=known(splits.train), val=known(splits.val))


def task(
    name: str, source: Source, splits: Splits, settings: TrainSettings, folder: Path, preset: str = "default"
) -> TaskRun:
    return TaskRun(make_snow(source, 2, preset), splits, settings, RunFolder(folder / name), name=name)


def results(tasks: Sequence[TaskRun], **options: Any) -> dict[str, FitResult]:
    found = dict(zip((task.name for task in tasks), fit_tasks(tasks, quiet=True, **options), strict=True))
    assert all(isinstance(result, FitResult) for result in found.values()), found
    return found  # type: ignore[return-value]


def assert_same(alone: Path, shared: Path) -> None:
    """Equal best and last states, tables and choices, bit by bit."""
    for name in ("last.safetensors", "best.safetensors"):
        one, other = Checkpoint.load(alone / name), Checkpoint.load(shared / name)
        assert one.config == other.config
        for then, now in ((one.model, other.model), (one.optimizer, other.optimizer)):
            assert then.keys() == now.keys()
            assert [key for key in then if not torch.equal(then[key], now[key])] == []
        for first, second in zip(one.history, other.history, strict=True):
            assert (first.epoch, first.val_accuracy, first.lr) == (second.epoch, second.val_accuracy, second.lr)
            assert (first.val_loss, first.train_loss) == (second.val_loss, second.train_loss)
    assert (alone / "splits.json").read_bytes() == (shared / "splits.json").read_bytes()


@pytest.mark.parametrize(
    ("preset", "augmentation", "in_files"),
    [("default", "light", False), ("default", "flip", True), ("paper", "none", False)],
)
def test_tasks_on_the_same_images_come_out_as_if_alone(
    source: Source,
    splits: Splits,
    settings: TrainSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    preset: str,
    augmentation: str,
    in_files: bool,
) -> None:
    settings = replace(settings, augmentation=augmentation)
    if in_files:
        monkeypatch.setattr(import_module("torchsnow.train.fit"), "IN_MEMORY_BYTES", 0)
    others = {"colour": splits, "third": relabelled(splits, 3), "half": relabelled(splits, 2)}
    shared = results([task(name, source, of, settings, tmp_path, preset) for name, of in others.items()])
    for name, of in others.items():
        alone = fit(make_snow(source, 2, preset), of, settings, RunFolder(tmp_path / "alone" / name), quiet=True)
        assert_same(tmp_path / "alone" / name, tmp_path / name)
        assert shared[name].metrics == alone.metrics
        assert shared[name].best.epoch == alone.best.epoch
        images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        assert torch.equal(shared[name].model(images), alone.model(images))
        assert not (tmp_path / name / "features.bin").exists()


@pytest.mark.parametrize("preset", ["paper", "default"])
def test_tasks_do_not_see_each_other(
    source: Source, splits: Splits, settings: TrainSettings, tmp_path: Path, preset: str
) -> None:
    settings = replace(settings, augmentation="none")
    fewer = without_labels(relabelled(splits, 2), 4)
    tasks = {"some": fewer, "full": splits, "other": replace(splits, train=splits.train[::2], val=splits.train[1::2])}
    found = results([task(name, source, of, settings, tmp_path, preset) for name, of in tasks.items()])
    fit(make_snow(source, 2, preset), splits, settings, RunFolder(tmp_path / "alone"), quiet=True)
    assert_same(tmp_path / "alone", tmp_path / "full")
    assert found["some"].metrics.num_images == len(fewer.val) < len(splits.val)
    alone = fit(make_snow(source, 2, preset), fewer, settings, RunFolder(tmp_path / "fewer"), quiet=True)
    for one, other in zip(found["some"].history, alone.history, strict=True):
        # the source may add up in another order where it gets other images at a time
        assert one.val_loss == pytest.approx(other.val_loss, abs=0.02)


def stop_after(method: Any, steps: int, error: BaseException) -> None:
    set_progress, done = method.set_progress, 0

    def counted(fraction: float) -> None:
        nonlocal done
        done += 1
        if done > steps:
            raise error
        set_progress(fraction)

    method.set_progress = counted


@pytest.mark.parametrize("preset", [pytest.param("paper", marks=pytest.mark.slow), "default"])
@pytest.mark.parametrize(("stopped_task", "steps"), [pytest.param(0, 4, marks=pytest.mark.slow), (1, 0), (1, 5)])
def test_an_interrupted_run_goes_on_to_the_same_end(
    source: Source,
    splits: Splits,
    settings: TrainSettings,
    tmp_path: Path,
    preset: str,
    stopped_task: int,
    steps: int,
) -> None:
    def tasks(folder: Path) -> list[TaskRun]:
        labels = {"a": relabelled(splits, 2), "b": relabelled(splits, 3)}
        return [task(name, source, own, settings, folder, preset) for name, own in labels.items()]

    results(tasks(tmp_path / "whole"))
    stopped = tasks(tmp_path / "stopped")
    stop_after(stopped[stopped_task].method, steps, KeyboardInterrupt())
    done = [2 if stopped_task else steps // 4, steps // 4 if stopped_task else 0]
    with pytest.raises(KeyboardInterrupt, match=rf"a: {done[0]} of 2 epochs .*b: {done[1]} of 2 epochs"):
        fit_tasks(stopped, quiet=True)
    results(tasks(tmp_path / "stopped"), resume=True)
    for name in "ab":
        assert_same(tmp_path / "whole" / name, tmp_path / "stopped" / name)


def test_a_disk_that_fails_ends_the_run(
    source: Source, splits: Splits, settings: TrainSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(self: Checkpoint, path: Path) -> None:
        raise TrainingError("the disk is full")

    tasks = [task(name, source, splits, settings, tmp_path) for name in "ab"]
    with monkeypatch.context() as patched:
        patched.setattr(Checkpoint, "save", failing)
        with pytest.raises(TrainingError, match="disk"):
            fit_tasks(tasks, quiet=True)
    results([task(name, source, splits, settings, tmp_path) for name in "ab"], resume=True)


@pytest.mark.parametrize("preset", ["paper", "default"])
def test_a_task_that_diverges_leaves_the_others_alone(
    source: Source, splits: Splits, settings: TrainSettings, tmp_path: Path, preset: str
) -> None:
    bad = task("bad", source, splits, replace(settings, lr=1e30), tmp_path, preset)
    good = task("good", source, splits, settings, tmp_path, preset)
    of_bad, of_good = fit_tasks([bad, good], quiet=True)
    assert isinstance(of_bad, DivergedError)
    assert "learning rate 1e+30" in str(of_bad)
    assert isinstance(of_good, FitResult)
    fit(make_snow(source, 2, preset), splits, settings, RunFolder(tmp_path / "alone"), quiet=True)
    assert_same(tmp_path / "alone", tmp_path / "good")


def counted_passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    seen: list[int] = []
    forward = Source.forward
    monkeypatch.setattr(
        Source, "forward", lambda self, images, *rest: seen.append(len(images)) or forward(self, images, *rest)
    )
    return seen


@pytest.mark.parametrize("room_for", [3, 1])
def test_each_view_of_an_image_passes_through_the_source_once_for_all(
    source: Source,
    splits: Splits,
    settings: TrainSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    room_for: int,
) -> None:
    settings = replace(settings, augmentation="flip")
    alone = RunFolder(tmp_path / "alone")
    fit(make_snow(source, 2), splits, settings, alone, quiet=True)
    frozen, _ = make_snow(source, 2).frozen_part(32) or pytest.fail("no frozen part")
    of_one = values_of(frozen, torch.randn(1, 3, 32, 32)).nbytes
    settings = replace(settings, store_bytes=room_for * of_one * (2 * len(splits.train) + len(splits.val)))
    seen = counted_passes(monkeypatch)
    results([task(str(n), source, relabelled(splits, n), settings, tmp_path) for n in (2, 3, 4)])
    stored = 2 * len(splits.train) + len(splits.val)
    # the start, one image each to see how much they take, the stores, and the finished models' validation
    assert sum(seen) == len(splits.train) + 3 + stored * (3 // room_for) + 3 * len(splits.val)


@pytest.mark.parametrize("preset", ["paper", "default"])
def test_torch_generator_is_left_alone(
    source: Source, splits: Splits, settings: TrainSettings, tmp_path: Path, preset: str
) -> None:
    before = torch.get_rng_state()
    results([task(name, source, splits, settings, tmp_path, preset) for name in "ab"])
    assert torch.equal(before, torch.get_rng_state())


def test_tasks_that_show_images_in_other_ways_are_refused(
    source: Source, splits: Splits, settings: TrainSettings, tmp_path: Path
) -> None:
    other = replace(settings, image_size=64)
    tasks = [task("a", source, splits, settings, tmp_path), task("b", source, splits, other, tmp_path)]
    with pytest.raises(TrainingError, match=r"the tasks differ in image_size \(32, 64\)"):
        fit_tasks(tasks)
    assert not (tmp_path / "a").exists()


def test_a_run_folder_that_is_taken_is_refused_before_any_task_is_trained(
    source: Source, splits: Splits, settings: TrainSettings, tmp_path: Path
) -> None:
    results([task("b", source, splits, settings, tmp_path)])
    with pytest.raises(TrainingError, match="b holds a run already"):
        fit_tasks([task(name, source, splits, settings, tmp_path) for name in "ab"], quiet=True)
    assert not (tmp_path / "a").exists()


def test_a_run_folder_of_another_run_is_refused(
    source: Source, splits: Splits, settings: TrainSettings, tmp_path: Path
) -> None:
    results([task("a", source, splits, settings, tmp_path)])
    other = task("a", source, splits, replace(settings, lr=0.1), tmp_path)
    with pytest.raises(TrainingError, match=r"training\.lr = 0\.005, not 0\.1"):
        fit_tasks([other], quiet=True, resume=True)


def test_a_run_folder_of_another_owner_is_refused_and_the_others_are_let_go(
    source: Source, splits: Splits, settings: TrainSettings, tmp_path: Path
) -> None:
    tasks = [task(name, source, splits, settings, tmp_path) for name in "ab"]
    with RunFolder(tmp_path / "b").owned():
        for resume in (False, True):
            with pytest.raises(TrainingError, match="b is in use by process"):
                fit_tasks(tasks, quiet=True, resume=resume)
        RunFolder(tmp_path / "a").validate_unowned()
    results(tasks)


def test_nothing_to_resume(source: Source, splits: Splits, settings: TrainSettings, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no run to resume"):
        fit_tasks([task("a", source, splits, settings, tmp_path)], quiet=True, resume=True)
