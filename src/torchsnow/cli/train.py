"""`torchsnow train`: one task, from images to a hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from torchsnow.cli.output import load_checked, percent, print_json, say


def train(
    data: Annotated[
        str, typer.Argument(help="Folder of class folders, CSV (path,label[,split]), elpv or elpv:binary.")
    ],
    task: Annotated[str, typer.Option(help="Name of the new task: a-z, 0-9, '.', '_', '-'.")],
    hub: Annotated[Path, typer.Option(help="Folder of the hub; made if there is none.")],
    source: Annotated[
        str | None, typer.Option(help="timm model, or 'bundled' (the default). A hub keeps the source it has.")
    ] = None,
    weights: Annotated[str, typer.Option(help="'pretrained', 'random', or a .safetensors file.")] = "pretrained",
    method: Annotated[str, typer.Option(help="How to learn the task.")] = "snow",
    preset: Annotated[str, typer.Option(help="'default', or 'paper' for SNOW as published.")] = "default",
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = 15,
    image_size: Annotated[int | None, typer.Option(help="Pixels; the source's own size by default.")] = None,
    batch_size: Annotated[int, typer.Option(help="Images per step.")] = 32,
    lr: Annotated[float, typer.Option(help="Highest learning rate.")] = 2e-3,
    optimizer: Annotated[str, typer.Option(help="'adamw' or 'sgd'.")] = "adamw",
    weight_decay: Annotated[float, typer.Option(help="Weight decay of the delta's weights.")] = 0.05,
    warmup_epochs: Annotated[int, typer.Option(help="Epochs in which the learning rate rises.")] = 1,
    label_smoothing: Annotated[float, typer.Option(help="0 to below 1.")] = 0.0,
    class_weights: Annotated[str, typer.Option(help="'none', or 'balanced' for classes of unequal size.")] = "none",
    augmentation: Annotated[str, typer.Option(help="'none', 'flip', 'light' or 'strong'.")] = "light",
    patience: Annotated[int | None, typer.Option(help="Stop after so many epochs without a better model.")] = None,
    precision: Annotated[str, typer.Option(help="Of the source pass: 'fp32' or 'bf16'.")] = "fp32",
    amp: Annotated[bool, typer.Option(help="bfloat16 autocast of the trained part, on CUDA.")] = False,
    seed: Annotated[int, typer.Option(help="Of the split, the first weights and the order of images.")] = 0,
    device: Annotated[str, typer.Option(help="'auto', 'cpu' or 'cuda'.")] = "auto",
    num_workers: Annotated[int, typer.Option(help="Processes that load images beside the main one.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Run folder; runs/TASK by default.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the run folder.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a task of this name.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, and no progress.")] = False,
) -> None:
    """Train one task and add it to a hub.

    Example: torchsnow train photos/ --task screws --hub my-hub --epochs 20
    """
    from torchsnow.jobs import source_for, train_task
    from torchsnow.task_file import check_task_name
    from torchsnow.train import RunFolder, TrainSettings

    check_task_name(task)
    chosen = source_for(hub, source, weights, "bf16" if precision == "bf16" else "fp32")
    run = RunFolder(out or Path("runs") / task)
    settings: dict[str, Any] = {
        "epochs": epochs,
        "batch_size": batch_size,
        "image_size": chosen.input_config.input_size[1] if image_size is None else image_size,
        "lr": lr,
        "optimizer": optimizer,
        "weight_decay": weight_decay,
        "warmup_epochs": min(warmup_epochs, epochs - 1),
        "label_smoothing": label_smoothing,
        "class_weights": class_weights,
        "augmentation": augmentation,
        "patience": patience,
        "precision": chosen.precision,
        "amp": amp,
        "seed": seed,
        "device": device,
        "num_workers": num_workers,
    }
    checked = TrainSettings(**settings)
    loaded = load_checked(data, quiet=json)
    result = train_task(
        loaded,
        task,
        hub,
        run,
        checked,
        chosen,
        method=method,
        preset=preset,
        resume=resume,
        replace=replace,
        quiet=json,
    )
    if json:
        print_json({**result.summary(), "skipped_images": len(loaded.skipped)})
        return
    summary = result.summary()
    say(
        f"validation accuracy {percent(summary['val_accuracy'])} (epoch {summary['best_epoch']}), "
        f"test accuracy {percent(summary['test_accuracy'])} on {summary['test_images']} images"
    )
    say(f"task {task!r} is in the hub {hub} ({result.size_bytes / 1e6:.2f} MB); the run is in {run.path}")
