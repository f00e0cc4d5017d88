"""`torchsnow train`: one task, from images to a hub."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from torchsnow.cli.data_options import HUB, DataOptions, validate_outside, with_option_groups
from torchsnow.cli.output import note, percent, print_json, say
from torchsnow.cli.training_options import TrainingOptions, telling_how_to_resume
from torchsnow.errors import TorchsnowError

if TYPE_CHECKING:
    from torchsnow.workflows.training import TrainedTask


@with_option_groups
def train(
    data: Annotated[
        str, typer.Argument(help="Folder of class folders, CSV (path,label[,split]), or the name of a data set.")
    ],
    *,
    task: Annotated[
        str | None, typer.Option(help="Name of the new task: a-z, 0-9, '.', '_', '-'; by default that of the data.")
    ] = None,
    hub: Annotated[
        Path | None, typer.Option(help="Folder of the hub, 'hub' by default; made if there is none. For deltas only.")
    ] = None,
    options: TrainingOptions,
    time: Annotated[
        str | None, typer.Option(help="Most time for training, as in 90s, 10m or 1.5h; fewer epochs if need be.")
    ] = None,
    reading: DataOptions,
    out: Annotated[
        Path | None, typer.Option(help="Run folder; by default runs/TASK, or the next free runs/TASK-2...")
    ] = None,
    log: Annotated[
        list[str] | None, typer.Option(help="Also log to tensorboard:FOLDER, mlflow:URI or wandb:PROJECT; repeatable.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the (last) run folder.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete a former run in the run folder.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a task of this name in the hub.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, and no progress.")] = False,
) -> None:
    """Train one task and add it to a hub.

    Methods other than deltas are for comparison: what they train stays in the
    run folder.

    The linear head that a task starts as is in the hub at once, and what
    training makes better takes its place. Ctrl-C keeps the best until then;
    after it, or a crash, the same command with --resume continues.

    Example: torchsnow train photos/ --task screws --hub my-hub --time 10m
    """
    options.settings()  # what can be refused is refused before torch is loaded, and before anything slow
    from torchsnow.data import validate_exists

    validate_exists(data)

    from torchsnow.methods import kind_of
    from torchsnow.train import RunFolder
    from torchsnow.train.ranks import here
    from torchsnow.workflows.loggers import TrainingLog
    from torchsnow.workflows.place import Place
    from torchsnow.workflows.training import follow_task, train_task, validate_hub_choice, validate_run

    recipe = options.recipe(None if time is None else seconds_of(time))
    if hub is None and kind_of(recipe.method, recipe.preset).is_delta:
        hub = HUB
    if here().rank > 0:
        follow_task(*options.on_source(recipe, hub))
        return
    task = name_of(data) if task is None else task
    run = RunFolder(out or run_folder(task, resume, overwrite))
    with telling_how_to_resume(run.args.exists), TrainingLog(log or (), task, run) as logged:
        validate_outside(data, run.path, "--out")
        if hub is not None:
            validate_outside(data, hub, "--hub")
        validate_hub_choice(recipe.method, recipe.preset, hub, replace=replace)
        validate_run(task, hub, run, resume=resume or overwrite, replace=replace)
        recipe, source = options.on_source(recipe, hub)
        recipe.validate_shared(source, here())
        loaded = reading.load(data, quiet=json)
        place = None if hub is None else Place(hub, source, replace=replace)
        result = train_task(
            loaded, task, run, recipe, source, place, resume=resume, overwrite=overwrite, say=None if json else note
        )
        logged.finish(result)
    summary = result.summary()
    if json:
        print_json({**summary, "skipped_images": len(loaded.skipped)})
    else:
        show(result, summary)


def show(result: TrainedTask, summary: Mapping[str, Any]) -> None:
    """The closing lines of a training."""
    from torchsnow.report.formatting import size as shown_size
    from torchsnow.workflows.training import on_validation

    metrics, test = result.fit.metrics, result.test
    kind = "a linear head alone" if result.alone else f"the best model, of epoch {summary['best_epoch']},"
    say(f"{kind} has {on_validation(metrics)}, balanced {percent(metrics.balanced_accuracy)}")
    say(f"a linear head at the start: {percent(result.probe_accuracy)} on the same images")
    best, start = result.fit.best, result.fit.history[0]
    if result.hub is not None and not result.alone and best.epoch and best.val_accuracy <= start.val_accuracy:
        why = f"it is surer: its cross-entropy is {best.val_loss:.3f}, the head's {start.val_loss:.3f}"
        if best.val_loss >= start.val_loss:
            why = "so few images cannot tell; as a rule both together are better"
        say(f"layers of its own have no more of these images right, and {why}")
    if test is not None:
        low, high = test.accuracy_interval
        told = (
            f"test accuracy {percent(test.accuracy)} on {test.num_images} images (95%: {low:.0%} to {high:.0%}), "
            f"balanced {percent(test.balanced_accuracy)}; "
        )
        if test.mean_average_precision is None:
            say(f"{told}the largest class alone {percent(test.majority_share)}")
        else:
            say(f"{told}mean average precision {percent(test.mean_average_precision)}")
    if (change := result.change) is not None:
        those = f"{change.num_images} test images that it has not learned from"
        if not change.only_unseen:
            those = "these test images, which it may have learned from"
        say(
            f"the former version has {percent(change.former_right / change.num_images)} of {those}: the new one is "
            f"right on {change.gained} that it had wrong, and wrong on {change.lost} that it had right (McNemar's "
            f"test: p = {change.p_value:.2g})"
        )
    place = "what was trained" if result.hub is None else f"task {result.name!r} is in the hub {result.hub}"
    say(f"{place} ({shown_size(result.size_bytes)}); the run is in {result.run}")
    if result.alone and len(result.fit.history) == 1:
        say("layers of its own were not trained: there was no time")
    elif result.alone:
        say("layers of its own brought nothing on the validation split, so it has none: it adds no cost to the pass")
    if result.warning is not None:
        note(f"warning: {result.warning}")


def name_of(data: str) -> str:
    """A task's name made of that of the data."""
    words = re.sub(r"[^a-z0-9._-]+", "-", Path(data).resolve().stem.lower() if Path(data).exists() else data.lower())
    return words.strip("-._")[:64] or "task"


def run_folder(task: str, resume: bool, overwrite: bool) -> Path:
    """runs/TASK; where a run is there, the next one that is free, or with `resume` or `overwrite` the last one."""
    from torchsnow.train import RunFolder

    last, free = Path("runs") / task, Path("runs") / task
    number = 1
    while RunFolder(free).args.exists() or RunFolder(free).study.exists():
        number += 1
        last, free = free, Path("runs") / f"{task}-{number}"
    return last if resume or overwrite else free


def seconds_of(time: str) -> float:
    """The seconds of a time as in 90s, 10m or 1.5h. Raises TorchsnowError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", time.strip())
    if match is None or float(match[1]) == 0:
        raise TorchsnowError(f"--time is {time!r}; expected a time as in 90s, 10m or 1.5h")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]
