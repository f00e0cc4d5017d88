"""`torchsnow predict`: what the tasks of a hub, or of a server, say of images."""

from __future__ import annotations

import os
import sys
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from torchsnow.cli.data_options import HUB, validate_outside
from torchsnow.cli.output import counting, note, percent, print_json, print_table, say, validate_writable
from torchsnow.cli.serve import TOKEN_VARIABLE, read_token
from torchsnow.errors import ServingError, TorchsnowError
from torchsnow.io.files import validate_writable_folder

if TYPE_CHECKING:
    from torchsnow.serving import Client
    from torchsnow.workflows.predictions import OnBad, Progress

STDIN = "-"
_IMAGES_OF_A_REQUEST = 8


def predict(
    images: Annotated[
        list[str], typer.Argument(help="Image files, folders, patterns like 'day-*/*.jpg'; - reads names from stdin.")
    ],
    hub: Annotated[Path | None, typer.Option(help="Folder of the hub; 'hub' by default.")] = None,
    server: Annotated[str | None, typer.Option(help="Instead of a hub: address of a server, with http://.")] = None,
    task: Annotated[list[str] | None, typer.Option(help="Name of a task; may be repeated; all by default.")] = None,
    top: Annotated[
        int | None, typer.Option(min=1, help="So many likeliest classes; 1 by default, with JSON all.")
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Write a table, a row per image and task.")] = None,
    jsonl: Annotated[Path | None, typer.Option(help="Write lines of JSON, one per image and task.")] = None,
    explain: Annotated[
        Path | None, typer.Option(help="With a hub: write heat maps over the images into this folder.")
    ] = None,
    device: Annotated[str, typer.Option(help="With a hub: 'auto', 'cpu', 'cuda' or 'cuda:1'.")] = "auto",
    token_file: Annotated[
        Path | None, typer.Option(help=f"File with the server's token; or set {TOKEN_VARIABLE}.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, and no progress.")] = False,
) -> None:
    """Classify images by all tasks of a hub, or by the named ones.

    A file that is no usable image is named, the others are classified, and the
    exit code is 2; it is 0 when everything was answered.

    Example: torchsnow predict photos/ --hub my-hub --csv answers.csv
    """
    from torchsnow.data import find_images

    bad: list[tuple[str, str]] = []

    def on_bad(path: Path, why: str) -> None:
        bad.append((str(path), why))

    _validate(hub, server, csv, jsonl)
    if explain is not None:
        _validate_heat_maps(images, server, explain)
    files = find_images(_words(images), on_bad)
    num_classes = top if top is not None or json or jsonl is not None else 1
    with counting("classifying images", quiet=json) as progress:
        question = _Question(files, task or None, num_classes, on_bad, progress)
        if server is None:
            predictions = list(question.to_hub(hub or HUB, device))
        else:
            predictions = list(question.to_server(server, read_token(token_file)))
    written = _write(csv, jsonl, predictions, top or 1)
    if json:
        print_json({"predictions": predictions, "errors": [{"image": path, "reason": why} for path, why in bad]})
    elif written:
        say(f"{len(predictions)} answers are in {' and '.join(map(str, written))}")
    elif predictions:
        _show(predictions, top or 1)
    if explain is not None:
        _explain(hub or HUB, device, predictions, explain, quiet=json)
    for _, why in bad:
        note(f"torchsnow: {why}")
    if not files and not bad:
        note("torchsnow: no images were named on stdin")
    if bad:
        raise typer.Exit(2)


def _validate(hub: Path | None, server: str | None, csv: Path | None, jsonl: Path | None) -> None:
    """Refuse options that do not go together, and files that cannot be written."""
    if hub is not None and server is not None:
        raise ServingError("name either the folder of a hub (--hub) or the address of a server (--server)")
    for file in filter(None, (csv, jsonl)):
        validate_writable(file)
    if csv is not None and csv == jsonl:
        raise TorchsnowError(f"--csv and --jsonl are both {csv}: give each a file of its own")


def _validate_heat_maps(images: Sequence[str], server: str | None, folder: Path) -> None:
    """Refuse a folder that cannot be written, or that the next look at the images would take for one of theirs."""
    if server is not None:
        raise ServingError("heat maps (--explain) are made with a hub (--hub); a server has none")
    validate_writable_folder(folder)
    for word in images:
        validate_outside(word, folder, "--explain")


def _words(images: Sequence[str]) -> Iterator[str]:
    """The words of the command line, with the lines of stdin in the place of a dash."""
    for word in images:
        if word == STDIN:
            yield from _lines(sys.stdin.buffer.read())
        else:
            yield word


def _lines(content: bytes) -> list[str]:
    """The names in a list, one a line, or with null bytes between them, as `find -print0` writes them."""
    if content.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):  # as PowerShell writes it
        try:
            content = content.decode("utf-16", "surrogatepass").encode("utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            raise TorchsnowError("stdin begins as UTF-16 and is none to its end: give the names as UTF-8") from error
    text = os.fsdecode(content.removeprefix(BOM_UTF8))
    names = text.split("\0") if "\0" in text else [line.removesuffix("\r") for line in text.split("\n")]
    return [name for name in names if name]


@dataclass(frozen=True)
class _Question:
    """What is asked, of a hub or of a server: `files`, of the `tasks` (None: all), for the `top` likeliest classes."""

    files: Sequence[Path]
    tasks: Sequence[str] | None
    top: int | None
    on_bad: OnBad
    progress: Progress

    def to_hub(self, hub: Path, device: str) -> Iterator[dict[str, Any]]:
        from torchsnow.hub import Hub

        opened = Hub.open(hub)  # what is wrong with it needs no torch to be said
        for name in self.tasks or ():
            opened.entry(name)

        from torchsnow.train import torch_device
        from torchsnow.workflows.predictions import predict_images

        on_device = torch_device(device)
        if opened.names():
            opened.source.to(on_device)
        for one in predict_images(opened, self.files, self.tasks, self.on_bad, top=self.top, progress=self.progress):
            yield {
                "image": one.image,
                "task": one.task,
                "label": one.label,
                "labels": list(one.labels),
                "ranking": list(one.probabilities),
                "probabilities": one.probabilities,
                "unknown_score": one.unknown_score,
            }

    def to_server(self, url: str, token: str | None) -> Iterator[dict[str, Any]]:
        from torchsnow.serving import Client

        client = Client(url, token)
        client.tasks()  # a server that cannot be used is one error, not one for each image
        for first in range(0, len(self.files), _IMAGES_OF_A_REQUEST):
            files = self.files[first : first + _IMAGES_OF_A_REQUEST]
            try:
                answered = client.predict(files, self.tasks)
            except ServingError:  # of one image, or of all together: that shows one by one
                answered = [self._one_by_one(client, file) for file in files]
            for file, answer in ((file, answer) for file, own in zip(files, answered, strict=True) for answer in own):
                likeliest = dict(islice(answer["probabilities"].items(), self.top))
                yield {"image": str(file), **answer, "ranking": list(likeliest), "probabilities": likeliest}
            self.progress(first + len(files), len(self.files))

    def _one_by_one(self, client: Client, file: Path) -> list[dict[str, Any]]:
        def report(failure: dict[str, Any]) -> None:
            self.on_bad(file, f"{file}: the task {failure['task']!r} has no answer: {failure['error']}")

        try:
            return client.predict([file], self.tasks, report)[0]
        except ServingError as error:
            self.on_bad(file, f"{file}: {error}")
            return []


def _explain(hub: Path, device: str, predictions: Sequence[dict[str, Any]], folder: Path, quiet: bool) -> None:
    """A heat map for every answer that has one."""
    from torchsnow.heat import write_heat_maps
    from torchsnow.hub import Hub
    from torchsnow.train import torch_device

    opened = Hub.open(hub)
    opened.source.to(torch_device(device))
    answers = [(one["image"], one["task"], one["label"]) for one in predictions]
    with counting("drawing heat maps", quiet=quiet) as progress:
        written, refused = write_heat_maps(opened, answers, folder, progress)
    note(f"{len(written)} {'heat map is' if len(written) == 1 else 'heat maps are'} in {folder}")
    for name, why in refused.items():
        note(f"the task {name!r} has no heat map: {why}")


def _show(predictions: Sequence[dict[str, Any]], top: int) -> None:
    columns, rows = _columns(top), [_cells(one, top, percent) for one in predictions]
    tells_nothing = {
        "labels": all(one["labels"] == [one["label"]] for one in predictions),
        "unknown_score": all(one.get("unknown_score") is None for one in predictions),
    }
    shown = [place for place, column in enumerate(columns) if not tells_nothing.get(column)]
    print_table([columns[place] for place in shown], [[row[place] for place in shown] for row in rows])
    unlike = sum((one.get("unknown_score") or 0) > 1 for one in predictions)
    if unlike:
        say(f"{unlike} of {len(predictions)} answers have an unknown score above 1: the image is unlike the task's own")


def _write(csv: Path | None, jsonl: Path | None, predictions: Sequence[dict[str, Any]], top: int) -> list[Path]:
    """Write what is asked for, and return the files."""
    from torchsnow.io.files import write_atomically, write_csv

    if csv is not None:
        write_csv(csv, _columns(top), (_cells(one, top, "{:.6f}".format) for one in predictions))
    if jsonl is not None:
        write_atomically(jsonl, "".join(f"{dumps(one, allow_nan=False)}\n" for one in predictions))
    return [file for file in (csv, jsonl) if file is not None]


def _columns(top: int) -> list[str]:
    """Of a table: class and probability of the likeliest class, class_2 and probability_2 of the next, ..."""
    more = (f"{name}_{place}" for place in range(2, top + 1) for name in ("class", "probability"))
    return ["image", "task", "class", "probability", *more, "unknown_score", "labels"]


def _cells(prediction: dict[str, Any], top: int, number: Callable[[float], str]) -> list[str]:
    """A row of a table; cells without anything known are empty."""
    likeliest = [(name, number(share)) for name, share in islice(prediction["probabilities"].items(), top)]
    cells = [prediction["image"], prediction["task"], *chain.from_iterable(likeliest)]
    unknown = prediction.get("unknown_score")
    cells += [""] * (len(_columns(top)) - len(cells) - 2)
    return [*cells, "" if unknown is None else f"{unknown:.2f}", "|".join(prediction["labels"])]
