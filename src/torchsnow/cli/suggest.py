"""`torchsnow suggest`: which unlabelled images to label next."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from torchsnow.cli.data_options import HUB, HubFolder
from torchsnow.cli.output import counting, note, percent, print_json, print_table, say, validate_writable


def suggest(
    images: Annotated[list[str], typer.Argument(help="Unlabelled images: files, folders, patterns.")],
    hub: HubFolder = HUB,
    task: Annotated[list[str] | None, typer.Option(help="Name of a task; may be repeated; all by default.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Images for each task.")] = 20,
    csv: Annotated[Path | None, typer.Option(help="Write a table, a row per image and task.")] = None,
    device: Annotated[str, typer.Option(help="'auto', 'cpu', 'cuda' or 'cuda:1'.")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print JSON, and no progress.")] = False,
) -> None:
    """Name the unlabelled images that the tasks of a hub would learn most from.

    Those that a task is in doubt about, and that are unlike each other; for all
    tasks in one pass. Files that cannot be read are named and skipped, and the
    exit code is 2 then.

    Example: torchsnow suggest new-photos/ --hub my-hub --csv label-next.csv
    """
    from torchsnow.data import find_images
    from torchsnow.hub import Hub
    from torchsnow.io.files import write_csv
    from torchsnow.review import suggest_images
    from torchsnow.train import torch_device
    from torchsnow.workflows.predictions import usable_tasks

    bad: list[tuple[str, str]] = []

    def on_bad(path: Path, why: str) -> None:
        bad.append((str(path), why))

    if csv is not None:
        validate_writable(csv)
    on_device, opened = torch_device(device), Hub.open(hub)
    if opened.names():
        opened.source.to(on_device)
    tasks = usable_tasks(opened, task or None, on_bad)
    files = find_images(images, on_bad)
    with counting("classifying images", quiet=json) as progress:
        found = suggest_images(opened.source, tasks, files, count, on_bad, progress)
    if csv is not None:
        columns = ("image", "task", "class", "probability", "doubt")
        write_csv(csv, columns, ([s.image, s.task, s.label, f"{s.probability:.6f}", f"{s.doubt:.6f}"] for s in found))
    if json:
        print_json({"suggestions": [vars(s) for s in found], "errors": [{"image": p, "reason": why} for p, why in bad]})
    elif csv is not None:
        say(f"{len(found)} suggestions are in {csv}")
    elif found:
        rows = [[s.task, s.image, s.label, percent(s.probability), percent(s.doubt)] for s in found]
        print_table(["task", "image", "class", "probability", "doubt"], rows)
    for _, why in bad:
        note(f"torchsnow: {why}")
    if bad:
        raise typer.Exit(2)
