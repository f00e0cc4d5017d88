"""`torchsnow train`: one task, from images to a hub."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace as replaced
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from torchsnow.cli.data_options import (
    DistinctNames,
    FollowLinks,
    GreyRange,
    GroupColumn,
    LabelColumn,
    PathColumn,
    SplitColumn,
)
from torchsnow.cli.output import load_checked, note, percent, print_json, say
from torchsnow.errors import TorchsnowError

if TYPE_CHECKING:
    from torchsnow.train import RunFolder
    from torchsnow.workflows.training import TrainedTask

RUN_FILE = "args.yaml"
_HUB = Path("hub")


def train(
    data: Annotated[
        str, typer.Argument(help="Folder of class folders, CSV (path,label[,split]), or the name of a data set.")
    ],
    task: Annotated[
        str | None, typer.Option(help="Name of the new task: a-z, 0-9, '.', '_', '-'; by default that of the data.")
    ] = None,
    hub: Annotated[
        Path | None, typer.Option(help="Folder of the hub, 'hub' by default; made if there is none. For deltas only.")
    ] = None,
    source: Annotated[
        str | None,
        typer.Option("--source", "--model", help="timm model, or 'bundled', the default. A hub keeps its source."),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option("--weights", "--checkpoint", help="'pretrained', the default; 'random'; or a file, also .pth."),
    ] = None,
    mean: Annotated[
        tuple[float, float, float] | None, typer.Option(help="Of the source's images, for red, green, blue in 0..1.")
    ] = None,
    std: Annotated[
        tuple[float, float, float] | None, typer.Option(help="Their standard deviations; by default the source's own.")
    ] = None,
    method: Annotated[
        str, typer.Option(help="snow, scratch, random, side (with --hub); full, features, head, taps, bn, lora.")
    ] = "snow",
    preset: Annotated[
        str, typer.Option(help="'default'; 'small', 'large', 'paper' (snow); 'probe' (head).")
    ] = "default",
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the training images; by default by their number, 20 to 40.")
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            "--image-size",
            "--img-size",
            help="Pixels, to 1024; by default the images' own size, 64 to the source's own.",
        ),
    ] = None,
    crop_mode: Annotated[
        str, typer.Option(help="'squash', the picture as a square; or 'center', the square in its middle.")
    ] = "squash",
    grey_range: GreyRange = (0, 65_535),
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", "--batch", help="Images per step; 32 by default, fewer for few images."),
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="Highest learning rate; by default the method's own, unless a test disagrees.")
    ] = None,
    optimizer: Annotated[str, typer.Option(help="'adamw' or 'sgd'.")] = "adamw",
    weight_decay: Annotated[float, typer.Option(help="Weight decay of the delta's weights.")] = 0.05,
    warmup_epochs: Annotated[
        int | None, typer.Option(help="Epochs in which the learning rate rises; 1 by default, 0 of one.")
    ] = None,
    label_smoothing: Annotated[float, typer.Option(help="Share of a label spread over all classes, below 1.")] = 0.1,
    class_weights: Annotated[str, typer.Option(help="'none', or 'balanced' for classes of unequal size.")] = "none",
    augmentation: Annotated[str, typer.Option(help="'none', 'flip', 'light' or 'strong'.")] = "flip",
    patience: Annotated[int | None, typer.Option(help="Stop after so many epochs without a better model.")] = None,
    time: Annotated[
        str | None, typer.Option(help="Most time for training, as in 90s, 10m or 1.5h; fewer epochs if need be.")
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
    label_column: LabelColumn = "",
    split_column: SplitColumn = "",
    group_column: GroupColumn = "",
    follow_links: FollowLinks = False,
    distinct_names: DistinctNames = False,
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
    after it, or a crash, the same command with --resume goes on.

    Example: torchsnow train photos/ --task screws --hub my-hub --time 10m
    """
    from torchsnow.data import Columns, refuse_missing
    from torchsnow.train import AUTO, RunFolder, TrainSettings
    from torchsnow.train.auto import MOST_EPOCHS

    asked = {"epochs": epochs, "image_size": image_size, "batch_size": batch_size, "lr": lr}
    auto = [name for name in AUTO if asked[name] is None]
    most_epochs = MOST_EPOCHS if epochs is None else epochs
    given: dict[str, Any] = {
        "epochs": most_epochs,
        "optimizer": optimizer,
        "weight_decay": weight_decay,
        "warmup_epochs": min(1, most_epochs - 1) if warmup_epochs is None else warmup_epochs,
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
    given |= {name: value for name, value in known.items() if value is not None}  # the others depend on source and data

    TrainSettings(**given)  # what can be refused is refused before torch is loaded, and before anything slow
    refuse_missing(data)

    from torchsnow.hub import source_for
    from torchsnow.methods import kind_of, split_name
    from torchsnow.workflows.loggers import TrainingLog
    from torchsnow.workflows.place import Place
    from torchsnow.workflows.recipe import Recipe
    from torchsnow.workflows.training import refuse_taken, refuse_wrong_hub, train_task

    task = _name_of(data) if task is None else task
    run = RunFolder(out or _run_folder(task, resume, overwrite))
    with _telling_how_to_resume(run), TrainingLog(log or (), task, run) as logged:
        if ":" in method:
            method, preset = split_name(method)
        if hub is None and kind_of(method, preset).is_delta:
            hub = _HUB
        refuse_wrong_hub(method, preset, hub, replace=replace)
        given["lr"] = kind_of(method, preset).lr if lr is None else lr
        settings = TrainSettings(**given)
        settings.torch_device()
        time_s = None if time is None else _seconds(time)
        refuse_taken(task, hub, run, resume=resume or overwrite, replace=replace)
        chosen = source_for(hub, source, weights, precision, mean, std)  # type: ignore[arg-type] # the settings have checked it
        settings = replaced(settings, precision=chosen.precision)
        columns = Columns(path_column, label_column, split_column, group_column)
        how = {"columns": columns, "follow_links": follow_links, "distinct_names": distinct_names}
        loaded = load_checked(data, quiet=json, **how)
        if overwrite and not resume and run.args.exists():
            with run.owned():
                run.clear()
        recipe = Recipe(settings, method, preset, auto, time_s)
        place = None if hub is None else Place(hub, chosen, replace=replace)
        result = train_task(loaded, task, run, recipe, chosen, place, resume=resume, say=None if json else note)
        logged.finish(result)
    summary = result.summary()
    if json:
        print_json({**summary, "skipped_images": len(loaded.skipped)})
        return

    _show(result, summary)


def _show(result: TrainedTask, summary: Mapping[str, Any]) -> None:
    from torchsnow.report.formatting import size as shown_size
    from torchsnow.workflows.training import on_validation

    metrics, test = result.fit.metrics, result.test
    kind = "a linear head alone" if result.alone else f"the best model, of epoch {summary['best_epoch']},"
    say(f"{kind} has {on_validation(metrics)}, balanced {percent(metrics.balanced_accuracy)}")
    say(f"a linear head at the start: {percent(result.probe_accuracy)} on the same images")
    if test is not None:
        low, high = test.accuracy_interval
        say(
            f"test accuracy {percent(test.accuracy)} on {test.num_images} images (95%: {low:.0%} to {high:.0%}), "
            f"balanced {percent(test.balanced_accuracy)}; the largest class alone {percent(test.majority_share)}"
        )
    place = "what was trained" if result.hub is None else f"task {result.name!r} is in the hub {result.hub}"
    say(f"{place} ({shown_size(result.size_bytes)}); the run is in {result.run}")
    if result.alone:
        say("layers of its own added nothing clear on the validation split, so it has none: it is free beside the pass")
    if result.warning is not None:
        note(f"warning: {result.warning}")


def _name_of(data: str) -> str:
    """A task's name made of that of the data."""
    words = re.sub(r"[^a-z0-9._-]+", "-", Path(data).resolve().stem.lower() if Path(data).exists() else data.lower())
    return words.strip("-._")[:64] or "task"


def _run_folder(task: str, resume: bool, overwrite: bool) -> Path:
    """runs/TASK; where a run is there, the next one that is free, or with `resume` or `overwrite` the last one."""
    last, free = Path("runs") / task, Path("runs") / task
    number = 1
    while (free / RUN_FILE).exists():
        number += 1
        last, free = free, Path("runs") / f"{task}-{number}"
    return last if resume or overwrite else free


def _seconds(time: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", time.strip())
    if match is None or float(match[1]) == 0:
        raise TorchsnowError(f"--time is {time!r}; expected a time as in 90s, 10m or 1.5h")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


@contextmanager
def _telling_how_to_resume(run: RunFolder) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as stop:
        words = ["torchsnow", *(word for word in sys.argv[1:] if word != "--resume"), "--resume"]
        how = f"to go on: {shlex.join(words)}" if run.args.exists() else "no training was begun"
        raise KeyboardInterrupt(f"{str(stop) or 'interrupted'}; {how}") from stop
