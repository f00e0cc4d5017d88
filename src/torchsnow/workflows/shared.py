"""What `train-many` does, without the command line: several tasks trained in one run, and added to one hub."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from dataclasses import replace as replaced
from functools import partial
from pathlib import Path

from torchsnow.data import LoadedData, Splits, TaskTable, make_splits, split_table
from torchsnow.errors import DivergedError, TrainingError
from torchsnow.io.lock import FolderLock
from torchsnow.methods import kind_of
from torchsnow.source import Source
from torchsnow.train import RunFolder
from torchsnow.train.batches import plain_images
from torchsnow.train.fit import fit_tasks
from torchsnow.workflows.near_duplicates import warn_of_duplicates
from torchsnow.workflows.place import Place, Training
from torchsnow.workflows.recipe import Recipe
from torchsnow.workflows.training import TrainedTask, complete, grey_warnings, prepared, validate_run


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


def validate_tasks(
    names: Sequence[str], hub_path: Path, runs: Path, *, resume: bool = False, replace: bool = False
) -> None:
    """Raise a TorchsnowError for what would fail later: a name given twice, folders of another process, or what
    `validate_run` refuses."""
    FolderLock(runs, TrainingError).validate_unheld()
    for name in names:
        if names.count(name) > 1:
            raise TrainingError(f"the task {name!r} is given twice; every task needs a name of its own")
        run = run_folder(runs, name)
        # a run that was stopped may have begun some of its tasks only
        validate_run(name, hub_path, run, resume=resume, replace=replace)


def validate_delta_method(method: str, preset: str) -> None:
    """Raise TrainingError for a method that does not exist or does not train a delta."""
    if not kind_of(method, preset).is_delta:
        raise TrainingError(f"the method {method!r} does not train a delta, so its tasks cannot share a source pass")


def run_folder(runs: Path, name: str) -> RunFolder:
    """Where a task's run is."""
    return RunFolder(runs / name)


def train_tasks(
    groups: Sequence[TaskGroup],
    runs: Path,
    recipe: Recipe,
    source: Source,
    hub: Place,
    *,
    resume: bool = False,
    say: Callable[[str], None] | None = None,
) -> tuple[dict[str, TrainedTask], dict[str, DivergedError]]:
    """Train all tasks, those of a group with one source pass per image, and add them to a hub, which is made if there
    is none.

    Returns the tasks that were trained, and why others were given up. What is to be chosen is chosen as for a task
    alone, but for the image size, which is one for all. Everything that can be refused is refused before training
    starts. Raises what `torchsnow.workflows.training.train_task` raises.
    """
    start_s = time.monotonic()
    validate_delta_method(recipe.method, recipe.preset)
    names = [name for group in groups for name in group.tasks]
    validate_tasks(names, hub.path, runs, resume=resume, replace=hub.replace)
    recipe = recipe.for_source(source)
    splits = [group.splits(recipe.settings.seed) for group in groups]
    data = {name: loaded for group in groups for name, loaded in group.tasks.items()}
    done: dict[str, TrainedTask] = {}
    failed: dict[str, DivergedError] = {}

    def tell(name: str, line: str) -> None:
        if say is not None:
            say(f"{name}: {line}" if name else line)

    for name, own in ((name, own) for group in splits for name, own in group.items()):
        for sentence in (*own.warnings(), *grey_warnings(data[name], recipe.settings)):
            tell("", f"warning: {name}: {sentence}")
    with _owned(runs, names) as folders:
        recipe = recipe.for_one_size([one for group in splits for one in group.values()], source, partial(tell, ""))
        planned = [
            [
                prepared(name, own, folders[name], recipe, source, resume=resume, say=partial(tell, name))
                for name, own in group.items()
            ]
            for group in splits
        ]
        for group in planned:
            pool = plain_images(source.input_config, group[0].settings.framing)
            if not (resume and any(task.run.args.exists() for task in group)):
                source.to(group[0].settings.torch_device())
                own_splits, runs_of_group = [task.splits for task in group], [task.run for task in group]
                for sentence in warn_of_duplicates(own_splits, runs_of_group, source, pool):
                    tell("", f"warning: {', '.join(task.name for task in group)}: {sentence}")
            results = fit_tasks([replaced(task, pool=pool) for task in group], resume=resume, quiet=say is None)
            for task, result in zip(group, results, strict=True):
                if isinstance(result, DivergedError):
                    failed[task.name] = result
                    continue
                own_recipe = replaced(recipe, settings=task.settings)
                training = Training(task.name, data[task.name].name, task.splits, task.run, own_recipe, pool)
                done[task.name] = complete(training, task.method, result, hub, start_s)
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
