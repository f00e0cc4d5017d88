"""What a lifelong evaluation consists of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from torchsnow.errors import ExperimentError
from torchsnow.methods import METHODS
from torchsnow.train import TrainSettings


@dataclass(frozen=True)
class LifelongSettings:
    """A sequence of tasks and the budget of each; a value out of range raises a TorchsnowError.

    - `data`: what `load_data` takes, in the order of the sequence. With `classes_per_task` each is cut into tasks of
      so many classes, in the order of its classes.
    - `source`, `weights`: as for `load_source`.
    - `epochs`, `image_size` (pixels), `batch_size`, `augmentation`, `seed`: of every task, for every learner.
    - `train_images`, `val_images`, `test_images`: subsamples of every task; None takes all.
    """

    data: tuple[str, ...]
    source: str = "bundled"
    weights: str = "pretrained"
    classes_per_task: int | None = None
    epochs: int = 15
    image_size: int = 224
    batch_size: int = 32
    augmentation: str = "flip"
    train_images: int | None = None
    val_images: int | None = None
    test_images: int | None = None
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        if not self.data:
            raise ExperimentError("name at least one data set")
        if len(set(self.data)) < len(self.data):
            raise ExperimentError(f"data lists something twice: {', '.join(self.data)}")
        for name, lowest in (("classes_per_task", 2), ("train_images", 2), ("val_images", 1), ("test_images", 1)):
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise ExperimentError(f"{name} is {value}; expected {lowest} or more")
        self.training("snow")

    def training(self, method: str) -> TrainSettings:
        """The budget of one task, with the method's own learning rate."""
        return TrainSettings(
            epochs=self.epochs,
            batch_size=self.batch_size,
            image_size=self.image_size,
            lr=METHODS[method].lr,
            warmup_epochs=1 if self.epochs > 1 else 0,
            augmentation=self.augmentation,
            seed=self.seed,
            device=self.device,  # type: ignore[arg-type] # checked by the settings
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "data": list(self.data)}

    def refuse_other(self, stored: Mapping[str, Any], place: str) -> None:
        """Raise ExperimentError unless results under `stored` settings can go on under these.

        More data at the end is welcome; anything else would mix what cannot be compared.
        """
        own = self.to_dict()
        names = [field.name for field in fields(self) if field.name != "data"]
        odd = [name for name in names if stored.get(name) != own[name]]
        if odd:
            raise ExperimentError(
                f"{place} holds a sequence with {odd[0]} = {stored.get(odd[0])}, not {own[odd[0]]}: results of "
                "different budgets cannot be compared; choose another folder"
            )
        before = stored.get("data", [])
        if own["data"][: len(before)] != before:
            raise ExperimentError(
                f"{place} holds a sequence that begins with {', '.join(before)}: more data can only follow at the "
                "end; choose another folder"
            )
