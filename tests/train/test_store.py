from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from run_checks import Killed, assert_same_run, at, raising
from torch import Tensor

from torchsnow.data import Splits
from torchsnow.errors import TrainingError
from torchsnow.methods.snow import make_snow
from torchsnow.methods.stored import SubscribedValues
from torchsnow.source import Request, Source
from torchsnow.train import RunFolder, TrainSettings, fit
from torchsnow.train.batches import RunImages, run_images
from torchsnow.train.loop import Loop
from torchsnow.train.store import FeatureStore, SharedImages, StoreWriter, View, Wanted, sample_of, values_of, views_of

CPU = torch.device("cpu")


class Corners:
    """Reads the first pixels of an image, and notes how many images it has seen."""

    def __init__(self, num: int = 5) -> None:
        self.num, self.seen = num, 0

    @property
    def source(self) -> Any:
        """Stands for a source whose pass gives the images."""
        return lambda images, request: images

    def request(self) -> Request:
        return Request()

    def read(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        return images[:, 0, 0, : self.num].half()

    def chosen(self) -> dict[str, Tensor]:
        return {"index": torch.arange(self.num)}


@pytest.fixture
def images(source: Source, splits: Splits, settings: TrainSettings) -> RunImages:
    return run_images(splits, source.input_config, settings)


def wanted(frozen: Corners, images: RunImages, num_views: int = 1) -> Wanted:
    return Wanted(frozen, images.plain, images.train, num_views, sample_of(Corners(frozen.num), images.plain, CPU))


def in_memory(frozen: Corners, images: RunImages, views: Sequence[View]) -> FeatureStore:
    (store,) = StoreWriter([wanted(frozen, images, len(views))], views, 8, CPU).in_memory(0, nothing)
    return store


def in_file(frozen: Corners, images: RunImages, views: Sequence[View], path: Path, config: Any) -> FeatureStore:
    (store,) = StoreWriter([wanted(frozen, images, len(views))], views, 8, CPU).in_files([path], [config], 0, nothing)
    return store


def nothing(done: int, total: int) -> None:
    """Progress that nobody sees."""


def plain(images: RunImages) -> Tensor:
    return torch.stack([image for image, _ in images.plain])


# views


def test_each_augmentation_has_its_views() -> None:
    assert views_of("none", 8, 5) == [View()]
    assert views_of("flip", 8, 5) == [View(), View(mirrored=True)]
    for name in ("light", "strong"):
        views = views_of(name, 3, 5)
        assert all(view.augmented for view in views)
        assert len({view.seed for view in views}) == 3
        assert not any(view.mirrored for view in views)


def test_flip_stores_each_image_as_it_is_and_mirrored(images: RunImages) -> None:
    views = views_of("flip", 8, 0)
    store, shown = in_memory(Corners(), images, views), plain(images)
    assert torch.equal(store.values[0], Corners().read(shown))
    assert torch.equal(store.values[1], Corners().read(shown.flip(3)))
    assert torch.equal(store.labels, images.plain.labels)


def test_random_views_differ_and_depend_on_their_seed_alone(images: RunImages) -> None:
    def stored(seed: int) -> Tensor:
        return in_memory(Corners(), images, views_of("light", 3, seed)).values

    torch.manual_seed(1)
    first = stored(0)
    torch.manual_seed(2)
    assert torch.equal(stored(0), first)
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[1], first[2])
    assert not torch.equal(stored(10), first)


def test_an_item_is_one_of_its_views_and_all_come_up() -> None:
    values, labels = torch.arange(3 * 4).reshape(3, 4, 1), torch.tensor([7, 8, 9, 7])
    store = FeatureStore(values, labels)
    drawn: set[int] = set()
    torch.manual_seed(0)
    for _ in range(50):
        value, label = store[2]
        assert label == 9
        drawn.add(int(value))
    assert drawn == {2, 6, 10}
    batch, of_batch = store.__getitems__([3, 0, 3] * 20)
    assert torch.equal(of_batch, labels[[3, 0, 3] * 20])
    assert (batch[:, 0] % 4).tolist() == [3, 0, 3] * 20
    assert len(set(batch[1::3, 0].tolist())) == 3


def test_one_view_needs_no_random_numbers() -> None:
    store, before = FeatureStore(torch.rand(1, 4, 2), torch.arange(4)), torch.get_rng_state()
    assert torch.equal(store.__getitems__([2, 1])[0], store.values[0, [2, 1]])
    assert torch.equal(torch.get_rng_state(), before)


# several tasks


def test_images_of_several_tasks_are_shown_once_in_the_order_of_the_largest(images: RunImages) -> None:
    few, many = images.plain.subset([24, 3, 7]), images.plain.subset(range(3, 20))
    shared = SharedImages([few, many])
    assert [example.path for example in shared.images.examples] == [
        example.path for example in (*many.examples, few.examples[0])
    ]
    rows, at = shared.rows(0, torch.tensor([1, 0, 17, 4]))
    assert (list(rows), at.tolist()) == ([1, 2, 3], [1, 0, 2])  # type: ignore[arg-type]
    rows, at = shared.rows(1, torch.tensor([2, 5]))
    assert (rows, at.tolist()) == (slice(None), [2, 5])


@pytest.mark.parametrize("place", ["memory", "files"])
def test_stores_of_several_tasks_are_those_of_each_alone(images: RunImages, tmp_path: Path, place: str) -> None:
    few = RunImages(images.train.subset([24, 3, 7]), images.plain.subset([24, 3, 7]), images.val)
    views = views_of("flip", 2, 0)
    tasks = [(Corners(5), images), (Corners(9), few), (Corners(2), images)]
    one = StoreWriter([wanted(corners, shown, 2) for corners, shown in tasks], views, 8, CPU)
    if place == "memory":
        stores = one.in_memory(0, nothing)
    else:
        paths = [tmp_path / f"{number}.bin" for number in range(3)]
        stores = one.in_files(paths, [0, 1, 2], 0, nothing)
    for store, (corners, shown) in zip(stores, tasks, strict=True):
        alone = in_memory(Corners(corners.num), shown, views)
        assert torch.equal(store.values, alone.values)
        assert torch.equal(store.labels, alone.labels)


def test_a_task_has_as_many_views_as_it_wants(images: RunImages) -> None:
    views = views_of("light", 3, 0)
    one = StoreWriter([wanted(Corners(), images, num) for num in (2, 3)], views, 8, CPU)
    fewer, more = one.in_memory(0, nothing)
    assert (len(fewer.values), len(more.values)) == (2, 3)
    assert torch.equal(fewer.values, more.values[:2])
    assert torch.equal(more.values, in_memory(Corners(), images, views).values)


def test_a_store_that_is_whole_leaves_the_views_that_the_others_want(images: RunImages, tmp_path: Path) -> None:
    views, paths = views_of("light", 3, 0), [tmp_path / "fewer.bin", tmp_path / "more.bin"]
    one = StoreWriter([wanted(Corners(), images, num) for num in (2, 3)], views, 8, CPU)
    expected = [store.values.clone() for store in one.in_files(paths, [0, 1], 0, nothing)]
    paths[0].unlink()
    for store, values in zip(one.in_files(paths, [0, 1], 0, nothing), expected, strict=True):
        assert torch.equal(store.values, values)


# memory and file


@pytest.mark.parametrize("augmentation", ["none", "flip", "light"])
def test_memory_and_file_give_the_same(images: RunImages, tmp_path: Path, augmentation: str) -> None:
    views = views_of(augmentation, 3, 0)
    steps: list[tuple[int, int]] = []
    one = StoreWriter([wanted(Corners(), images, len(views))], views, 8, CPU)
    (memory,) = one.in_memory(0, lambda *step: steps.append(step))
    file = in_file(Corners(), images, views, tmp_path / "features.bin", {"a": 1})
    assert memory.values.shape == file.values.shape == (len(views), 25, 5)
    assert memory.values.dtype == file.values.dtype == torch.float16
    assert torch.equal(memory.values, file.values)
    assert torch.equal(memory.labels, file.labels)
    assert steps[-1] == (25 * len(views), 25 * len(views))


def test_a_whole_file_of_the_same_key_is_taken_again(images: RunImages, tmp_path: Path) -> None:
    views, path = views_of("flip", 8, 0), tmp_path / "features.bin"
    first = in_file(Corners(), images, views, path, {"a": 1})
    frozen = Corners()
    again = in_file(frozen, images, views, path, {"a": 1})
    assert frozen.seen == 0
    assert torch.equal(first.values, again.values)


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def spoil_the_facts(path: Path) -> None:
    path.with_suffix(".json").write_text('{"shape": [1')


@pytest.mark.parametrize("damage", [flip_a_byte, truncate, spoil_the_facts, Path.unlink])
def test_a_damaged_file_is_written_again(images: RunImages, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    views, path = views_of("flip", 8, 0), tmp_path / "features.bin"
    in_file(Corners(), images, views, path, {"a": 1})
    damage(path)
    frozen = Corners()
    again = in_file(frozen, images, views, path, {"a": 1})
    assert frozen.seen == 50
    assert torch.equal(again.values, in_memory(Corners(), images, views).values)


@pytest.mark.parametrize(("config", "num"), [({"a": 2}, 5), ({"a": 1}, 6)])
def test_a_file_of_another_run_or_choice_is_written_again(
    images: RunImages, tmp_path: Path, config: dict[str, int], num: int
) -> None:
    views, path = views_of("none", 8, 0), tmp_path / "features.bin"
    in_file(Corners(), images, views, path, {"a": 1})
    frozen = Corners(num)
    again = in_file(frozen, images, views, path, config)
    assert frozen.seen == 25
    assert again.values.shape[2] == num


def fill_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)


def test_a_full_disk_is_one_error_and_leaves_no_store(
    images: RunImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    views, path = views_of("none", 8, 0), tmp_path / "features.bin"
    with monkeypatch.context() as patched:
        fill_the_disk(patched)
        with pytest.raises(TrainingError, match=r"cannot store features in .*features\.bin: the disk is full"):
            in_file(Corners(), images, views, path, {"a": 1})
    assert not path.with_suffix(".json").exists()
    assert len(in_file(Corners(), images, views, path, {"a": 1})) == 25


@pytest.mark.parametrize("place", ["memory", "file"])
def test_torchs_generator_is_left_as_it_was(images: RunImages, tmp_path: Path, place: str) -> None:
    views, before = views_of("strong", 2, 0), torch.get_rng_state()
    if place == "file":
        in_file(Corners(), images, views, tmp_path / "features.bin", {})
    else:
        in_memory(Corners(), images, views)
    assert torch.equal(torch.get_rng_state(), before)


# runs


def kept_in(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs keep their features in memory, or in the run folder."""
    if place == "the run folder":
        monkeypatch.setattr(import_module("torchsnow.train.fit"), "IN_MEMORY_BYTES", 0)


@pytest.fixture
def of_64(settings: TrainSettings) -> TrainSettings:
    """Images of four cells."""
    return replace(settings, image_size=64, epochs=2, augmentation="flip")


def size_of_one(frozen: Any) -> int:
    return int(values_of(frozen, torch.randn(1, 3, 64, 64)).nbytes)


def log(run: RunFolder) -> str:
    return (run.path / "log.txt").read_text()


@pytest.mark.parametrize("place", [pytest.param("memory", marks=pytest.mark.slow), "the run folder"])
@pytest.mark.parametrize("augmentation", ["flip", "strong"])
def test_a_killed_run_goes_on_to_the_same_end(
    source: Source,
    splits: Splits,
    of_64: TrainSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    augmentation: str,
) -> None:
    settings = replace(of_64, augmentation=augmentation)
    whole, parted = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "parted")
    fit(make_snow(source, 2), splits, settings, whole, quiet=True)
    kept_in(place, monkeypatch)
    with pytest.raises(Killed):
        fit(at(0.7, raising(Killed()), make_snow(source, 2)), splits, settings, parted, quiet=True)
    assert parted.features.exists() == (place == "the run folder")
    assert f"in {place}" in log(parted)
    torch.manual_seed(99)
    fit(make_snow(source, 2), splits, settings, parted, resume=True, quiet=True)
    assert_same_run(whole.path, parted.path)
    assert {file.name for file in parted.path.iterdir()} == {file.name for file in whole.path.iterdir()}


def test_a_resumed_run_takes_the_file_that_it_has(
    source: Source, splits: Splits, of_64: TrainSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept_in("the run folder", monkeypatch)
    run, seen = RunFolder(tmp_path / "run"), []
    with pytest.raises(Killed):
        fit(at(0.7, raising(Killed()), make_snow(source, 2)), splits, of_64, run, quiet=True)
    read = SubscribedValues.read
    monkeypatch.setattr(
        SubscribedValues, "read", lambda self, features: seen.append(len(features.images)) or read(self, features)
    )
    fit(make_snow(source, 2), splits, of_64, run, resume=True, quiet=True)
    assert sum(seen) == 1 + len(splits.val)


def test_a_run_that_fills_the_disk_can_be_resumed_when_there_is_room(
    source: Source, splits: Splits, of_64: TrainSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(make_snow(source, 2), splits, of_64, RunFolder(tmp_path / "whole"), quiet=True)
    kept_in("the run folder", monkeypatch)
    run, before = RunFolder(tmp_path / "run"), torch.get_rng_state()
    with monkeypatch.context() as patched:
        fill_the_disk(patched)
        with pytest.raises(TrainingError, match="the disk is full"):
            fit(make_snow(source, 2), splits, of_64, run, quiet=True)
    assert torch.equal(torch.get_rng_state(), before)
    fit(make_snow(source, 2), splits, of_64, run, resume=True, quiet=True)
    assert_same_run(tmp_path / "whole", run.path)


def test_stored_features_change_nothing_but_by_rounding(
    source: Source, splits: Splits, of_64: TrainSettings, tmp_path: Path
) -> None:
    settings = replace(of_64, augmentation="none")
    runs = [
        fit(
            make_snow(source, 2),
            splits,
            replace(settings, store_bytes=size),
            RunFolder(tmp_path / str(size)),
            quiet=True,
        )
        for size in (settings.store_bytes, 0)
    ]
    for stored, computed in zip(*(run.history for run in runs), strict=True):
        assert stored.val_loss == pytest.approx(computed.val_loss, abs=0.02)
        assert (stored.train_loss or 0) == pytest.approx(computed.train_loss or 0, abs=0.02)


def test_norms_have_the_statistics_of_the_weights_that_are_validated(
    source: Source, splits: Splits, of_64: TrainSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update, seen = Loop._update_norms, []

    def noting(self: Loop, epoch: int) -> None:
        """What a norm has before and after, and the means of its inputs over the stored features."""
        norm, inputs = self.method.model.delta.body.stem[1], list[Tensor]()
        before = norm.running_mean.clone()
        update(self, epoch)
        with norm.register_forward_hook(lambda module, x, y: inputs.append(x[0])), torch.no_grad():
            self.trained.eval()(self.train_set.values[0])
        seen.append((before, norm.running_mean.clone(), inputs[0].mean(0)))

    monkeypatch.setattr(Loop, "_update_norms", noting)
    settings = replace(of_64, augmentation="none", lr=0.1, epochs=1, batch_size=25)
    fit(make_snow(source, 2), splits, settings, RunFolder(tmp_path), quiet=True)
    ((before, after, expected),) = seen
    torch.testing.assert_close(after, expected, rtol=1e-3, atol=1e-4)
    assert float((before - expected).abs().max()) > 0.1


def test_the_source_sees_each_view_once(
    source: Source, splits: Splits, of_64: TrainSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    forward = Source.forward
    monkeypatch.setattr(
        Source, "forward", lambda self, images, *rest: seen.append(len(images)) or forward(self, images, *rest)
    )
    fit(make_snow(source, 2), splits, of_64, RunFolder(tmp_path), quiet=True)
    # the start, one for the size, two views, and the validation images for every epoch and for the finished model
    assert sum(seen) == 25 + 1 + 2 * 25 + 8 + 8


def test_a_budget_below_one_image_is_refused(
    source: Source, splits: Splits, of_64: TrainSettings, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match=r"store_bytes is 100, and the features of one image take \d+; give more"):
        fit(make_snow(source, 2), splits, replace(of_64, store_bytes=100), RunFolder(tmp_path), quiet=True)


def test_features_that_are_too_large_are_computed_in_every_epoch(
    source: Source, splits: Splits, of_64: TrainSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = make_snow(source, 2)
    frozen, _ = method.frozen_part(64) or pytest.fail("no frozen part")
    budget = size_of_one(frozen) * (2 * 25 + 8)  # two views, and the validation images
    for name, store_bytes in (("fits", budget), ("does not", budget - 1)):
        run = RunFolder(tmp_path / name)
        fit(make_snow(source, 2), splits, replace(of_64, store_bytes=store_bytes), run, quiet=True)
        said = f"more than the {store_bytes} bytes that may be stored; they are computed in every epoch"
        assert (said in log(run)) == (name == "does not")
        assert ("in 2 views" in log(run)) == (name == "fits")


def test_random_views_are_as_many_as_there_is_room_for(
    source: Source, splits: Splits, of_64: TrainSettings, tmp_path: Path
) -> None:
    frozen, _ = make_snow(source, 2).frozen_part(64) or pytest.fail("no frozen part")
    budget = size_of_one(frozen) * (3 * 25 + 8)
    run = RunFolder(tmp_path)
    settings = replace(of_64, augmentation="light", store_bytes=budget)
    fit(make_snow(source, 2), splits, settings, run, quiet=True)
    assert "in 3 views" in log(run)
