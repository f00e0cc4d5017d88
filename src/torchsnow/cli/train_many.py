"""`torchsnow train-many`: several tasks in one run, with one source pass per step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from torchsnow.cli.data_options import (
    HUB,
    DistinctNames,
    FollowLinks,
    GroupColumn,
    PathColumn,
    SplitColumn,
    validate_outside,
    with_option_groups,
)
from torchsnow.cli.output import counting, load_checked, note, percent, print_json, print_table, say
from torchsnow.cli.training_options import TrainingOptions, telling_how_to_resume

if TYPE_CHECKING:
    from torchsnow.workflows.shared import TaskGroup


@with_option_groups
def train_many(
    data: Annotated[
        list[str],
        typer.Argument(help="CSV with a column path and one per task (split is optional), or NAME=DATA; one or more."),
    ],
    options: TrainingOptions,
    hub: Annotated[Path, typer.Option(help="Folder of the hub; made if there is none.")] = HUB,
    path_column: PathColumn = "",
    split_column: SplitColumn = "",
    group_column: GroupColumn = "",
    follow_links: FollowLinks = False,
    distinct_names: DistinctNames = False,
    out: Annotated[Path, typer.Option(help="Folder of the run folders, one per task.")] = Path("runs"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the tasks' runs.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Replace tasks of these names.")] = False,
    ray: Annotated[
        str | None, typer.Option(help="Ray cluster: HOST:PORT, 'auto' or 'local'; its processes share the tasks.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, and no progress.")] = False,
) -> None:
    """Train several tasks in one run and add them to a hub.

    Each step is one source pass, over a batch of every CSV and every
    NAME=DATA. The tasks do not influence each other.

    After Ctrl-C or a crash, the same command with --resume continues.

    Example: torchsnow train-many labels.csv --hub my-hub --epochs 20
    """
    from torchsnow.train import RunFolder

    with telling_how_to_resume(lambda: any(RunFolder(run).args.exists() for run in out.glob("*"))):
        options.settings()  # what can be refused is refused before torch is loaded, and before anything slow

        from torchsnow.cluster import validate_ray
        from torchsnow.data import Columns
        from torchsnow.errors import TrainingError
        from torchsnow.workflows.place import Place
        from torchsnow.workflows.shared import spread_tasks, train_tasks, validate_delta_method, validate_tasks

        if ray is not None:
            validate_ray()

        recipe = options.recipe()
        validate_delta_method(recipe.method, recipe.preset)
        named = [word.partition("=")[0] for word in data if "=" in word and not Path(word).is_file()]
        validate_tasks(named, hub, out, resume=resume, replace=replace)
        for folder in (word.partition("=")[2] for word in data if "=" in word):
            validate_outside(folder, out, "--out")
            validate_outside(folder, hub, "--hub")
        recipe, source = options.on_source(recipe, hub)
        columns = Columns(path_column, "", split_column, group_column)
        groups = _load(data, json, columns=columns, follow_links=follow_links, distinct_names=distinct_names)
        place = Place(hub, source, replace=replace)
        given, tell = (groups, out, recipe, source, place), None if json else note
        if ray is None:
            done, failed = train_tasks(*given, resume=resume, say=tell)
            summaries = [task.summary() for task in done.values()]
        else:
            summaries, failed = spread_tasks(*given, ray, resume=resume, say=tell)
    if json:
        print_json(summaries)
    else:
        _show(summaries)
        say(f"{len(summaries)} tasks are in the hub {hub}; their runs are in {out}")
        for one in summaries:
            if one["warning"] is not None:
                note(f"warning: {one['task']}: {one['warning']}")
    if failed:
        raise TrainingError("; ".join(f"{name} was given up: {error}" for name, error in failed.items()))


def _show(summaries: Sequence[Mapping[str, Any]]) -> None:
    shares = ("val_accuracy", "probe_val_accuracy", "test_accuracy", "test_balanced_accuracy", "test_majority_share")
    print_table(
        ("task", "best epoch", "validation", "probe", "test", "balanced", "largest class", "test images"),
        [
            (one["task"], one["best_epoch"], *(percent(one[share]) for share in shares), one["test_images"])
            for one in summaries
        ],
    )


def _load(words: Sequence[str], quiet: bool, **how: Any) -> list[TaskGroup]:
    """The data of NAME=DATA, and all tasks of a table, read as `load_data` has it."""
    from torchsnow.data import load_task_table
    from torchsnow.errors import DataError
    from torchsnow.workflows.shared import TaskGroup

    groups = []
    for word in words:
        path = Path(word)
        name, is_named, data = word.partition("=")
        if path.is_file():
            with counting("checking images", quiet) as progress:
                table = load_task_table(path, progress=progress, **how)
            for sentence in table.notes:
                note(f"warning: {sentence}")
            groups.append(TaskGroup(table.tasks, table))
        elif is_named:
            groups.append(TaskGroup({name: load_checked(data, quiet, **how)}))
        else:
            raise DataError(
                f"{word!r} is no file: expected a CSV with the column path and one column per task, or NAME=DATA "
                "with the name of a task and a folder, a CSV or a data set"
            )
    return groups
