"""What the verbs do, without the command line: from a data set to a task in a hub, and how good it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from dataclasses import replace as replaced
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchsnow.data import Example, ImageSet, LoadedData, Splits, eval_transform, make_splits, prepare
from torchsnow.data.checking import advice_on_greys
from torchsnow.data.splits import parts_in, reduced
from torchsnow.errors import DivergedError, HubError, TrainingError
from torchsnow.hub import Hub, is_hub, validate_local
from torchsnow.io.files import validate_writable_folder
from torchsnow.methods import kind_of
from torchsnow.methods.advice import below_probe
from torchsnow.methods.head import probe_metrics
from torchsnow.model import SnowModel
from torchsnow.source import Framing, InputConfig, Source
from torchsnow.source.config import GREYS
from torchsnow.task_file import stored_bytes, validate_task_name, validate_task_size
from torchsnow.train import FitResult, Method, Metrics, RunFolder, Stopped, TaskRun, TrainSettings, fit_tasks
from torchsnow.train.batches import plain_images, run_images
from torchsnow.train.evaluate import compute_metrics, predict
from torchsnow.train.loop import Loop
from torchsnow.train.ranks import here
from torchsnow.workflows.evaluation import Change
from torchsnow.workflows.near_duplicates import warn_of_duplicates
from torchsnow.workflows.place import Place, Training
from torchsnow.workflows.recipe import Recipe

if TYPE_CHECKING:
    from torchsnow.export.quantize import Measured

CALIBRATION_IMAGES, MEASURED_IMAGES = 200, 1000  # of an export to int8, at most


@dataclass(frozen=True)
class TrainedTask:
    """A finished training: validation and, where the data has one, test metrics; times in seconds.

    `hub` is None for a method whose result no hub can hold: a network of its own, whose weights are in the run folder.
    `change` is since the version that it replaced, on the test images. `probe_accuracy` is that of a linear probe on
    the validation split: what the method started as, or otherwise one on the source's last features; `warning` says
    what to try if the task is worse.
    """

    name: str
    hub: Path | None
    run: Path
    fit: FitResult
    test: Metrics | None
    change: Change | None
    probe_accuracy: float
    warning: str | None
    size_bytes: int
    seconds: float

    def __repr__(self) -> str:
        tested = "" if self.test is None else f", test {self.test.accuracy:.1%} of {self.test.num_images} images"
        return f"TrainedTask({self.name!r}, validation {self.fit.metrics.accuracy:.1%}{tested})"

    @property
    def alone(self) -> bool:
        """Whether the delta ended without layers of its own."""
        model = self.fit.model
        return isinstance(model, SnowModel) and model.delta.body is None

    def summary(self) -> dict[str, Any]:
        """The main figures as plain JSON values."""
        return {
            "task": self.name,
            "hub": None if self.hub is None else str(self.hub),
            "run": str(self.run),
            "best_epoch": self.fit.best.epoch,
            "val_accuracy": self.fit.metrics.accuracy,
            "val_balanced_accuracy": self.fit.metrics.balanced_accuracy,
            "probe_val_accuracy": self.probe_accuracy,
            "test_accuracy": None if self.test is None else self.test.accuracy,
            "test_balanced_accuracy": None if self.test is None else self.test.balanced_accuracy,
            "test_majority_share": None if self.test is None else self.test.majority_share,
            "test_images": 0 if self.test is None else self.test.num_images,
            "change": None if self.change is None else {**asdict(self.change), "p_value": self.change.p_value},
            "size_bytes": self.size_bytes,
            "head_alone": self.alone,
            "seconds": round(self.seconds, 1),
            "warning": self.warning,
        }


def validate_run(
    name: str, hub_path: Path | None, run: RunFolder, *, resume: bool = False, replace: bool = False
) -> None:
    """Raise a TorchsnowError for what would otherwise fail when a training begins or is done.

    That is a name that cannot be a task's or is taken, a folder that cannot be written into or become a hub, a run
    folder that another process owns, that is taken (unless `resume`) or that lies inside the hub.
    """
    validate_task_name(name)
    run.validate_unowned()
    validate_writable_folder(run.path, TrainingError)
    if not resume:
        run.validate_vacant()
    if hub_path is None:
        return
    validate_local(hub_path)
    if run.path.resolve().is_relative_to(hub_path.resolve()):
        raise HubError(f"the run folder {run.path} lies inside the hub {hub_path}; choose another run folder")
    if not is_hub(hub_path):
        Hub.validate_vacant(hub_path)
    validate_writable_folder(hub_path, HubError)
    if not is_hub(hub_path):
        return
    hub = Hub.open(hub_path)
    with hub.folder.locked():
        validate_writable_folder(hub.folder.task_folder(name), HubError)
    entry = hub.index().tasks.get(name)
    if entry is not None and not replace and not (resume and entry.sha256 == run.read_shipped()):
        raise HubError(
            f"the hub {hub_path} has a task {name!r} already; choose another name, or replace it with --replace"
        )


def validate_hub_choice(method: str, preset: str, hub_path: Path | None, *, replace: bool = False) -> None:
    """Raise TrainingError for a method that does not exist, or one that needs a hub without one, or the reverse."""
    kind = kind_of(method, preset)
    if kind.is_delta and hub_path is None:
        raise TrainingError(f"the method {method!r} trains a task for a hub: name the hub's folder (--hub)")
    if not kind.is_delta and (hub_path is not None or replace):
        invalid = "the hub" if hub_path is not None else "--replace"
        raise TrainingError(
            f"the method {method!r} does not train a delta, and a hub holds nothing else: leave out {invalid}; what "
            "was trained stays in the run folder"
        )


def train_task(
    data: LoadedData,
    name: str,
    run: RunFolder,
    recipe: Recipe,
    source: Source,
    hub: Place | None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    say: Callable[[str], None] | None = None,
) -> TrainedTask:
    """Train one task and, if the method makes a delta, add it to a hub, which is made if there is none.

    A method that starts as a linear probe adds that at once, as a first stage of the task, and an interruption adds the
    best model until then. `say` is told so, what was chosen and why; without it nothing is shown.

    The split is drawn by the settings' seed and kept in the run folder; images stay where they were in that of the
    version whose place the task takes, if it is in the same folder or next to it. A resumed run keeps what it was
    started with. With `overwrite` a former run in the folder is deleted, once nothing more can be refused.
    What can be refused is refused before training starts, with a TorchsnowError, a task too large for its file among
    it; when only the hub fails in the end, resuming the run adds the task.
    """
    start_s, tell = time.monotonic(), say or silent
    path, replace = (None, False) if hub is None else (hub.path, hub.replace)
    validate_hub_choice(recipe.method, recipe.preset, path, replace=replace)
    validate_run(name, path, run, resume=resume or overwrite, replace=replace)
    if resume:
        run.validate_begun()
    recipe = recipe.for_source(source)
    with run.owned():
        is_drawn = resume and run.splits.exists()
        splits, former = split_of(name, data, run, recipe, hub, resume=is_drawn, say=tell)
        task = prepared(name, splits, run, recipe, source, resume=resume, say=tell)
        if overwrite and not resume and run.args.exists():
            run.clear()
        pool = plain_images(source.input_config, task.settings.framing)
        training = Training(name, data.name, splits, run, replaced(recipe, settings=task.settings), pool, former)
        warn(data, training, None if is_drawn else source, tell)

        def stage(result: FitResult, what: str) -> None:
            if hub is not None and (task.method.starts_as_probe or result.best.epoch > 0):
                put_stage(training, hub, result, what, tell)

        deadline_s = None if recipe.time_s is None else start_s + recipe.time_s
        on_start = partial(stage, what="usable now")
        task = replaced(task, name="", pool=pool, on_start=on_start, deadline_s=deadline_s)
        try:
            (result,) = fit_tasks([task], resume=resume, quiet=say is None)
        except Stopped as stop:
            if (best_so_far := stop.best_so_far[0]) is not None:
                stage(best_so_far(), "the best so far")
            raise
        if isinstance(result, DivergedError):
            raise result
        return complete(training, task.method, result, hub, start_s)


def split_of(
    name: str,
    data: LoadedData,
    run: RunFolder,
    recipe: Recipe,
    hub: Place | None,
    *,
    resume: bool,
    say: Callable[[str], None],
) -> tuple[Splits, dict[str, str]]:
    """The split of a task, as it was when its run was started or drawn anew; and in which split images were, by digest,
    in the run of the version whose place the task takes, where that run is in the same folder or next to it."""
    former_run = None if hub is None else hub.former_run(name, run, resume=resume)
    former = {} if former_run is None else parts_in(former_run.splits)
    if resume:
        return Splits.load(run.splits, data), former
    if former_run is not None and "all" in data.splits and not former.keys().isdisjoint(data.digests.values()):
        say(f"images stay in the splits that they had in {former_run.path}; others are shared out")
    return make_splits(data, seed=recipe.settings.seed, former=former), former


def follow_task(recipe: Recipe, source: Source) -> None:
    """Compute the share of this process of what the first of several trains, with the same recipe on the same source.

    Nothing is written. Raises what `train_task` does.
    """
    ranks, device = here(), recipe.settings.torch_device()
    with ranks.watched():
        ranks.join(device)
        told = ranks.said(None, device)
    splits, settings = Splits.from_dict(told["splits"]), TrainSettings.from_dict(told["training"])
    learner = replaced(recipe, settings=settings).learner(source, len(splits.classes))
    Loop(TaskRun(learner, splits, settings, RunFolder(told["run"]))).follow()


def warn(data: LoadedData, training: Training, source: Source | None, say: Callable[[str], None]) -> None:
    """Say and log what is odd about images and their split; with a source, which looks at them, near-duplicates too."""
    splits, run, settings = training.splits, training.run, training.recipe.settings
    warnings = [*splits.warnings(), *grey_warnings(data, settings)]
    if source is not None:
        source.to(settings.torch_device())
        warnings += warn_of_duplicates([splits], [run], source, training.pool)
    for sentence in (*data.notes, *warnings):
        run.log(f"warning: {sentence}")
    for sentence in warnings:
        say(f"warning: {sentence}")


def put_stage(training: Training, hub: Place, result: FitResult, what: str, say: Callable[[str], None]) -> None:
    """Put a task into a hub before its training is complete, without a look at the test split. Raises HubError."""
    hub.put(training, result, None, training.limits(result))
    say(f"{what}: {on_validation(result.metrics)}; task {training.name!r} is in the hub {hub.path}")


def prepared(
    name: str,
    splits: Splits,
    run: RunFolder,
    recipe: Recipe,
    source: Source,
    *,
    resume: bool,
    say: Callable[[str], None],
) -> TaskRun:
    """A task that can be trained. Raises TaskFileError for one too large for its file."""
    learner = recipe.learner(source, len(splits.classes))
    if isinstance(learner.model, SnowModel):
        validate_task_size(source, learner.model.delta.spec, splits.classes)
    goes_on = resume and run.args.exists() and bool(recipe.auto or recipe.chosen)
    recipe = recipe.as_started(run) if goes_on else recipe.for_task(splits, source, say)
    return TaskRun(learner, splits, recipe.settings, run, chosen=recipe.chosen, name=name)


def grey_warnings(data: LoadedData, settings: TrainSettings) -> list[str]:
    """What to say when images of 16-bit grey use little of that range, and none was given."""
    return advice_on_greys(list(data.greys.values())) if tuple(settings.grey_range) == GREYS else []


def silent(line: str) -> None:
    """For who wants to be told nothing."""


def on_validation(metrics: Metrics) -> str:
    """An accuracy on validation images in words, and what to compare it with."""
    low, high = metrics.accuracy_interval
    if metrics.mean_average_precision is not None:
        return (
            f"a mean average precision of {metrics.mean_average_precision:.1%} on {metrics.num_images} validation "
            f"images, and all labels right on {metrics.accuracy:.1%} of them (95%: {low:.0%} to {high:.0%})"
        )
    return (
        f"{metrics.accuracy:.1%} on {metrics.num_images} validation images (95%: {low:.0%} to {high:.0%}; always "
        f"naming the largest class: {metrics.majority_share:.0%})"
    )


def complete(training: Training, learner: Method, result: FitResult, hub: Place | None, start_s: float) -> TrainedTask:
    """What comes after a fit: a probe to compare with, the test split, the hub, and pictures, which may fail.

    `start_s` is when the training began, by the monotonic clock.
    """
    splits, run, config = training.splits, training.run, learner.input_config
    recipe, settings = training.recipe, training.recipe.settings
    if learner.starts_as_probe:
        probe_accuracy = result.history[0].val_accuracy
    else:
        shown = run_images(splits, config, settings, training.pool)
        probe_accuracy = probe_metrics(learner.source, shown, settings).accuracy
    warning = below_probe(result, probe_accuracy, settings, recipe.method, recipe.preset)
    if warning is not None:
        run.log(f"warning: {warning}")
    # the test split is looked at once, when nothing is left to choose
    images = training.pool.with_examples(splits.test, splits.classes)
    logits, labels = predict(result.model, images, settings.batch_size, settings.torch_device())
    limits = training.limits(result)
    test = compute_metrics(logits, labels, splits.classes, limits.thresholds) if splits.test else None
    metrics = {"val": result.metrics.to_dict(), "test": None if test is None else test.to_dict()}
    run.write_metrics({**metrics, "probe": {"val_accuracy": probe_accuracy}})
    shipped = learner.shipped_state
    size_bytes = stored_bytes(shipped()) if hub is None else hub.put(training, result, test, limits).size_bytes
    from torchsnow.plots import draw_run, without_harm  # here: drawing is loaded when there is something to draw

    with without_harm(run.log, "the run"):
        draw_run(run, result)
    change = None if hub is None or test is None else hub.change(training, logits, limits.thresholds)
    path = None if hub is None else hub.path
    seconds = time.monotonic() - start_s
    return TrainedTask(
        training.name, path, run.path, result, test, change, probe_accuracy, warning, size_bytes, seconds
    )


def _plain_images(
    examples: Iterable[Example], classes: Sequence[str], config: InputConfig, framing: Framing
) -> ImageSet:
    """Images as they are at evaluation, each read once."""
    transform = eval_transform(config, framing)
    return ImageSet(examples, classes, transform, prepare(config, framing), cache_bytes=0)


def int8_images(data: LoadedData, config: InputConfig, framing: Framing) -> Measured:
    """Images of the training split to calibrate on, and of the test split (where there is none, val) to measure with.

    The splits are the data's own, or those that a training with seed 0 draws. Raises what `make_splits` raises.
    """
    from torchsnow.export.quantize import Measured

    limits = {"train_images": CALIBRATION_IMAGES, "val_images": MEASURED_IMAGES, "test_images": MEASURED_IMAGES}
    splits = reduced(make_splits(data), **limits)
    calibration, held_out = (
        _plain_images(examples, splits.classes, config, framing)
        for examples in (splits.train, splits.test or splits.val)
    )
    return Measured(data.name, splits.classes, calibration, held_out)
