"""What `train-many` does, without the command line: several tasks trained in one run, and added to one hub."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from dataclasses import replace as replaced
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from torchsnow.cluster import Call, cluster
from torchsnow.data import LoadedData, Splits, TaskTable, make_splits, split_table
from torchsnow.errors import DivergedError, TorchsnowError, TrainingError
from torchsnow.hub import Hub
from torchsnow.io.lock import FolderLock
from torchsnow.methods import kind_of
from torchsnow.source import Source
from torchsnow.train import RunFolder
from torchsnow.train.batches import plain_images
from torchsnow.train.fit import fit_tasks
from torchsnow.workflows.near_duplicates import warn_of_duplicates
from torchsnow.workflows.place import Place, Training
from torchsnow.workflows.recipe import Recipe
from torchsnow.workflows.training import TrainedTask, complete, grey_warnings, prepared, silent, validate_run

Say = Callable[[str], None]


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
            return {name: own for name, own in split_table(self.table, seed=seed).items() if name in self.tasks}
        return {name: make_splits(data, seed=seed) for name, data in self.tasks.items()}

    def chunks(self, most: int) -> list[TaskGroup]:
        """The tasks dealt to at most so many groups."""
        dealt = [list(self.tasks)[number::most] for number in range(min(most, len(self.tasks)))]
        return [replaced(self, tasks={name: self.tasks[name] for name in names}) for names in dealt]


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
    say: Say | None = None,
) -> tuple[dict[str, TrainedTask], Mapping[str, TorchsnowError]]:
    """Train all tasks, those of a group with one source pass per image, and add them to a hub, which is made if there
    is none.

    Returns the tasks that were trained, and why others were given up. What is to be chosen is chosen as for a task
    alone, but for the image size, which is one for all. Everything that can be refused is refused before training
    starts. Raises what `torchsnow.workflows.training.train_task` raises.
    """
    with _begun(groups, runs, recipe, source, hub, resume=resume, say=say) as recipe:
        return _train(groups, runs, recipe, source, hub, resume=resume, say=say)


def spread_tasks(
    groups: Sequence[TaskGroup],
    runs: Path,
    recipe: Recipe,
    source: Source,
    hub: Place,
    address: str,
    *,
    resume: bool = False,
    say: Say | None = None,
) -> tuple[list[dict[str, Any]], Mapping[str, TorchsnowError]]:
    """As `train_tasks`, on the Ray cluster at an address, whose machines have the same files under the same paths.

    The tasks of a table are dealt to as many processes as the cluster has, those of one share its source passes.
    Returns the summaries of the tasks that were trained, and why others were not. What dies is continued elsewhere.
    """
    summaries: dict[str, dict[str, Any]] = {}
    failed: dict[str, TorchsnowError] = {}
    device = recipe.settings.device
    with _begun(groups, runs, recipe, source, hub, resume=resume, say=say) as recipe, cluster(address) as machines:
        hub.make()  # before several processes do
        chunks = [chunk for group in groups for chunk in group.chunks(machines.num_calls(device))]
        calls = [Call((chunk, runs, recipe, hub.path, hub.replace)) for chunk in chunks]
        for number, result in machines.spread(_train_chunk, calls, device):
            if isinstance(result, TorchsnowError):
                failed |= dict.fromkeys(chunks[number].tasks, result)
                continue
            trained, given_up, lines = result
            summaries |= {one["task"]: one for one in trained}
            failed |= given_up
            for line in lines:
                (say or silent)(line)
    return [summaries[name] for group in groups for name in group.tasks if name in summaries], failed


def _train_chunk(
    chunk: TaskGroup, runs: Path, recipe: Recipe, hub: Path, replace: bool
) -> tuple[list[dict[str, Any]], dict[str, DivergedError], list[str]]:
    """In a process of a cluster, which keeps its source for the next chunk. The runs of one that died are continued."""
    source, lines = _source_of(hub), list[str]()
    place = Place(hub, source, replace=replace)
    done, failed = _train([chunk], runs, recipe, source, place, resume=True, say=lines.append)
    return [task.summary() for task in done.values()], failed, lines


@lru_cache(1)
def _source_of(hub: Path) -> Source:
    return Hub.open(hub).source


@contextmanager
def _begun(
    groups: Sequence[TaskGroup],
    runs: Path,
    recipe: Recipe,
    source: Source,
    hub: Place,
    *,
    resume: bool,
    say: Say | None,
) -> Iterator[Recipe]:
    """Own the folder of the runs, with a recipe for all tasks. Raises what can be refused before a training starts."""
    validate_delta_method(recipe.method, recipe.preset)
    names = [name for group in groups for name in group.tasks]
    validate_tasks(names, hub.path, runs, resume=resume, replace=hub.replace)
    recipe = recipe.for_source(source)
    splits = [one for group in groups for one in group.splits(recipe.settings.seed).values()]
    with FolderLock(runs, TrainingError).held():
        yield recipe.for_one_size(splits, source, say or silent)


def _train(
    groups: Sequence[TaskGroup],
    runs: Path,
    recipe: Recipe,
    source: Source,
    hub: Place,
    *,
    resume: bool,
    say: Say | None,
) -> tuple[dict[str, TrainedTask], dict[str, DivergedError]]:
    start_s = time.monotonic()
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
    with _owned(runs, data) as folders:
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
def _owned(runs: Path, names: Iterable[str]) -> Iterator[dict[str, RunFolder]]:
    """The run folders of some tasks, owned."""
    folders = {name: run_folder(runs, name) for name in names}
    with ExitStack() as owned:
        for folder in folders.values():
            owned.enter_context(folder.owned())
        yield folders
