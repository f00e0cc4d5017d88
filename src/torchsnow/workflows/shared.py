"""What `train-many` does, without the command line: several tasks trained in one run, and added to one hub."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from dataclasses import replace as replaced
from functools import partial
from pathlib import Path

from torchsnow.data import LoadedData, Splits, TaskTable, make_splits, split_table
from torchsnow.errors import DivergedError, TrainingError
from torchsnow.io.lock import FolderLock
from torchsnow.methods import kind_of, make_method
from torchsnow.model import SnowModel
from torchsnow.source import Source
from torchsnow.task_file import refuse_too_large
from torchsnow.train import RunFolder, TrainSettings
from torchsnow.train.auto import auto_sizes
from torchsnow.train.batches import plain_images
from torchsnow.train.fit import fit_tasks
from torchsnow.train.loop import TaskRun
from torchsnow.workflows.training import (
    Place,
    TrainedTask,
    Training,
    as_started,
    at_own_size,
    choose_settings,
    complete,
    refuse_taken,
)


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
) -> tuple[dict[str, TrainedTask], dict[str, DivergedError]]:
    """Train all tasks, those of a group with one source pass per image, and add them to a hub, which is made if there
    is none.

    Returns the tasks that were trained, and why others were given up. What `auto` names is chosen as for a task
    alone, but for the image size, which is one for all. Everything that can be refused is refused before training
    starts. Raises what `torchsnow.workflows.training.train_task` raises.
    """
    start_s = time.monotonic()
    refuse_method(method, preset)
    names = [name for group in groups for name in group.tasks]
    refuse_tasks(names, hub_path, runs, resume=resume, replace=replace)
    settings, auto = at_own_size(settings, auto, source)
    hub = Place(hub_path, source, replace=replace)
    splits = [group.splits(settings.seed) for group in groups]
    for name, own in ((name, own) for group in splits for name, own in group.items()):
        for sentence in own.warnings():
            say(f"warning: {name}: {sentence}")
    data = {name: loaded.name for group in groups for name, loaded in group.tasks.items()}
    done: dict[str, TrainedTask] = {}
    failed: dict[str, DivergedError] = {}
    with _owned(runs, names) as folders:
        settings, why_size = _one_size(settings, auto, [one for group in splits for one in group.values()], source)
        for reason in why_size.values():
            say(f"image_size {settings.image_size}: {reason}")
        make = partial(_task_run, method, preset, source, settings, set(auto) - {"image_size"}, why_size, resume, say)
        planned = [[make(name, own, folders[name]) for name, own in group.items()] for group in splits]
        for group in planned:
            pool = plain_images(source.input_config, group[0].settings.framing)
            results = fit_tasks([replaced(task, pool=pool) for task in group], resume=resume, quiet=quiet)
            for task, result in zip(group, results, strict=True):
                if isinstance(result, DivergedError):
                    failed[task.name] = result
                    continue
                training = Training(task.name, data[task.name], task.splits, task.settings, task.run, method, preset)
                done[task.name] = complete(training, task.method, result, hub, pool, start_s)
    return done, failed


@contextmanager
def _owned(runs: Path, names: Sequence[str]) -> Iterator[dict[str, RunFolder]]:
    """The run folders of some tasks, owned, and the folder that they are in."""
    folders = {name: run_folder(runs, name) for name in names}
    with ExitStack() as owned:
        owned.enter_context(FolderLock(runs, TrainingError).held())
        for folder in folders.values():
            owned.enter_context(folder.owned())
        yield folders


def _one_size(
    settings: TrainSettings, auto: Collection[str], splits: Sequence[Splits], source: Source
) -> tuple[TrainSettings, dict[str, str]]:
    """The settings with the image size chosen for all tasks, if it is to be."""
    train = {example.path: example for one in splits for example in one.train}
    everything = replaced(splits[0], train=tuple(train.values()))
    return auto_sizes(settings, set(auto) & {"image_size"}, everything, source.input_config.input_size[1])


def _task_run(
    method: str,
    preset: str,
    source: Source,
    settings: TrainSettings,
    auto: Collection[str],
    why_size: Mapping[str, str],
    resume: bool,
    say: Callable[[str], None],
    name: str,
    splits: Splits,
    run: RunFolder,
) -> TaskRun:
    """One task with its settings; that of a run that goes on has what it was started with."""
    make = partial(make_method, method, source, len(splits.classes), preset, settings.seed)
    learner = make()
    assert isinstance(learner.model, SnowModel)
    refuse_too_large(source, learner.model.delta.spec, splits.classes)
    if resume and run.args.exists():
        settings, chosen = as_started(settings, {*auto, *why_size}, run)
    else:
        settings, chosen = choose_settings(
            settings, auto, splits, make, source.input_config, lambda line: say(f"{line} ({name})")
        )
    return TaskRun(learner, splits, settings, run, chosen={**why_size, **chosen}, name=name)
