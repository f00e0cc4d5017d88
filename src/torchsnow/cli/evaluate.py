"""`torchsnow evaluate`: how good a task is on labelled images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from torchsnow.cli.data_options import HUB, FollowLinks, HubFolder, LabelColumn, PathColumn, SplitColumn
from torchsnow.cli.output import counting, load_checked, percent, print_json, print_table, say, validate_writable

if TYPE_CHECKING:
    from torchsnow.train import Metrics

COLUMNS = ("image", "class", "taken_for", "is_right", "probability", "probability_of_class")
"""Of the table with a row per image."""
_MOST_COLUMNS = 20  # classes up to which the confusion matrix is shown; with more, the most frequent mistakes
_MOST_ROWS, _FEW_ROWS = 100, 20  # classes up to which each has a row; of more, and of mistakes, a few have


def evaluate(
    data: Annotated[str, typer.Argument(help="Labelled images, as for train.")],
    *,
    hub: HubFolder = HUB,
    task: Annotated[str, typer.Option(help="Name of the task.")],
    split: Annotated[
        str | None, typer.Option(help="'all', 'train', 'val' or 'test'; by default 'test' with --splits, else 'all'.")
    ] = None,
    splits: Annotated[Path | None, typer.Option(help="splits.json of the training run.")] = None,
    path_column: PathColumn = "",
    label_column: LabelColumn = "",
    split_column: SplitColumn = "",
    follow_links: FollowLinks = False,
    csv: Annotated[Path | None, typer.Option(help="Also write a table with a row per image.")] = None,
    device: Annotated[str, typer.Option(help="'auto', 'cpu', 'cuda' or 'cuda:1'.")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print JSON, and no progress.")] = False,
) -> None:
    """Measure how good a task is: accuracy, classes, calibration.

    With the training's splits.json, only the images that it held out count.

    Example: torchsnow evaluate photos/ --hub my-hub --task screws
    """
    from torchsnow.data import Columns, validate_exists
    from torchsnow.hub import Hub
    from torchsnow.io.files import write_csv

    if csv is not None:
        validate_writable(csv)
    opened = Hub.open(hub)
    several = opened.info(task).thresholds is not None  # before torch and the images, which take longer
    validate_exists(data)

    from torchsnow.train import torch_device
    from torchsnow.workflows.evaluation import evaluate_task, examples_of

    on_device = torch_device(device)
    columns = Columns(path_column, label_column, split_column)
    how = {"columns": columns, "follow_links": follow_links, "distinct_names": True}  # the task knows which are
    loaded = load_checked(data, quiet=json, for_training=False, multi_label=several, **how)
    chosen = split or ("all" if splits is None else "test")
    opened.source.to(on_device)
    examples = examples_of(loaded, chosen, splits)
    with counting("classifying images", quiet=json) as progress:
        evaluation = evaluate_task(opened, task, loaded, examples, progress)
    metrics = evaluation.metrics
    if csv is not None:
        write_csv(csv, COLUMNS, evaluation.rows(loaded))
    if json:
        print_json({"task": task, "split": chosen, **metrics.to_dict()})
    else:
        _show(metrics)


def _show(metrics: Metrics) -> None:
    shown = metrics.per_class
    if len(shown) > _MOST_ROWS:
        shown = tuple(sorted((row for row in shown if row.num_images), key=lambda row: row.f1)[:_FEW_ROWS])
        say(f"the {len(shown)} of {len(metrics.per_class)} classes with the lowest F1; --json has all")
    rows = [[row.name, row.num_images, *map(percent, (row.precision, row.recall, row.f1))] for row in shown]
    print_table(["class", "images", "precision", "recall", "F1"], rows)
    if metrics.confusion is not None and len(metrics.classes) <= _MOST_COLUMNS:
        print_table(
            ["true \\ taken for", *metrics.classes],
            [[name, *row] for name, row in zip(metrics.classes, metrics.confusion, strict=True)],
        )
    elif metrics.mistakes:
        say("the most frequent mistakes; --json has all")
        frequent = [[one.name, one.taken_for, one.num_images] for one in metrics.mistakes[:_FEW_ROWS]]
        print_table(["class", "taken for", "images"], frequent)
    if metrics.mean_average_precision is not None:
        say(
            f"mean average precision {percent(metrics.mean_average_precision)}, all labels right "
            f"{percent(metrics.accuracy)}, calibration error {percent(metrics.calibration_error)}, on "
            f"{metrics.num_images} images"
        )
        return
    top5 = "" if metrics.top5 is None else f", top-5 {percent(metrics.top5)}"
    say(
        f"accuracy {percent(metrics.accuracy)}{top5}, balanced {percent(metrics.balanced_accuracy)}, always naming the "
        f"largest class {percent(metrics.majority_share)}, "
        f"calibration error {percent(metrics.calibration_error)}, on {metrics.num_images} images"
    )
