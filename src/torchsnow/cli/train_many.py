"""`torchsnow train-many`: several tasks in one run, with one source pass per step."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace as replaced
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from torchsnow.cli.data_options import DistinctNames, FollowLinks, GreyRange, GroupColumn, PathColumn, SplitColumn
from torchsnow.cli.output import counting, load_checked, note, percent, print_json, print_table, say

if TYPE_CHECKING:
    from torchsnow.workflows.shared import TaskGroup


def train_many(
    data: Annotated[
        list[str],
        typer.Argument(help="CSV with a column path and one per task (split is optional), or NAME=DATA; one or more."),
    ],
    hub: Annotated[Path, typer.Option(help="Folder of the hub; made if there is none.")],
    source: Annotated[
        str | None, typer.Option(help="timm model, or 'bundled', the default. A hub keeps the source it has.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="'pretrained', the default; 'random'; or a file: .safetensors, .pth, .pth.tar.")
    ] = None,
    method: Annotated[str, typer.Option(help="snow, scratch, random or side.")] = "snow",
    preset: Annotated[str, typer.Option(help="'default', 'small', 'large' or 'paper' (snow).")] = "default",
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the training images; by default by their number, 20 to 40.")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Pixels, to 1024; by default the images' own size, 64 to the source's own.")
    ] = None,
    crop_mode: Annotated[
        str, typer.Option(help="'squash', the picture as a square; or 'center', the square in its middle.")
    ] = "squash",
    grey_range: GreyRange = (0, 65_535),
    batch_size: Annotated[
        int | None, typer.Option(help="Images per step; 32 by default, fewer for few images.")
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="Highest learning rate; by default the method's own, unless a test disagrees.")
    ] = None,
    label_smoothing: Annotated[float, typer.Option(help="Share of a label spread over all classes, below 1.")] = 0.1,
    class_weights: Annotated[str, typer.Option(help="'none', or 'balanced' for classes of unequal size.")] = "none",
    augmentation: Annotated[str, typer.Option(help="'none', 'flip', 'light' or 'strong'.")] = "flip",
    patience: Annotated[
        int | None, typer.Option(help="Stop a task after so many epochs without a better model.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="Of the source pass: 'fp32' or 'bf16'; by default the hub's, or fp32.")
    ] = None,
    amp: Annotated[bool, typer.Option("--amp", help="bfloat16 autocast of the trained part, on CUDA.")] = False,
    seed: Annotated[int, typer.Option(help="Of the split, the first weights and the order of images.")] = 0,
    device: Annotated[str, typer.Option(help="'auto', 'cpu', 'cuda' or 'cuda:1'.")] = "auto",
    num_workers: Annotated[int, typer.Option(help="Processes that load images beside the main one.")] = 0,
    store_mb: Annotated[int, typer.Option(help="Most MB of stored features; 0 computes them in every epoch.")] = 16_000,
    path_column: PathColumn = "",
    split_column: SplitColumn = "",
    group_column: GroupColumn = "",
    follow_links: FollowLinks = False,
    distinct_names: DistinctNames = False,
    out: Annotated[Path, typer.Option(help="Folder of the run folders, one per task.")] = Path("runs"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the tasks' runs.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Replace tasks of these names.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, and no progress.")] = False,
) -> None:
    """Train several tasks in one run and add them to a hub.

    Each step is one source pass, over a batch of every CSV and every
    NAME=DATA. The tasks do not influence each other.

    After Ctrl-C or a crash, the same command with --resume goes on.

    Example: torchsnow train-many labels.csv --hub my-hub --epochs 20
    """
    from torchsnow.data import Columns
    from torchsnow.errors import TrainingError
    from torchsnow.train import AUTO, TrainSettings
    from torchsnow.train.auto import MOST_EPOCHS

    with _telling_how_to_resume():
        asked = {"epochs": epochs, "image_size": image_size, "batch_size": batch_size, "lr": lr}
        auto = [name for name in AUTO if asked[name] is None]
        most_epochs = MOST_EPOCHS if epochs is None else epochs
        given: dict[str, Any] = {
            "epochs": most_epochs,
            "warmup_epochs": min(1, most_epochs - 1),
            "label_smoothing": label_smoothing,
            "class_weights": class_weights,
            "crop_mode": crop_mode,
            "grey_range": grey_range,
            "augmentation": augmentation,
            "patience": patience,
            "amp": amp,
            "seed": seed,
            "device": device,
            "num_workers": num_workers,
            "store_bytes": 1_000_000 * store_mb,
        }
        known = {**asked, "precision": precision}
        given |= {name: value for name, value in known.items() if value is not None}
        TrainSettings(**given)  # what can be refused is refused before torch is loaded, and before anything slow

        from torchsnow.hub import source_for
        from torchsnow.methods import kind_of, split_name
        from torchsnow.workflows.place import Place
        from torchsnow.workflows.recipe import Recipe
        from torchsnow.workflows.shared import refuse_method, refuse_tasks, train_tasks

        if ":" in method:
            method, preset = split_name(method)
        refuse_method(method, preset)
        settings = TrainSettings(**{"lr": kind_of(method, preset).lr, **given})
        settings.torch_device()
        named = [word.partition("=")[0] for word in data if "=" in word and not Path(word).is_file()]
        refuse_tasks(named, hub, out, resume=resume, replace=replace)
        chosen = source_for(hub, source, weights, precision)  # type: ignore[arg-type] # the settings have checked it
        recipe = Recipe(replaced(settings, precision=chosen.precision), method, preset, auto)
        columns = Columns(path_column, "", split_column, group_column)
        groups = _load(data, json, columns=columns, follow_links=follow_links, distinct_names=distinct_names)
        place = Place(hub, chosen, replace=replace)
        done, failed = train_tasks(groups, out, recipe, chosen, place, resume=resume, say=None if json else note)
    summaries = [task.summary() for task in done.values()]
    if json:
        print_json(summaries)
    else:
        print_table(
            ("task", "best epoch", "validation", "probe", "test", "balanced", "largest class", "test images"),
            [
                (
                    one["task"],
                    one["best_epoch"],
                    percent(one["val_accuracy"]),
                    percent(one["probe_val_accuracy"]),
                    percent(one["test_accuracy"]),
                    percent(one["test_balanced_accuracy"]),
                    percent(one["test_majority_share"]),
                    one["test_images"],
                )
                for one in summaries
            ],
        )
        say(f"{len(done)} tasks are in the hub {hub}; their runs are in {out}")
        for one in summaries:
            if one["warning"] is not None:
                note(f"warning: {one['task']}: {one['warning']}")
    if failed:
        raise TrainingError("; ".join(f"{name} was given up: {error}" for name, error in failed.items()))


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


@contextmanager
def _telling_how_to_resume() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as stop:
        words = ["torchsnow", *(word for word in sys.argv[1:] if word != "--resume"), "--resume"]
        how = f"to go on: {shlex.join(words)}" if str(stop) else "no training was begun"
        raise KeyboardInterrupt(f"{str(stop) or 'interrupted'}; {how}") from stop
