from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from torchsnow.data import Example, Splits
from torchsnow.errors import TrainingError
from torchsnow.methods.snow import Snow, make_snow
from torchsnow.source import Source
from torchsnow.train import FitResult, RunFolder, TrainSettings, fit
from torchsnow.train.checkpoint import Checkpoint
from torchsnow.train.shared import Together, fit_together
from torchsnow.train.streams import SharedTask, Stream


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
    name: str, source: Source, splits: Splits, settings: TrainSettings, folder: Path, preset: str = "paper"
) -> SharedTask:
    """By default a narrow copy, which shares its steps with others; grid deltas are trained one after another."""
    return SharedTask(name, make_snow(source, 2, preset), splits, settings, RunFolder(folder / name))


def results(*streams: Stream, **options: Any) -> dict[str, FitResult]:
    found = fit_together(streams, quiet=True, **options)
    assert all(isinstance(result, FitResult) for result in found.values()), found
    return found  # type: ignore[return-value]


def assert_same(alone: Path, shared: Path, rtol: float = 0.0, atol: float = 0.0) -> None:
    """Equal best and last states, tables and choices: bit by bit unless there is a tolerance."""
    for name in ("last.safetensors", "best.safetensors"):
        one, other = Checkpoint.load(alone / name), Checkpoint.load(shared / name)
        assert one.config == other.config
        for then, now in ((one.model, other.model), (one.optimizer, other.optimizer)):
            assert then.keys() == now.keys()
            for key, tensor in then.items():
                torch.testing.assert_close(
                    now[key], tensor, rtol=rtol, atol=atol, msg=lambda text, key=key: f"{key}: {text}"
                )
        for first, second in zip(one.history, other.history, strict=True):
            assert (first.epoch, first.val_accuracy, first.lr) == (second.epoch, second.val_accuracy, second.lr)
            assert first.val_loss == pytest.approx(second.val_loss, rel=rtol, abs=atol)
            assert (first.train_loss or 0) == pytest.approx(second.train_loss or 0, rel=rtol, abs=atol)
    assert (alone / "splits.json").read_bytes() == (shared / "splits.json").read_bytes()


@pytest.mark.parametrize(("preset", "augmentation"), [("default", "light"), ("paper", "none")])
def test_tasks_on_the_same_images_come_out_as_if_alone(
    source: Source, splits: Splits, settings: TrainSettings, tmp_path: Path, preset: str, augmentation: str
) -> None:
    settings = replace(settings, augmentation=augmentation)
    others = [splits, relabelled(splits, 3), relabelled(splits, 2)]
    names = ["colour", "third", "half"]
    stream = Stream(
        [task(name, source, of, settings, tmp_path, preset) for name, of in zip(names, others, strict=True)]
    )
    shared = results(stream)
    for name, of in zip(names, others, strict=True):
        alone = fit(make_snow(source, 2, preset), of, settings, RunFolder(tmp_path / "alone" / name), quiet=True)
        assert_same(tmp_path / "alone" / name, tmp_path / name)
        assert shared[name].metrics == alone.metrics
        assert shared[name].best.epoch == alone.best.epoch
        images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        assert torch.equal(shared[name].model(images), alone.model(images))


def test_a_task_without_labels_for_some_images_changes_nothing_for_the_others(
    source: Source, splits: Splits, settings: TrainSettings, tmp_path: Path
) -> None:
    full = task("full", source, splits, settings, tmp_path / "shared")
    some = task("some", source, without_labels(relabelled(splits, 2), 4), settings, tmp_path / "shared")
    found = results(Stream([some, full]))  # the one that lacks labels first: it may not set the order
    fit(make_snow(source, 2, "paper"), splits, settings, RunFolder(tmp_path / "alone"), quiet=True)
    assert_same(tmp_path / "alone", tmp_path / "shared" / "full")
    assert found["some"].metrics.num_images == len(some.splits.val) < len(splits.val)
    assert found["some"].history[-1].epoch == 2


def mix(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let streams share batches, as on CUDA."""
    begin = Together.begin

    def mixing(self: Together, resume: bool) -> None:
        self.mixes = True
        begin(self, resume)

    monkeypatch.setattr(Together, "begin", mixing)


@pytest.mark.parametrize("mixed", [False, True])
def test_tasks_on_other_images_come_out_as_if_alone(
    source: Source,
    splits: Splits,
    settings: TrainSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mixed: bool,
) -> None:
    if mixed:
        mix(monkeypatch)
    parts = [
        replace(splits, train=splits.train[::2], val=splits.val[::2]),
        replace(splits, train=splits.train[1::2], val=splits.val[1::2]),
    ]
    own = [settings, replace(settings, epochs=3, batch_size=4, seed=3, lr=1e-3)]
    streams = [
        Stream([task(name, source, part, one, tmp_path / "shared")])
        for name, part, one in zip("ab", parts, own, strict=True)
    ]
    found = results(*streams)
    assert [len(result.history) for result in found.values()] == [3, 4]
    for name, part, one in zip("ab", parts, own, strict=True):
        fit(make_snow(source, 2, "paper"), part, one, RunFolder(tmp_path / "alone" / name), quiet=True)
        # the source may add up in another order where it gets more images at a time
        tolerance = {"rtol": 1e-3, "atol": 1e-4} if mixed else {}
        assert_same(tmp_path / "alone" / name, tmp_path / "shared" / name, **tolerance)


def test_rows_of_the_others_do_not_reach_a_task(
    source: Source, splits: Splits, settings: TrainSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mix(monkeypatch)

    def first_with(other: Splits, folder: Path) -> dict[str, torch.Tensor]:
        first = Stream([task("first", source, splits, settings, folder)])
        results(first, Stream([task("other", source, other, settings, folder)]))
        return Checkpoint.load(folder / "first" / "last.safetensors").model

    one = first_with(relabelled(splits, 3), tmp_path / "one")
    other = first_with(relabelled(replace(splits, train=splits.train[::-1]), 2), tmp_path / "other")
    assert all(torch.equal(one[key], other[key]) for key in one)


def stop_after(method: Snow, steps: int, error: BaseException) -> None:
    set_progress, done = method.set_progress, 0

    def counted(fraction: float) -> None:
        nonlocal done
        done += 1
        if done > steps:
            raise error
        set_progress(fraction)

    method.set_progress = counted  # type: ignore[method-assign]


@pytest.mark.parametrize("preset", ["paper", "default"])
@pytest.mark.parametrize("steps", [0, 1, 4])
def test_an_interrupted_run_goes_on_to_the_same_end(
    source: Source, splits: Splits, settings: TrainSettings, tmp_path: Path, steps: int, preset: str
) -> None:
    def stream(folder: Path) -> Stream:
        labels = {"a": relabelled(splits, 2), "b": relabelled(splits, 3)}
        return Stream([task(name, source, own, settings, folder, preset) for name, own in labels.items()])

    results(stream(tmp_path / "whole"))
    stopped = stream(tmp_path / "stopped")
    stop_after(stopped.tasks[1].method, steps, KeyboardInterrupt())  # type: ignore[arg-type]
    done = steps // 3
    safe = f"a {done} of 2, b {done} of 2" if preset == "paper" else f"{done} of 2 epochs are safe in .*b"
    with pytest.raises(KeyboardInterrupt, match=f"{safe}.*Resume"):
        fit_together([stopped], quiet=True)
    results(stream(tmp_path / "stopped"), resume=True)
    for name in "ab":
        assert_same(tmp_path / "whole" / name, tmp_path / "stopped" / name)


def test_a_task_that_is_an_epoch_ahead_waits_for_the_others(
    source: Source, splits: Splits, settings: TrainSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stream(folder: Path) -> Stream:
        return Stream([task(name, source, relabelled(splits, n), settings, folder) for n, name in enumerate("ab", 2)])

    results(stream(tmp_path / "whole"))
    save = Checkpoint.save

    def failing(self: Checkpoint, path: Path) -> None:
        if path == tmp_path / "stopped" / "b" / "last.safetensors" and self.history[-1].epoch == 1:
            raise TrainingError("the disk is full")
        save(self, path)

    monkeypatch.setattr(Checkpoint, "save", failing)
    with pytest.raises(TrainingError, match="disk"):
        fit_together([stream(tmp_path / "stopped")], quiet=True)
    monkeypatch.undo()
    done = [Checkpoint.load(tmp_path / "stopped" / name / "last.safetensors").history[-1].epoch for name in "ab"]
    assert done == [1, 0]
    results(stream(tmp_path / "stopped"), resume=True)
    for name in "ab":
        assert_same(tmp_path / "whole" / name, tmp_path / "stopped" / name)


def test_a_disk_that_fails_ends_a_run_of_grid_deltas(
    source: Source, splits: Splits, settings: TrainSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(self: Checkpoint, path: Path) -> None:
        raise TrainingError("the disk is full")

    stream = Stream([task(name, source, splits, settings, tmp_path, "default") for name in "ab"])
    monkeypatch.setattr(Checkpoint, "save", failing)
    with pytest.raises(TrainingError, match="disk"):
        fit_together([stream], quiet=True)
    assert (tmp_path / "a").exists()
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("preset", ["paper", "default"])
def test_a_task_that_diverges_leaves_the_others_alone(
    source: Source, splits: Splits, settings: TrainSettings, tmp_path: Path, preset: str
) -> None:
    bad = task("bad", source, splits, replace(settings, lr=1e30), tmp_path, preset)
    good = task("good", source, splits, settings, tmp_path, preset)
    found = fit_together([Stream([bad, good])], quiet=True)
    assert isinstance(found["bad"], TrainingError)
    assert "learning rate 1e+30" in str(found["bad"])
    assert isinstance(found["good"], FitResult)
    fit(make_snow(source, 2, preset), splits, settings, RunFolder(tmp_path / "alone"), quiet=True)
    assert_same(tmp_path / "alone", tmp_path / "good")


def test_patience_ends_one_task_alone(source: Source, splits: Splits, settings: TrainSettings, tmp_path: Path) -> None:
    settings = replace(settings, epochs=4, patience=1)
    tasks = [task(str(n), source, relabelled(splits, n), settings, tmp_path) for n in (2, 3)]
    found = results(Stream(tasks))
    for one in tasks:
        alone = fit(
            make_snow(source, 2, "paper"), one.splits, settings, RunFolder(tmp_path / "alone" / one.name), quiet=True
        )
        assert len(found[one.name].history) == len(alone.history)


def test_each_image_passes_through_the_source_once(
    source: Source, splits: Splits, settings: TrainSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = 0
    shared = Source.shared

    def counted(self: Source, images: torch.Tensor, parts: Any) -> Any:
        nonlocal seen
        seen += len(images)
        return shared(self, images, parts)

    monkeypatch.setattr(Source, "shared", counted)
    results(Stream([task(str(n), source, relabelled(splits, n), settings, tmp_path) for n in (2, 3, 4)]))
    assert seen == 2 * len(splits.train) + (1 + 2) * len(splits.val)


@pytest.mark.parametrize("preset", ["paper", "default"])
def test_torch_generator_is_left_alone(
    source: Source, splits: Splits, settings: TrainSettings, tmp_path: Path, preset: str
) -> None:
    stream = Stream([task("a", source, splits, settings, tmp_path, preset)])
    before = torch.get_rng_state()
    results(stream)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("preset", ["paper", "default"])
def test_a_run_folder_that_is_taken_is_refused_before_any_task_is_trained(
    source: Source, splits: Splits, settings: TrainSettings, tmp_path: Path, preset: str
) -> None:
    results(Stream([task("b", source, splits, settings, tmp_path, preset)]))
    with pytest.raises(TrainingError, match="b holds a run already"):
        fit_together([Stream([task(name, source, splits, settings, tmp_path, preset) for name in "ab"])], quiet=True)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("preset", ["paper", "default"])
def test_a_run_folder_of_another_run_is_refused(
    source: Source, splits: Splits, settings: TrainSettings, tmp_path: Path, preset: str
) -> None:
    results(Stream([task("a", source, splits, settings, tmp_path, preset)]))
    other = Stream([task("a", source, splits, replace(settings, lr=0.1), tmp_path, preset)])
    with pytest.raises(TrainingError, match=r"training\.lr = 0\.005, not 0\.1"):
        fit_together([other], quiet=True, resume=True)


@pytest.mark.parametrize("preset", ["paper", "default"])
def test_a_run_folder_of_another_owner_is_refused_and_the_others_are_let_go(
    source: Source, splits: Splits, settings: TrainSettings, tmp_path: Path, preset: str
) -> None:
    stream = Stream([task(name, source, splits, settings, tmp_path, preset) for name in "ab"])
    with RunFolder(tmp_path / "b").owned():
        for resume in (False, True):
            with pytest.raises(TrainingError, match="b is in use by process"):
                fit_together([stream], quiet=True, resume=resume)
        RunFolder(tmp_path / "a").refuse_owned()
    results(stream)


@pytest.mark.parametrize("preset", ["paper", "default"])
def test_nothing_to_resume(
    source: Source, splits: Splits, settings: TrainSettings, tmp_path: Path, preset: str
) -> None:
    with pytest.raises(TrainingError, match="no run to resume"):
        fit_together([Stream([task("a", source, splits, settings, tmp_path, preset)])], quiet=True, resume=True)
