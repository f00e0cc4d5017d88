"""`torchsnow predict`: what the tasks of a hub say of images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from torchsnow.cli.output import note, percent, print_json, print_table


def predict(
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    hub: Annotated[Path, typer.Option(help="Folder of the hub.")],
    task: Annotated[list[str] | None, typer.Option(help="Name of a task; may be repeated; all by default.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Classify images by all tasks of a hub, or by the named ones.

    A file that is no usable image is named, the others are classified, and the
    exit code is 2.

    Example: torchsnow predict photo.jpg --hub my-hub --task screws
    """
    from torchsnow.hub import Hub
    from torchsnow.jobs import predict_images

    bad: list[tuple[str, str]] = []
    predictions = predict_images(Hub.open(hub), images, task or None, lambda path, why: bad.append((str(path), why)))
    if json:
        shown = [
            {"image": p.image, "task": p.task, "label": p.label, "probabilities": p.probabilities} for p in predictions
        ]
        print_json({"predictions": shown, "errors": [{"image": path, "reason": why} for path, why in bad]})
    elif predictions:
        rows = [[p.image, p.task, p.label, percent(p.probabilities[p.label])] for p in predictions]
        print_table(["image", "task", "class", "probability"], rows)
    for _, why in bad:
        note(f"torchsnow: {why}")
    if bad:
        raise typer.Exit(2)
