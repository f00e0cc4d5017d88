"""`torchsnow predict`: what the tasks of a hub, or of a server, say of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from torchsnow.cli.output import note, percent, print_json, print_table
from torchsnow.cli.serve import TOKEN_VARIABLE, read_token
from torchsnow.errors import ServingError


def predict(
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    hub: Annotated[Path | None, typer.Option(help="Folder of the hub.")] = None,
    server: Annotated[str | None, typer.Option(help="Instead of a hub: address of a server, with http://.")] = None,
    task: Annotated[list[str] | None, typer.Option(help="Name of a task; may be repeated; all by default.")] = None,
    token_file: Annotated[
        Path | None, typer.Option(help=f"File with the server's token; or set {TOKEN_VARIABLE}.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Classify images by all tasks of a hub, or by the named ones.

    A file that is no usable image is named, the others are classified, and the
    exit code is 2.

    Example: torchsnow predict photo.jpg --hub my-hub --task screws
    """
    bad: list[tuple[str, str]] = []

    def on_bad(path: Path, why: str) -> None:
        bad.append((str(path), why))

    if (hub is None) == (server is None):
        raise ServingError("name either the folder of a hub (--hub) or the address of a server (--server)")
    if server is not None:
        predictions = _from_server(server, token_file, images, task or None, on_bad)
    else:
        assert hub is not None
        predictions = _from_hub(hub, images, task or None, on_bad)
    if json:
        print_json({"predictions": predictions, "errors": [{"image": path, "reason": why} for path, why in bad]})
    elif predictions:
        rows = [[p["image"], p["task"], p["label"], percent(p["probabilities"][p["label"]])] for p in predictions]
        print_table(["image", "task", "class", "probability"], rows)
    for _, why in bad:
        note(f"torchsnow: {why}")
    if bad:
        raise typer.Exit(2)


def _from_hub(
    hub: Path, images: Sequence[Path], tasks: Sequence[str] | None, on_bad: Callable[[Path, str], None]
) -> list[dict[str, Any]]:
    from torchsnow.hub import Hub
    from torchsnow.predictions import predict_images

    found = predict_images(Hub.open(hub), images, tasks, on_bad)
    return [
        {"image": p.image, "task": p.task, "label": p.label}
        | {"ranking": list(p.probabilities), "probabilities": p.probabilities}
        for p in found
    ]


def _from_server(
    url: str,
    token_file: Path | None,
    images: Sequence[Path],
    tasks: Sequence[str] | None,
    on_bad: Callable[[Path, str], None],
) -> list[dict[str, Any]]:
    from torchsnow.serving import Client

    client, found = Client(url, read_token(token_file)), []
    client.tasks()  # a server that cannot be used is one error, not one for each image
    for image in images:
        try:
            (answers,) = client.predict([image], tasks, partial(_report, image, on_bad))
        except ServingError as error:
            on_bad(image, f"{image}: {error}")
            continue
        found += [{"image": str(image), **answer} for answer in answers]
    return found


def _report(image: Path, on_bad: Callable[[Path, str], None], failure: dict[str, Any]) -> None:
    on_bad(image, f"{image}: the task {failure['task']!r} has no answer: {failure['error']}")
