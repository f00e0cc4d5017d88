"""Images as a torch data set that decodes each file once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2.functional import pil_to_tensor

from torchsnow.data.images import read_image
from torchsnow.data.loading import Example

CACHE_BYTES = 2**30

Prepare = Callable[[Image.Image], Image.Image]
Transform = Callable[[Any], Tensor]


def targets_of(examples: Sequence[Example], num_classes: int) -> Tensor:
    """The classes of examples, (n,) int64, or of those with any number of labels (n, num_classes), float of 0 and 1."""
    if not any(example.labels is not None for example in examples):
        return torch.tensor([example.label for example in examples], dtype=torch.int64)
    targets = torch.zeros(len(examples), num_classes)
    for row, example in enumerate(examples):
        targets[row, list(example.all_labels)] = 1
    return targets


class ImageCache:
    """Prepared images by path, as uint8 tensors; reads past `budget_bytes` are decoded again each time."""

    def __init__(self, prepare: Prepare | None, budget_bytes: int) -> None:
        self.prepare = prepare
        self.budget_bytes = budget_bytes
        self.used_bytes = 0
        self._images: dict[Path, Tensor] = {}

    def read(self, path: Path) -> Tensor:
        """The prepared image (3, H, W), uint8. It belongs to the cache: do not change it in place."""
        image = self._images.get(path)
        if image is None:
            image = self._decode(path)
            if self.used_bytes + image.nbytes <= self.budget_bytes:
                self._images[path] = image
                self.used_bytes += image.nbytes
        return image

    def _decode(self, path: Path) -> Tensor:
        image = read_image(path)
        tensor: Tensor = pil_to_tensor(image if self.prepare is None else self.prepare(image))
        return tensor.contiguous()


class ImageSet(Dataset[tuple[Tensor, Any]]):
    """Examples as (image, label) pairs; of images with any number of labels (image, labels (num_classes,)).

    `prepare` is a deterministic step on the decoded image, such as the resize before any random augmentation. Its
    result is kept in memory as uint8 until `cache_bytes` are used, so that epochs after the first do not decode;
    sets made by `subset` and `with_transform` share it. (Worker processes of a DataLoader each fill their own copy.)
    `transform` turns the uint8 image (3, H, W) into what `__getitem__` returns; without one, that is the image.
    """

    def __init__(
        self,
        examples: Iterable[Example],
        classes: Sequence[str],
        transform: Transform | None = None,
        prepare: Prepare | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.examples = tuple(examples)
        self.classes = tuple(classes)
        self.transform = transform
        self._cache = ImageCache(prepare, cache_bytes)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        """(image, label). Raises DataError naming the file when it can no longer be read."""
        example = self.examples[index]
        image = self._cache.read(example.path)
        label = example.label if example.labels is None else targets_of([example], len(self.classes))[0]
        return image if self.transform is None else self.transform(image), label

    @property
    def labels(self) -> Tensor:
        """The labels of all examples, see `targets_of`."""
        return targets_of(self.examples, len(self.classes))

    def subset(self, indices: Iterable[int]) -> ImageSet:
        """The examples at `indices`, in that order, with the same cache."""
        return self._derived([self.examples[index] for index in indices], self.transform)

    def with_transform(self, transform: Transform | None) -> ImageSet:
        """The same examples and cache with another transform."""
        return self._derived(self.examples, transform)

    def with_examples(self, examples: Iterable[Example], classes: Sequence[str]) -> ImageSet:
        """Other examples, of the same data, with the same cache and transform."""
        derived = self._derived(examples, self.transform)
        derived.classes = tuple(classes)
        return derived

    def _derived(self, examples: Iterable[Example], transform: Transform | None) -> ImageSet:
        derived = ImageSet(examples, self.classes, transform)
        derived._cache = self._cache
        return derived
