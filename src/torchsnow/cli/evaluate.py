"""`torchsnow evaluate`: how good a task is on labelled images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from torchsnow.cli.output import load_checked, percent, print_json, print_table, say


def evaluate(
    data: Annotated[str, typer.Argument(help="Labelled images, as for train.")],
    hub: Annotated[Path, typer.Option(help="Folder of the hub.")],
    task: Annotated[str, typer.Option(help="Name of the task.")],
    split: Annotated[str, typer.Option(help="'all', 'train', 'val' or 'test'.")] = "all",
    splits: Annotated[Path | None, typer.Option(help="splits.json of a training run, for --split.")] = None,
    device: Annotated[str, typer.Option(help="'auto', 'cpu' or 'cuda'.")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print JSON, and no progress.")] = False,
) -> None:
    """Accuracy, per-class precision and recall, confusion and calibration of a task.

    Example: torchsnow evaluate photos/ --hub my-hub --task screws --splits runs/screws/splits.json --split test
    """
    from torchsnow.hub import Hub
    from torchsnow.jobs import evaluate_task, examples_of
    from torchsnow.train import torch_device

    opened = Hub.open(hub)
    opened.info(task)
    loaded = load_checked(data, quiet=json)
    examples = examples_of(loaded, split, splits)
    metrics = evaluate_task(
        opened,
        task,
        loaded,
        examples,
        torch_device(device),
    )
    if json:
        print_json({"task": task, "split": split, **metrics.to_dict()})
        return
    print_table(
        ["class", "images", "precision", "recall", "F1"],
        [
            [row.name, row.num_images, percent(row.precision), percent(row.recall), percent(row.f1)]
            for row in metrics.per_class
        ],
    )
    top5 = "" if metrics.top5 is None else f", top-5 {percent(metrics.top5)}"
    say(
        f"accuracy {percent(metrics.accuracy)}{top5}, balanced {percent(metrics.balanced_accuracy)}, "
        f"calibration error {percent(metrics.calibration_error)}, on {metrics.num_images} images"
    )
    print_table(
        ["true \\ taken for", *metrics.classes],
        [[name, *row] for name, row in zip(metrics.classes, metrics.confusion, strict=True)],
    )
