"""`torchsnow visualize`: what tasks subscribe to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from torchsnow.cli.data_options import validate_outside
from torchsnow.cli.output import counting, load_checked, note, print_json, say


def visualize(
    hub: Annotated[Path, typer.Option(help="Folder of the hub.")],
    task: Annotated[list[str], typer.Option(help="Name of a task; may be repeated.")],
    out: Annotated[Path, typer.Option(help="Folder for the page, the pictures and the numbers.")],
    data: Annotated[str | None, typer.Argument(help="Images to look for top images in, as for train.")] = None,
    image: Annotated[Path | None, typer.Option(help="An image file to follow through the tasks.")] = None,
    run: Annotated[Path | None, typer.Option(help="Run folder of a task, to show how its choice settled.")] = None,
    channels: Annotated[int, typer.Option(help="Channels of a task that are shown with images.")] = 6,
    device: Annotated[str, typer.Option(help="'auto', 'cpu', 'cuda' or 'cuda:1'.")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print JSON, and no progress.")] = False,
) -> None:
    """Show what tasks subscribe to: pictures, a page, and the numbers.

    A single task is compared with all others of its hub.

    Example: torchsnow visualize --hub my-hub --task screws --out pictures
    """
    from torchsnow.explain import Visualization
    from torchsnow.hub import Hub
    from torchsnow.train import torch_device

    on_device, opened = torch_device(device), Hub.open(hub)
    for name in task:
        opened.info(name)  # before the source, which takes longer
    if data is not None:
        validate_outside(data, out, "--out")
    opened.source.to(on_device)
    shown = Visualization(opened, task, out, run=run, image=image, num_channels=channels)
    loaded = None if data is None else load_checked(data, quiet=json, distinct_names=True)
    files = shown.write(loaded, on_device, lambda what: counting(what, quiet=json))
    for sentence in shown.left_out:
        note(f"torchsnow: not compared: {sentence}")
    if json:
        print_json({"tasks": list(shown.tasks), "files": [str(file) for file in files], "left_out": shown.left_out})
    else:
        say(f"{len(files)} files are in {out}; open {files[-1]}")
