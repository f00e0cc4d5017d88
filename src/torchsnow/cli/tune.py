"""`torchsnow tune`: one task, trained in several ways of which the best is put into a hub."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from torchsnow.cli.data_options import HUB, DataOptions, validate_outside, with_option_groups
from torchsnow.cli.output import note, percent, print_json, print_table, say
from torchsnow.cli.train import name_of, run_folder, seconds_of, show
from torchsnow.cli.training_options import TrainingOptions, telling_how_to_resume
from torchsnow.errors import TrainingError

if TYPE_CHECKING:
    from torchsnow.workflows.tune import TunedTask


@with_option_groups
def tune(
    data: Annotated[
        str, typer.Argument(help="Folder of class folders, CSV (path,label[,split]), or the name of a data set.")
    ],
    *,
    task: Annotated[
        str | None, typer.Option(help="Name of the new task: a-z, 0-9, '.', '_', '-'; by default that of the data.")
    ] = None,
    hub: Annotated[Path, typer.Option(help="Folder of the hub; made if there is none.")] = HUB,
    trials: Annotated[int, typer.Option(min=1, help="Trainings in all; the first is what 'train' does.")] = 20,
    options: TrainingOptions,
    time: Annotated[
        str | None, typer.Option(help="No trial but the first goes on after that time, as in 90s, 10m or 1.5h.")
    ] = None,
    reading: DataOptions,
    out: Annotated[
        Path | None, typer.Option(help="Run folder; by default runs/TASK, or the next free runs/TASK-2...")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the study in the (last) run folder.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a task of this name in the hub.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, and no progress.")] = False,
) -> None:
    """Train one task in several ways, and add the best to a hub.

    Searched are the width of the delta's body, how many channels it reads and,
    unless they are given, epochs and learning rate; by the accuracy on the
    validation split. All trials share one look at the images. The default
    ships unless a trial is better by more than a standard error.

    Ctrl-C keeps the best trial until then in the hub; after it, or a crash, the
    same command with --resume continues.

    Example: torchsnow tune photos/ --task screws --trials 20 --time 1h
    """
    options.settings()  # what can be refused is refused before torch is loaded, and before anything slow
    time_s = None if time is None else seconds_of(time)
    if importlib.util.find_spec("optuna") is None:
        raise TrainingError("tune needs Optuna: pip install 'torchsnow[tune]'")
    from torchsnow.data import validate_exists

    validate_exists(data)

    from torchsnow.train import RunFolder
    from torchsnow.workflows.place import Place
    from torchsnow.workflows.training import validate_run
    from torchsnow.workflows.tune import tune_task, validate_study, validate_tunable

    task = name_of(data) if task is None else task
    run = RunFolder(out or run_folder(task, resume, False))
    with telling_how_to_resume(run.study.exists):
        recipe = options.recipe(time_s)
        validate_tunable(recipe)
        validate_outside(data, run.path, "--out")
        validate_outside(data, hub, "--hub")
        validate_study(run, resume)
        validate_run(task, hub, run, resume=resume, replace=replace)
        recipe, source = options.on_source(recipe, hub)
        loaded = reading.load(data, quiet=json)
        place = Place(hub, source, replace=replace)
        result = tune_task(loaded, task, run, recipe, place, trials, resume=resume, say=None if json else note)
    if json:
        print_json({**result.summary(), "skipped_images": len(loaded.skipped)})
    else:
        _show(result)


def _show(result: TunedTask) -> None:
    rows = [trial.row() for trial in result.trials]
    shown = [{**row, "lr": f"{row['lr']:.2g}", "accuracy": percent(row["accuracy"])} for row in rows]
    print_table([name.replace("_", " ") for name in shown[0]], [list(row.values()) for row in shown])
    if result.winner:
        say(f"trial {result.winner} is better than the default by more than a standard error, and ships")
    else:
        say("no trial is better than the default by more than a standard error: the default ships")
    show(result.task, result.task.summary())
