"""How a task is trained: every number that, with the data and the method, determines the result."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torchsnow.data.names import AUGMENTATIONS
from torchsnow.errors import TrainingError
from torchsnow.source.config import CROP_MODES, GREYS, MAX_IMAGE_SIZE, Framing, Precision

if TYPE_CHECKING:
    import torch

_SHARED_MEMORY = Path("/dev/shm")  # where worker processes lay down batches on Linux
_BATCHES_PER_WORKER = 3  # two that wait, and one that is made
MORE_ROOM = "give fewer workers (--num-workers 0 needs none) or, in a container, more room (docker run --shm-size=2g)"
_CHOICES: dict[str, tuple[str, ...]] = {
    "optimizer": ("adamw", "sgd"),
    "class_weights": ("none", "balanced"),
    "augmentation": AUGMENTATIONS,
    "crop_mode": CROP_MODES,
    "precision": ("fp32", "bf16"),
}
_DEVICES = "one of auto, cpu, cuda, or cuda:1 and so on where there are several"
_WHOLE_FROM = {
    "epochs": 1,
    "batch_size": 2,
    "image_size": 1,
    "warmup_epochs": 0,
    "seed": 0,
    "num_workers": 0,
    "store_bytes": 0,
}


def torch_device(name: str) -> torch.device:
    """The device "cpu", "cuda" or one of several as "cuda:1", or for "auto" CUDA where there is one and else the CPU.

    Raises TrainingError for another name, and for a CUDA device that there is not.
    """
    if not _is_device(name):
        raise TrainingError(f"device is {name!r}; expected {_DEVICES}")
    import torch  # here: settings are refused before it is loaded

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name.startswith("cuda") and int(name.partition(":")[2] or 0) >= count:
        seen = f"{count} CUDA devices, from cuda:0" if count else "no CUDA device"
        raise TrainingError(f"device is {name!r}, but torch sees {seen} here; use 'auto' or 'cpu'")
    return torch.device(("cuda" if count else "cpu") if name == "auto" else name)


def _is_device(name: object) -> bool:
    return isinstance(name, str) and re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,4})?", name) is not None


@dataclass(frozen=True)
class TrainSettings:
    """Settings of one training run; a value out of range raises TrainingError.

    - `image_size`: side of the square images, in pixels, at most `MAX_IMAGE_SIZE`.
    - `crop_mode`: how pictures become squares, see `torchsnow.source.Framing`.
    - `grey_range`: the values of 16-bit greys that become black and white, see there too.
    - `lr`: learning rate after the warm-up, from where it falls to 0 along a cosine.
    - `warmup_epochs`: epochs in which the learning rate rises linearly from near 0; fewer than `epochs`.
    - `label_smoothing`: share of the label that is spread evenly over all classes (Szegedy et al., "Rethinking the
      Inception Architecture", CVPR 2016, section 7).
    - `class_weights`: "balanced" weighs the loss of a class by the inverse of its share of the training images.
    - `augmentation`: one of `torchsnow.data.AUGMENTATIONS`.
    - `precision`: what the source computes in; must be that of the source at hand.
    - `amp`: bfloat16 autocast of the trained part, on CUDA only.
    - `patience`: stop after so many epochs without a better model; None never does.
    - `device`: "auto" is CUDA where there is one, else the CPU.
    - `num_workers`: processes that load images besides the main one.
    - `store_bytes`: at most so many bytes of stored features (see `torchsnow.train.store`); 0 stores none.
    """

    epochs: int = 15
    batch_size: int = 32
    image_size: int = 224
    crop_mode: Literal["squash", "center", "border"] = "squash"
    grey_range: tuple[int, int] = GREYS
    lr: float = 5e-3
    optimizer: Literal["adamw", "sgd"] = "adamw"
    weight_decay: float = 0.05
    warmup_epochs: int = 0
    label_smoothing: float = 0.1
    class_weights: Literal["none", "balanced"] = "none"
    augmentation: str = "flip"
    precision: Precision = "fp32"
    amp: bool = False
    patience: int | None = None
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    num_workers: int = 0
    store_bytes: int = 16 * 2**30

    def __post_init__(self) -> None:
        if self.batch_size == 1:
            raise TrainingError(
                "batch_size is 1, and batch normalisation cannot estimate a variance from one image; use 2 or more"
            )
        for name, lowest in _WHOLE_FROM.items():
            self._require(name, _is_integer(getattr(self, name), lowest), f"a whole number of {lowest} or more")
        self._require("seed", self.seed < 2**64, "a whole number below 2^64")
        self._require("image_size", self.image_size <= MAX_IMAGE_SIZE, f"{MAX_IMAGE_SIZE} pixels or fewer")
        for name, choices in _CHOICES.items():
            self._require(name, getattr(self, name) in choices, f"one of {', '.join(choices)}")
        greys: Any = self.grey_range
        if isinstance(greys, list):  # as JSON and YAML have it
            object.__setattr__(self, "grey_range", greys := tuple(greys))
        is_range = isinstance(greys, tuple) and len(greys) == 2 and all(_is_integer(value, 0) for value in greys)
        is_range = is_range and greys[0] < greys[1] <= GREYS[1]
        self._require("grey_range", is_range, "two whole numbers, the lower first, from 0 to 65535")
        self._require("device", _is_device(self.device), _DEVICES)
        self._require(
            "patience", self.patience is None or _is_integer(self.patience, 1), "None or a whole number from 1"
        )
        self._require("lr", _is_number(self.lr) and self.lr > 0, "a number above 0")
        self._require("weight_decay", _is_number(self.weight_decay) and self.weight_decay >= 0, "0 or more")
        smoothing = self.label_smoothing
        self._require("label_smoothing", _is_number(smoothing) and 0 <= smoothing < 1, "0 or more and less than 1")
        self._require("warmup_epochs", self.warmup_epochs < self.epochs, f"fewer than the {self.epochs} epochs")
        self._require("amp", isinstance(self.amp, bool), "true or false")

    def _require(self, name: str, fulfilled: bool, expected: str) -> None:
        if not fulfilled:
            raise TrainingError(f"{name} is {getattr(self, name)!r}; expected {expected}")

    @property
    def framing(self) -> Framing:
        """How pictures become what the source sees."""
        return Framing(self.image_size, self.crop_mode, self.grey_range)

    def validate_shared_memory(self) -> None:
        """Raise TrainingError when worker processes have no room to hand their batches over."""
        needed = _BATCHES_PER_WORKER * self.num_workers * self.batch_size * 3 * self.image_size**2 * 4
        if self.num_workers and _SHARED_MEMORY.is_dir():
            free = shutil.disk_usage(_SHARED_MEMORY).free
            if free < needed:
                raise TrainingError(
                    f"with --num-workers {self.num_workers}, batches need {needed / 1e6:,.1f} MB of shared memory, and "
                    f"{_SHARED_MEMORY} has {free / 1e6:,.1f} MB left; {MORE_ROOM}"
                )

    def torch_device(self) -> torch.device:
        """The device to train on. Raises TrainingError for "cuda" where there is none."""
        return torch_device(self.device)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainSettings:
        """From `to_dict`; raises TrainingError for missing or unknown settings, or values out of range."""
        unknown = sorted(set(values) ^ {field.name for field in fields(cls)})
        if unknown:
            raise TrainingError(f"the training settings differ from the expected ones in: {', '.join(unknown)}")
        return cls(**values)


def _is_integer(value: object, lowest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= lowest


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
