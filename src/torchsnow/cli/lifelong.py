"""`torchsnow lifelong`: tasks one after another, and what is left of the first ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from torchsnow.cli.output import counting, load_checked, note, print_json, print_table, say

if TYPE_CHECKING:
    from collections.abc import Mapping


def lifelong(
    data: Annotated[list[str], typer.Argument(help="Data sets, as for train, in the order of the sequence.")],
    out: Annotated[Path, typer.Option(help="Folder for the hub and the results; what is finished there is kept.")],
    classes_per_task: Annotated[
        int | None, typer.Option(help="Cut every data set into tasks of so many classes; by default it is one task.")
    ] = None,
    source: Annotated[str, typer.Option(help="timm model, or 'bundled'.")] = "bundled",
    weights: Annotated[str, typer.Option(help="'pretrained', 'random', or a file.")] = "pretrained",
    epochs: Annotated[int, typer.Option(help="Passes over the training images of every task.")] = 15,
    image_size: Annotated[int, typer.Option(help="Pixels.")] = 224,
    batch_size: Annotated[int, typer.Option(help="Images per step.")] = 32,
    augmentation: Annotated[str, typer.Option(help="'none', 'flip', 'light' or 'strong'.")] = "flip",
    train_images: Annotated[int | None, typer.Option(help="Per task, train on a subsample of so many.")] = None,
    val_images: Annotated[int | None, typer.Option(help="Per task, choose epochs by a subsample of so many.")] = None,
    test_images: Annotated[int | None, typer.Option(help="Per task, test on a subsample of so many.")] = None,
    seed: Annotated[int, typer.Option(help="Of splits, first weights and the order of images.")] = 0,
    device: Annotated[str, typer.Option(help="'auto', 'cpu', 'cuda' or 'cuda:1'.")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print JSON, and no progress.")] = False,
) -> None:
    """Learn tasks one after another, and test all so far after each.

    SNOW learns them into a hub. Beside it one network goes on being fine-tuned,
    with a head per task, which shows what forgetting looks like. Each finished
    task is kept: the same command goes on where it was stopped, and may name
    more data at the end. Writes results.json, matrices as CSV, lifelong.png and
    report.html.

    Example: torchsnow lifelong digits --classes-per-task 2 --out lifelong
    """
    from torchsnow.experiments.lifelong import Lifelong, write_results
    from torchsnow.experiments.lifelong_settings import LifelongSettings
    from torchsnow.train import torch_device

    torch_device(device)
    settings = LifelongSettings(
        data=tuple(data),
        source=source,
        weights=weights,
        classes_per_task=classes_per_task,
        epochs=epochs,
        image_size=image_size,
        batch_size=batch_size,
        augmentation=augmentation,
        train_images=train_images,
        val_images=val_images,
        test_images=test_images,
        seed=seed,
        device=device,
    )
    evaluation = Lifelong(settings, out)
    try:
        with evaluation.owned(), counting("learning tasks", quiet=json) as moved:

            def report(name: str, done: int, total: int) -> None:
                moved(done, total)
                if not json:
                    note(f"task {done + 1} of {total}: {name}")

            content = evaluation.run(report, lambda name: load_checked(name, quiet=json))
            write_results(content, out, note)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt("stopped; finished tasks are kept, and the same command goes on") from stop
    if json:
        print_json(content)
    else:
        _show(content, out)


def _show(content: Mapping[str, Any], out: Path) -> None:
    from torchsnow.report.lifelong import GROWTH_COLUMNS, TASK_COLUMNS, findings, growth_rows, metric_rows, task_rows

    print_table(TASK_COLUMNS, task_rows(content))
    print_table(GROWTH_COLUMNS, [*metric_rows(content), *growth_rows(content)])
    for line in findings(content):
        say(line)
    say(f"{len(content['tasks'])} tasks are in the hub {out / 'hub'}; {out} has results.json and report.html")
