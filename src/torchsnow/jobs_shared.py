"""What `train-many` does, without the command line: several tasks trained in one run, and added to one hub."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from dataclasses import replace as replaced
from functools import partial
from pathlib import Path
from typing import cast

from torchsnow.data import LoadedData, Splits, TaskTable, make_splits, split_table
from torchsnow.errors import TrainingError
from torchsnow.hub import Hub
from torchsnow.jobs import TrainedTask, Training, as_started, complete, is_hub, refuse_taken, stores_features
from torchsnow.lock import FolderLock
from torchsnow.methods import kind_of, make_method
from torchsnow.source import Source
from torchsnow.task_file import refuse_too_large
from torchsnow.train import FitResult, RunFolder, TrainSettings
from torchsnow.train.auto import auto_sizes
from torchsnow.train.batches import plain_images, run_images
from torchsnow.train.range_test import auto_lr
from torchsnow.train.shared import fit_together
from torchsnow.train.streams import SharedMethod, SharedTask, Stream


@dataclass(frozen=True)
class TaskGroup:
    """Tasks that learn from the same images: their data by task name, and the table that it comes from.

    `table` is None for a task with images of its own.
    """

    tasks: Mapping[str, LoadedData]
    table: TaskTable | None = None

    def splits(self, seed: int) -> dict[str, Splits]:
        """The split of every task; one for all where there is a table. Raises DataError where that cannot be."""
        if self.table is not None:
            return split_table(self.table, seed=seed)
        return {name: make_splits(data, seed=seed) for name, data in self.tasks.items()}


def refuse_tasks(
    names: Sequence[str], hub_path: Path, runs: Path, *, resume: bool = False, replace: bool = False
) -> None:
    """Raise a TorchsnowError for what would fail later: a name given twice, folders of another process, or what
    `refuse_taken` refuses."""
    FolderLock(runs, TrainingError).refuse_held()
    for name in names:
        if names.count(name) > 1:
            raise TrainingError(f"the task {name!r} is given twice; every task needs a name of its own")
        run = run_folder(runs, name)
        # a run that was stopped may have begun some of its tasks only
        refuse_taken(name, hub_path, run, resume=resume, replace=replace)


def refuse_method(method: str, preset: str) -> None:
    """Raise TrainingError for a method that does not exist or does not train a delta."""
    if not kind_of(method, preset).is_delta:
        raise TrainingError(f"the method {method!r} does not train a delta, so its tasks cannot share a source pass")


def run_folder(runs: Path, name: str) -> RunFolder:
    """Where a task's run is."""
    return RunFolder(runs / name)


def train_tasks(
    groups: Sequence[TaskGroup],
    hub_path: Path,
    runs: Path,
    settings: TrainSettings,
    source: Source,
    *,
    method: str = "snow",
    preset: str = "default",
    resume: bool = False,
    replace: bool = False,
    quiet: bool = False,
    auto: Collection[str] = (),
    say: Callable[[str], None] = lambda line: None,
) -> tuple[dict[str, TrainedTask], dict[str, TrainingError]]:
    """Train all tasks with one source pass per step, and add them to a hub, which is made if there is none.

    Returns the tasks that were trained, and why others were given up. What `auto` names is chosen as for a task
    alone, but for the image size, which is one for all. Everything that can be refused is refused before training
    starts. Raises what `torchsnow.jobs.train_task` raises.
    """
    start = time.monotonic()
    refuse_method(method, preset)
    names = [name for group in groups for name in group.tasks]
    refuse_tasks(names, hub_path, runs, resume=resume, replace=replace)
    hub = Hub.open(hub_path, source) if is_hub(hub_path) else None
    splits = [group.splits(settings.seed) for group in groups]
    learn = partial(_learner, method, source, preset, settings.seed)
    data = {name: loaded.name for group in groups for name, loaded in group.tasks.items()}
    done: dict[str, TrainedTask] = {}
    with _owned(runs, names) as folders:
        streams = _streams(splits, folders, settings, source, learn, resume, auto, say)
        results = fit_together(streams, resume=resume, quiet=quiet)
        for task, pool in [(task, stream.pool) for stream in streams for task in stream.tasks]:
            result = results[task.name]
            if isinstance(result, FitResult):
                training = Training(task.name, data[task.name], task.splits, task.settings, task.run, method, preset)
                done[task.name] = complete(
                    training, task.method, result, source, hub_path, hub, pool, replace=replace, start=start
                )
                hub = hub or Hub.open(hub_path, source)
    return done, {name: result for name, result in results.items() if isinstance(result, TrainingError)}


@contextmanager
def _owned(runs: Path, names: Sequence[str]) -> Iterator[dict[str, RunFolder]]:
    """The run folders of some tasks, owned, and the folder that they are in."""
    folders = {name: run_folder(runs, name) for name in names}
    with ExitStack() as owned:
        owned.enter_context(FolderLock(runs, TrainingError).held())
        for folder in folders.values():
            owned.enter_context(folder.owned())
        yield folders


def _streams(
    splits: Sequence[Mapping[str, Splits]],
    folders: Mapping[str, RunFolder],
    settings: TrainSettings,
    source: Source,
    learn: Callable[[int], SharedMethod],
    resume: bool,
    auto: Collection[str],
    say: Callable[[str], None],
) -> list[Stream]:
    """The tasks of every group with their settings; those of a run that goes on have what it was started with."""
    settings, why_size = _one_size(settings, auto, [one for group in splits for one in group.values()], source)
    for reason in why_size.values():
        say(f"image_size {settings.image_size}: {reason}")
    streams = []
    for group in splits:
        stored = stores_features(learn(2), settings)
        sizes, why = auto_sizes(
            settings, set(auto) - {"image_size", "lr"}, _together(group), settings.image_size, stored
        )
        for name, reason in why.items():
            say(f"{name} {getattr(sizes, name)}: {reason} ({', '.join(group)})")
        tasks = []
        for name, own in group.items():
            run = folders[name]
            task = SharedTask(name, learn(len(own.classes)), own, sizes, run, {**why_size, **why})
            refuse_too_large(source, task.method.delta.spec, own.classes)
            begun = resume and run.args.exists()
            tasks.append(_as_begun(task, auto) if begun else _with_lr(task, auto, learn, say))
        streams.append(Stream(tasks, plain_images(source.input_config, settings.framing)))
    return streams


def _learner(method: str, source: Source, preset: str, seed: int, num_classes: int) -> SharedMethod:
    return cast("SharedMethod", make_method(method, source, num_classes, preset, seed))


def _together(splits: Mapping[str, Splits]) -> Splits:
    """The images of all tasks of a group as those of one."""
    first = next(iter(splits.values()))
    train = {example.path: example for one in splits.values() for example in one.train}
    return replaced(first, train=tuple(train.values()))


def _one_size(
    settings: TrainSettings, auto: Collection[str], splits: Sequence[Splits], source: Source
) -> tuple[TrainSettings, dict[str, str]]:
    """The settings with the image size chosen for all tasks, if it is to be: all images make one batch."""
    everything = _together({str(number): one for number, one in enumerate(splits)})
    return auto_sizes(settings, set(auto) & {"image_size"}, everything, source.input_config.input_size[1])


def _as_begun(task: SharedTask, auto: Collection[str]) -> SharedTask:
    """The task with the settings that its run was started with, where they were not given."""
    settings, chosen = as_started(task.settings, auto, task.run)
    return replaced(task, settings=settings, chosen=chosen)


def _with_lr(
    task: SharedTask, auto: Collection[str], learn: Callable[[int], SharedMethod], say: Callable[[str], None]
) -> SharedTask:
    """The task with a learning rate of its own, if that is to be chosen."""
    if "lr" not in auto or stores_features(task.method, task.settings):
        return task
    images = run_images(task.splits, task.method.input_config, task.settings)
    lr, why = auto_lr(partial(learn, len(task.splits.classes)), images, task.settings)
    say(f"lr {lr:g}: {why} ({task.name})")
    return replaced(task, settings=replaced(task.settings, lr=lr), chosen={**task.chosen, "lr": why})
