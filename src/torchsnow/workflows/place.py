"""Where trained tasks go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from torchsnow.data import ImageSet, Splits
from torchsnow.errors import HubError
from torchsnow.hub import Entry, Hub, is_hub
from torchsnow.model import SnowModel
from torchsnow.source import Source
from torchsnow.task_file import make_task
from torchsnow.task_file.info import Limits
from torchsnow.task_file.labels import Thresholds
from torchsnow.train import FitResult, Metrics, RunFolder
from torchsnow.workflows.evaluation import Change, change_since, limits_of
from torchsnow.workflows.recipe import Recipe


@dataclass(frozen=True)
class Training:
    """What is trained: a task, on data by name and split, by a recipe with nothing left to choose.

    `pool` holds the images that were decoded. `former` says in which split images were for the version whose place the
    task takes, by the digests of their contents.
    """

    name: str
    data: str
    splits: Splits
    run: RunFolder
    recipe: Recipe
    pool: ImageSet
    former: Mapping[str, str] = field(default_factory=dict)

    def limits(self, result: FitResult) -> Limits:
        """What the validation images say of a result; nothing of one that is no delta."""
        if not isinstance(result.model, SnowModel):
            return Limits()
        return limits_of(
            result.model, self.pool.with_examples(self.splits.val, self.splits.classes), self.recipe.settings
        )


class Place:
    """The hub that trained tasks go to, made when the first one comes."""

    def __init__(self, path: Path, source: Source, *, replace: bool = False) -> None:
        """With `replace`, tasks of the same names become former versions. Raises HubError for a hub that is on another
        source."""
        self.path, self.source, self.replace = path, source, replace
        self._hub = Hub.open(path, source) if is_hub(path) else None

    def make(self) -> Hub:
        """The hub, made if there is none. Raises HubError."""
        self._hub = self._hub or Hub.create(self.path, self.source)
        return self._hub

    def put(self, training: Training, result: FitResult, test: Metrics | None, limits: Limits) -> Entry:
        """Add what was trained, with what validation images say of it; it takes the place of a former stage of the same
        run. Raises HubError."""
        run, recipe = training.run, training.recipe
        about = {
            **recipe.settings.to_dict(), "method": recipe.method, "preset": recipe.preset, "data": training.data
        }  # fmt: skip
        metrics = {"val": result.metrics.to_dict(), "test": None if test is None else test.to_dict()}
        assert isinstance(result.model, SnowModel)
        delta, classes, framing = result.model.delta, training.splits.classes, recipe.settings.framing
        task = make_task(self.source, delta, training.name, classes, framing, about, metrics, limits)
        try:
            entry = self.make().add(task, self.replace, amends=run.read_shipped())
        except HubError as error:
            raise HubError(f"{error}. The training is not lost: resume the run (--resume) to add its task") from error
        run.write_shipped(entry.sha256)
        return entry

    def change(self, training: Training, logits: Tensor, thresholds: Thresholds) -> Change | None:
        """What the task that was put last changes, by its logits (N, num_classes) for the test images, since the
        version whose place it took; None where there is none that can be read, or none with the same classes."""
        hub, name = self._hub, training.name
        try:
            former = None if hub is None or name not in hub.former() else hub.version(name, hub.former()[name][0])
        except HubError:  # the hub's own verbs say what is wrong with it
            return None
        if former is None:
            return None
        return change_since(former, self.source, training.splits, logits, thresholds, training.former)

    def former_run(self, name: str, run: RunFolder, *, resume: bool) -> RunFolder | None:
        """The run of the version of a task whose place another run takes, if it is in that folder or next to it."""
        versions = () if self._hub is None else self._hub.index().versions(name)
        if resume and versions and versions[0].sha256 == run.read_shipped():
            versions = versions[1:]  # the first is a stage of the run that goes on
        return run.run_of(versions[0].sha256) if versions else None
