"""`torchsnow train`: one task, from images to a hub."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace as replaced
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from torchsnow.cli.output import load_checked, note, percent, print_json, say

if TYPE_CHECKING:
    from torchsnow.train import RunFolder


def train(
    data: Annotated[
        str, typer.Argument(help="Folder of class folders, CSV (path,label[,split]), or the name of a data set.")
    ],
    task: Annotated[str, typer.Option(help="Name of the new task: a-z, 0-9, '.', '_', '-'.")],
    hub: Annotated[
        Path | None, typer.Option(help="Folder of the hub; made if there is none. Not for methods without a delta.")
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="timm model, or 'bundled', the default. A hub keeps the source it has.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="'pretrained', the default; 'random'; or a .safetensors file.")
    ] = None,
    method: Annotated[
        str, typer.Option(help="snow, scratch, random, side (with --hub); full, features, head, taps, bn, lora.")
    ] = "snow",
    preset: Annotated[
        str, typer.Option(help="'default'; 'small', 'large', 'paper' (snow); 'probe' (head).")
    ] = "default",
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the training images; by default by their number, 20 to 60.")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Pixels, to 1024; by default the images' own size, 64 to the source's own.")
    ] = None,
    crop_mode: Annotated[
        str, typer.Option(help="'squash', the picture as a square; or 'center', the square in its middle.")
    ] = "squash",
    batch_size: Annotated[
        int | None, typer.Option(help="Images per step; 32 by default, fewer for few images.")
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
    precision: Annotated[
        str | None, typer.Option(help="Of the source pass: 'fp32' or 'bf16'; by default the hub's, or fp32.")
    ] = None,
    amp: Annotated[bool, typer.Option("--amp", help="bfloat16 autocast of the trained part, on CUDA.")] = False,
    seed: Annotated[int, typer.Option(help="Of the split, the first weights and the order of images.")] = 0,
    device: Annotated[str, typer.Option(help="'auto', 'cpu', 'cuda' or 'cuda:1'.")] = "auto",
    num_workers: Annotated[int, typer.Option(help="Processes that load images beside the main one.")] = 0,
    store_mb: Annotated[int, typer.Option(help="Most MB of stored features; 0 computes them in every epoch.")] = 16_000,
    out: Annotated[Path | None, typer.Option(help="Run folder; runs/TASK by default.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the run folder.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a task of this name.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, and no progress.")] = False,
) -> None:
    """Train one task and add it to a hub.

    Methods other than deltas are for comparison: what they train stays in the
    run folder.

    After Ctrl-C or a crash, the same command with --resume goes on.

    Example: torchsnow train photos/ --task screws --hub my-hub --epochs 20
    """
    from torchsnow.jobs import refuse_taken, refuse_wrong_hub, source_for, train_task
    from torchsnow.methods import kind_of, split_name
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

    run = RunFolder(out or Path("runs") / task)
    with _telling_how_to_resume(run):
        if ":" in method:
            method, preset = split_name(method)
        refuse_wrong_hub(method, preset, hub, replace=replace)
        given["lr"] = kind_of(method, preset).lr if lr is None else lr
        settings = TrainSettings(**given)  # what can be refused is refused before anything slow
        settings.torch_device()
        refuse_taken(task, hub, run, resume=resume, replace=replace)
        chosen = source_for(hub, source, weights, precision)  # type: ignore[arg-type] # the settings have checked it
        settings = replaced(settings, precision=chosen.precision)
        loaded = load_checked(data, quiet=json)
        result = train_task(
            loaded,
            task,
            hub,
            run,
            settings,
            chosen,
            method=method,
            preset=preset,
            resume=resume,
            replace=replace,
            quiet=json,
            auto=auto,
            say=(lambda line: None) if json else note,
        )
    summary = result.summary()
    if json:
        print_json({**summary, "skipped_images": len(loaded.skipped)})
        return
    from torchsnow.report import size as shown_size

    say(
        f"validation accuracy {percent(summary['val_accuracy'])} (epoch {summary['best_epoch']}), "
        f"test accuracy {percent(summary['test_accuracy'])} on {summary['test_images']} images"
    )
    say(f"a linear probe on the source: {percent(summary['probe_val_accuracy'])} on validation")
    place = "what was trained" if hub is None else f"task {task!r} is in the hub {hub}"
    say(f"{place} ({shown_size(result.size_bytes)}); the run is in {run.path}")
    if result.alone:
        say("its layers added nothing clear on the validation split: the task is a head alone, free beside the pass")
    if result.warning is not None:
        note(f"warning: {result.warning}")


@contextmanager
def _telling_how_to_resume(run: RunFolder) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as stop:
        words = ["torchsnow", *(word for word in sys.argv[1:] if word != "--resume"), "--resume"]
        how = f"to go on: {shlex.join(words)}" if run.args.exists() else "no training was begun"
        raise KeyboardInterrupt(f"{str(stop) or 'interrupted'}; {how}") from stop
