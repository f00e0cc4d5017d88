"""Stored features: what the frozen parts of methods make of every image, computed once, for all epochs.

An image is stored in each of its views: unchanged ("none"), and mirrored ("flip"), or so many random changes of it
("light", "strong") as there is room for. An epoch takes one view of every image at random. What fits into memory stays
there; more goes into a file in the run folder, which is mapped into memory; what does not fit there either is computed
in every epoch. Tasks over the same images share one source pass per image and view.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from torchsnow.data import Example, ImageSet
from torchsnow.errors import TrainingError
from torchsnow.io.files import clear_os_errors, write_atomically
from torchsnow.source.features import FeatureMaps, Request
from torchsnow.source.source import Source
from torchsnow.train.loader import Batches

IN_MEMORY_BYTES = 4 * 2**30
"""More goes into a file."""
MOST_VIEWS = 8
_CHUNK_BYTES = 2**24
_ELSEWHERE = -1

Progress = Callable[[int, int], None]
"""Called with images done, and images in all."""


class FrozenPart(Protocol):
    """Fixed values of images: `read` takes them, (B, D), from a source pass that was asked for `request`; `chosen` are
    the tensors that say which values these are."""

    @property
    def source(self) -> Source: ...

    def request(self) -> Request: ...

    def read(self, features: FeatureMaps, /) -> Tensor: ...

    def chosen(self) -> dict[str, Tensor]: ...


class FeatureStore(Dataset[tuple[Tensor, int]]):
    """Values (V, n, D) of n images in V views, with labels (n,); an item is one view at random and its label."""

    def __init__(self, values: Tensor, labels: Tensor) -> None:
        self.values, self.labels = values, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        values, labels = self.__getitems__([index])
        return values[0], int(labels[0])

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        at = torch.tensor(indices)
        views, num_views = torch.zeros_like(at), len(self.values)
        if num_views > 1:
            views = torch.randint(num_views, at.shape)
        return self.values[views, at], self.labels[at]

    @staticmethod
    def collate(batch: Any) -> Any:
        """`__getitems__` gives a whole batch."""
        return batch


class SharedImages:
    """Several sets of images as one, in which each image is once: first those of the set that has most, in its order.

    `places` say where the images stand in each of the sets, (len(images),), with -1 for one that is not there.
    """

    def __init__(self, sets: Sequence[ImageSet]) -> None:
        by_size = sorted(sets, key=len, reverse=True)
        paths = dict.fromkeys(example.path for images in by_size for example in images.examples)
        numbers = {path: number for number, path in enumerate(paths)}
        self.images = sets[0].with_examples([Example(path, number) for path, number in numbers.items()], ())
        self.places = [torch.full((len(numbers),), _ELSEWHERE) for _ in sets]
        for places, images in zip(self.places, sets, strict=True):
            for place, example in enumerate(images.examples):
                places[numbers[example.path]] = place

    def rows(self, number: int, batch: Tensor) -> tuple[Tensor | slice, Tensor]:
        """Which images of a batch, given by their labels (B,), are in the set of this number, and where there (n,)."""
        places = self.places[number][batch]
        known = places != _ELSEWHERE
        return (slice(None), places) if bool(known.all()) else (known.nonzero().flatten(), places[known])


@dataclass(frozen=True)
class View:
    """One way to show images: augmented or not, and mirrored or not; random changes are drawn by `seed`."""

    augmented: bool = False
    mirrored: bool = False
    seed: int = 0


def views_of(augmentation: str, num_views: int, seed: int) -> list[View]:
    """The views of an augmentation: one for "none", two for "flip", `num_views` for those that change images."""
    if augmentation in ("none", "flip"):
        return [View(mirrored=mirrored) for mirrored in (False, True)[: 1 + (augmentation == "flip")]]
    return [View(augmented=True, seed=seed + number) for number in range(num_views)]


@dataclass(frozen=True)
class Wanted:
    """What one task wants stored of its images `plain`, or `augmented` in views that are: what `part` reads, in the
    first `num_views` views. `sample` (1, D) is what it reads of one image."""

    part: FrozenPart
    plain: ImageSet
    augmented: ImageSet
    num_views: int
    sample: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """Views, images, and values of one."""
        return self.num_views, len(self.plain), self.sample.shape[1]

    @property
    def size_bytes(self) -> int:
        """What all views of all images take."""
        return self.num_views * len(self.plain) * self.sample.nbytes


def values_of(part: FrozenPart, images: Tensor) -> Tensor:
    """What a frozen part reads of images (B, 3, H, W), (B, D)."""
    with torch.no_grad():
        return part.read(part.source(images, part.request()))


def sample_of(part: FrozenPart, images: ImageSet, device: torch.device) -> np.ndarray:
    """What a frozen part reads of the first of some images, (1, D), on the CPU."""
    image, _ = images[0]
    values: np.ndarray = values_of(part, image[None].to(device)).cpu().numpy()
    return values


class StoreWriter:
    """Shows images to a source, and keeps what the frozen parts of one or more tasks read, in memory or in files."""

    def __init__(self, wanted: Sequence[Wanted], views: Sequence[View], batch_size: int, device: torch.device) -> None:
        self.wanted, self.views, self.batch_size, self.device = wanted, views, batch_size, device

    def in_memory(self, num_workers: int, progress: Progress) -> list[FeatureStore]:
        """The stores of these tasks."""
        arrays = [np.empty(one.shape, one.sample.dtype) for one in self.wanted]
        self._fill(arrays, num_workers, progress)
        return [_store(*pair) for pair in zip(arrays, self.wanted, strict=True)]

    def in_files(
        self, paths: Sequence[Path], configs: Sequence[Any], num_workers: int, progress: Progress
    ) -> list[FeatureStore]:
        """The same in a file each, which is reused if it was written for the same images and choice and is
        whole.

        `configs` are JSON values that say which images, and what they are shown to. Raises TrainingError when the disk
        refuses, before anything is computed.
        """
        missing: list[tuple[Wanted, Path, str, np.ndarray]] = []
        for one, path, config in zip(self.wanted, paths, configs, strict=True):
            key = _key(config, one.part.chosen())
            if not _is_complete(path, key, one):
                missing.append((one, path, key, _allocated(path, one)))
        if missing:
            writer = StoreWriter([one for one, *_ in missing], self.views, self.batch_size, self.device)
            writer._fill([array for *_, array in missing], num_workers, progress)
        for one, path, key, array in missing:
            with clear_os_errors("store features in", path, TrainingError):
                array.flush()  # type: ignore[attr-defined] # of a memmap
            facts = {"key": key, "size_bytes": one.size_bytes, "crc32": _crc32(path)}
            # last: it makes the file a store
            write_atomically(_about(path), json.dumps(facts, allow_nan=False) + "\n", TrainingError)
        # Nobody writes to them; "c" lets torch have them without a warning.
        mapped = [
            np.memmap(path, one.sample.dtype, mode="c", shape=one.shape)
            for one, path in zip(self.wanted, paths, strict=True)
        ]
        return [_store(*pair) for pair in zip(mapped, self.wanted, strict=True)]

    def _fill(self, arrays: Sequence[np.ndarray], num_workers: int, progress: Progress) -> None:
        views = self.views[: max(one.num_views for one in self.wanted)]
        shown = [self._shown(number) for number in range(len(views))]
        done, total = 0, sum(len(shared.images) for _, shared in shown)
        state = torch.get_rng_state()
        try:
            for number, (view, (tasks, shared)) in enumerate(zip(views, shown, strict=True)):
                torch.manual_seed(view.seed)
                for batch, features in self._passes(shared.images, view, tasks, num_workers):
                    for place, task in enumerate(tasks):
                        rows, at = shared.rows(place, batch)
                        values = self.wanted[task].part.read(features)[rows]
                        arrays[task][number, at.numpy()] = values.cpu().numpy()
                    done += len(batch)
                    progress(done, total)
        finally:
            torch.set_rng_state(state)

    def _shown(self, number: int) -> tuple[list[int], SharedImages]:
        """The tasks that want the view of this number, and their images in it."""
        tasks = [task for task, one in enumerate(self.wanted) if number < one.num_views]
        augmented = self.views[number].augmented
        sets = [self.wanted[task].augmented if augmented else self.wanted[task].plain for task in tasks]
        return tasks, SharedImages(sets)

    @torch.no_grad()
    def _passes(
        self, images: ImageSet, view: View, tasks: Sequence[int], num_workers: int
    ) -> Iterator[tuple[Tensor, FeatureMaps]]:
        parts = [self.wanted[task].part for task in tasks]
        request = Request.together([part.request() for part in parts])
        for shown, numbers in Batches(images, self.batch_size, num_workers=num_workers):
            shown = shown.to(self.device)
            yield numbers, parts[0].source(shown.flip(3) if view.mirrored else shown, request)


def _store(array: np.ndarray, one: Wanted) -> FeatureStore:
    return FeatureStore(torch.from_numpy(array), one.plain.labels)


def _allocated(path: Path, one: Wanted) -> np.ndarray:
    """A file for what a task wants stored, mapped into memory. The disk gives all the room now, or never: a page that
    finds none later would end the process."""
    with clear_os_errors("store features in", path, TrainingError):
        _about(path).unlink(missing_ok=True)
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, one.size_bytes)
        return np.memmap(path, one.sample.dtype, mode="r+", shape=one.shape)


def _about(path: Path) -> Path:
    """The file that says what a store holds."""
    return path.with_suffix(".json")


def _is_complete(path: Path, key: str, one: Wanted) -> bool:
    """Whether a file is the store that a task wants: not another one, nor a damaged one."""
    try:
        facts = json.loads(_about(path).read_text(encoding="utf-8"))
        sizes = {facts["size_bytes"], path.stat().st_size, one.size_bytes}
        return len(sizes) == 1 and facts["key"] == key and facts["crc32"] == _crc32(path)
    except (OSError, ValueError, TypeError, KeyError):
        return False


def _key(config: Any, chosen: dict[str, Tensor]) -> str:
    """A SHA-256 over all that the values depend on."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, allow_nan=False).encode())
    for name, tensor in sorted(chosen.items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _crc32(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            value = zlib.crc32(chunk, value)
    return value
