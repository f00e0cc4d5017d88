"""Stored features: what a method's frozen part makes of every image, computed once, for all epochs.

An image is stored in each of its views: as it is ("none"), and mirrored ("flip"), or so many random changes of it
("light", "strong") as there is room for. An epoch takes one view of every image at random. What fits into memory stays
there; more goes into a file in the run folder, which is mapped into memory; what does not fit there either is computed
in every epoch.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from torchsnow.data import ImageSet
from torchsnow.errors import TrainingError
from torchsnow.files import clear_os_errors, write_atomically

IN_MEMORY_BYTES = 4 * 2**30
"""More goes into a file."""
MOST_VIEWS = 8
_CHUNK_BYTES = 2**24

Progress = Callable[[int, int], None]
"""Called with images done, and images in all."""


class FrozenPart(Protocol):
    """Images (B, 3, H, W) to fixed values (B, D); `chosen` are the tensors that say which values these are."""

    def __call__(self, images: Tensor, /) -> Tensor: ...

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


@dataclass(frozen=True)
class View:
    """One way to show all images: through `transform`, and mirrored or not; random changes are drawn by `seed`."""

    images: ImageSet
    mirrored: bool = False
    seed: int = 0


def views_of(augmentation: str, plain: ImageSet, augmented: ImageSet, num_views: int, seed: int) -> list[View]:
    """The views of an augmentation: one for "none", two for "flip", `num_views` for those that change images."""
    if augmentation in ("none", "flip"):
        return [View(plain, mirrored) for mirrored in (False, True)[: 1 + (augmentation == "flip")]]
    return [View(augmented, seed=seed + number) for number in range(num_views)]


class StoreWriter:
    """Runs a frozen part over images and keeps what it gives, in memory or in a file."""

    def __init__(self, frozen: FrozenPart, batch_size: int, device: torch.device, num_workers: int) -> None:
        self.frozen, self.batch_size, self.device, self.num_workers = frozen, batch_size, device, num_workers

    def size_bytes(self, images: ImageSet) -> int:
        """What one view of one image takes."""
        with torch.no_grad():
            image, _ = images[0]
            values = self.frozen(image[None].to(self.device))
        return values.numel() * values.element_size()

    def in_memory(self, views: Sequence[View], progress: Progress) -> FeatureStore:
        """The store of these views."""
        by_view = [
            torch.cat(list(self._batches(view, number, len(views), progress))) for number, view in enumerate(views)
        ]
        values = by_view[0][None] if len(by_view) == 1 else torch.stack(by_view)
        return FeatureStore(values, views[0].images.labels)

    def in_file(self, views: Sequence[View], path: Path, config: Any, progress: Progress) -> FeatureStore:
        """The same in a file, which is taken as it is if it was written for the same images and choice and is whole.

        `config` are JSON values that say which images, and what they are shown to. Raises TrainingError when the disk
        refuses.
        """
        about, key = path.with_suffix(".json"), _key(config, self.frozen.chosen())
        facts = _whole_store(path, about, key)
        if facts is None:
            with clear_os_errors("replace", about, TrainingError):
                about.unlink(missing_ok=True)
            facts = {"key": key, **self._write(views, path, progress), "crc32": _crc32(path)}
            write_atomically(
                about, json.dumps(facts, allow_nan=False) + "\n", TrainingError
            )  # last: it makes the file a store
        # Nobody writes to it; "c" lets torch have it without a warning.
        mapped = np.memmap(path, dtype=facts["dtype"], mode="c", shape=tuple(facts["shape"]))
        return FeatureStore(torch.from_numpy(mapped), views[0].images.labels)

    def _write(self, views: Sequence[View], path: Path, progress: Progress) -> dict[str, Any]:
        width, dtype = 0, ""
        with clear_os_errors("store features in", path, TrainingError), path.open("wb") as file:
            for number, view in enumerate(views):
                for values in self._batches(view, number, len(views), progress):
                    width, dtype = values.shape[1], str(values.numpy().dtype)
                    file.write(values.numpy().tobytes())
        return {"shape": [len(views), len(views[0].images), width], "dtype": dtype}

    def _batches(self, view: View, number: int, num_views: int, progress: Progress) -> Iterator[Tensor]:
        """What the frozen part gives of all images, on the CPU, batch by batch."""
        total, done = num_views * len(view.images), number * len(view.images)
        state = torch.get_rng_state()
        torch.manual_seed(view.seed)
        try:
            loader = DataLoader(view.images, self.batch_size, num_workers=self.num_workers)
            for images, _ in loader:
                shown = images.to(self.device)
                with torch.no_grad():
                    values = self.frozen(shown.flip(3) if view.mirrored else shown)
                done += len(images)
                progress(done, total)
                yield values.cpu()
        finally:
            torch.set_rng_state(state)


def _whole_store(path: Path, about: Path, key: str) -> dict[str, Any] | None:
    """What a store says about itself; None where there is none, another, or a damaged one."""
    try:
        facts: dict[str, Any] = json.loads(about.read_text(encoding="utf-8"))
        whole = path.stat().st_size == np.dtype(facts["dtype"]).itemsize * int(np.prod(facts["shape"]))
        return facts if facts["key"] == key and whole and facts["crc32"] == _crc32(path) else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


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
