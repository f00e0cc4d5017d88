"""How a task is trained, and what of it is chosen by the task's images."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torchsnow.data import Splits
from torchsnow.errors import TrainingError
from torchsnow.methods import METHODS, make_method
from torchsnow.source import Source
from torchsnow.train import Method, RunFolder, TrainSettings
from torchsnow.train.auto import auto_sizes
from torchsnow.train.batches import run_images
from torchsnow.train.range_test import auto_lr
from torchsnow.train.ranks import Ranks

LEAST_PATIENCE = 10  # epochs from stored features


@dataclass(frozen=True)
class Recipe:
    """A method and its preset by name, with settings.

    What `auto` names of the settings (some of `torchsnow.train.AUTO`) is still to be chosen, the learning rate around
    the method's own; `chosen` says why others were chosen. No epoch shall continue after `time_s` seconds. `changes`
    are settings of a delta that differ from the preset (see `make_method`).
    """

    settings: TrainSettings
    method: str = "snow"
    preset: str = "default"
    auto: Collection[str] = ()
    time_s: float | None = None
    chosen: Mapping[str, str] = field(default_factory=dict)
    changes: Mapping[str, Any] = field(default_factory=dict)

    def learner(self, source: Source, num_classes: int) -> Method:
        """The method, before it has seen any image. Raises TrainingError for a name that there is not."""
        return make_method(self.method, source, num_classes, self.preset, self.settings.seed, self.changes)

    def for_source(self, source: Source) -> Recipe:
        """The recipe for a source that may take images of its own size alone.

        Raises SourceError where another size is given.
        """
        if not source.has_fixed_size:
            return self
        settings = self.settings
        if "image_size" in self.auto:
            settings = replace(settings, image_size=source.input_config.input_size[1])
        source.validate_size((settings.image_size, settings.image_size))
        return replace(self, settings=settings, auto=[name for name in self.auto if name != "image_size"])

    def for_one_size(self, splits: Sequence[Splits], source: Source, say: Callable[[str], None]) -> Recipe:
        """The recipe with the image size chosen for several tasks at once, if it is still to be."""
        train = {example.path: example for one in splits for example in one.train}
        everything = replace(splits[0], train=tuple(train.values()))
        auto = set(self.auto) & {"image_size"}
        settings, why = auto_sizes(self.settings, auto, everything, source.input_config.input_size[1])
        for reason in why.values():
            say(f"image_size {settings.image_size}: {reason}")
        return replace(self, settings=settings, auto=set(self.auto) - auto, chosen={**self.chosen, **why})

    def for_task(self, splits: Splits, source: Source, say: Callable[[str], None]) -> Recipe:
        """The recipe with nothing left to choose; `say` is told what was chosen, and why."""
        stored = self._stores_features(source, len(splits.classes))
        config = source.input_config
        settings, chosen = auto_sizes(self.settings, self.auto, splits, config.input_size[1], stored)
        for name, why in chosen.items():
            say(f"{name} {getattr(settings, name)}: {why}")
        if stored and "epochs" in self.auto and settings.patience is None:
            settings = replace(settings, patience=max(LEAST_PATIENCE, settings.epochs // 3))
            chosen["patience"] = "training stops when so many epochs bring nothing better"
        if "lr" in self.auto:
            settings, chosen["lr"] = replace(settings, lr=METHODS[self.method].lr), "the method's own"
            if not stored:  # a grid delta's rate fits all: its features are standardised
                images = run_images(splits, config, settings)
                lr, chosen["lr"] = auto_lr(lambda: self.learner(source, len(splits.classes)), images, settings)
                settings = replace(settings, lr=lr)
            say(f"lr {settings.lr:g}: {chosen['lr']}")
        return replace(self, settings=settings, auto=(), chosen={**self.chosen, **chosen})

    def validate_shared(self, source: Source, ranks: Ranks) -> None:
        """Raise TrainingError for what several processes cannot train together."""
        ranks.validate_device(self.settings.device)
        if ranks.count > 1 and self._stores_features(source, num_classes=2):
            raise TrainingError(
                f"the method {self.method!r} (preset {self.preset!r}) trains from stored features, where {ranks.count} "
                "processes are no faster than one: start it without torchrun"
            )

    def as_started(self, run: RunFolder) -> Recipe:
        """The recipe with what was chosen when a run was started, instead of being chosen again."""
        stored, chosen = run.read_settings()
        names = {*self.auto, *self.chosen, *chosen}
        settings = replace(self.settings, **{name: getattr(stored, name) for name in names})
        return replace(self, settings=settings, auto=(), chosen=chosen)

    def _stores_features(self, source: Source, num_classes: int) -> bool:
        """Whether the method trains from stored features, so that an epoch is cheap."""
        part = self.learner(source, num_classes).frozen_part(self.settings.image_size)
        return part is not None and self.settings.store_bytes > 0
