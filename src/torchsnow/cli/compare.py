"""`torchsnow compare`: methods x data sets x seeds under one budget."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from torchsnow.cli.data_options import validate_outside
from torchsnow.cli.output import load_checked, note, percent, print_json, print_table, say
from torchsnow.errors import ExperimentError
from torchsnow.io.bars import TimeLeft

if TYPE_CHECKING:
    from torchsnow.experiments.compare import Comparison
    from torchsnow.experiments.plan import Experiment, PlannedCell
    from torchsnow.report.results import Results
    from torchsnow.report.summary import Summary

_METHODS = "full,features,head,snow"
_AS_THEY_ARE = (
    *("epochs", "image_size", "batch_size", "augmentation", "lr_tries", "train_images", "test_images"),
    *("optimizer", "weight_decay", "precision", "num_workers", "device"),
)
"""Options that are settings of an experiment under the same names."""
_MOST_SEEDS = 1000


def compare(
    data: Annotated[list[str] | None, typer.Argument(help="Data sets, as for train.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the results; what is finished is kept.")] = Path("comparison"),
    experiment: Annotated[Path | None, typer.Option(help="YAML file of an experiment, in place of options.")] = None,
    paper: Annotated[bool, typer.Option("--paper", help="The paper's table: ResNet-50, its five data sets.")] = False,
    smoke: Annotated[bool, typer.Option("--smoke", help="Five methods, offline, in two minutes: a trial run.")] = False,
    methods: Annotated[str | None, typer.Option(help=f"METHOD[:PRESET], with commas; else '{_METHODS}'.")] = None,
    seeds: Annotated[int | None, typer.Option(max=_MOST_SEEDS, help="How many, from 0; 3 by default.")] = None,
    source: Annotated[str | None, typer.Option(help="Sources, separated by commas; 'bundled' by default.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training images; 15 by default.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Pixels; 224 by default.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per step; 32 by default.")] = None,
    augmentation: Annotated[str | None, typer.Option(help="'none', 'flip' (default), 'light' or 'strong'.")] = None,
    lr_tries: Annotated[int | None, typer.Option(help="Learning rates tried for each method; 3 by default.")] = None,
    train_images: Annotated[int | None, typer.Option(help="Train on a subsample of so many images.")] = None,
    test_images: Annotated[int | None, typer.Option(help="Test on a subsample of so many images.")] = None,
    optimizer: Annotated[str | None, typer.Option(help="'adamw' (default) or 'sgd'.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="0.05 by default.")] = None,
    precision: Annotated[str | None, typer.Option(help="Of the source pass: 'fp32' (default) or 'bf16'.")] = None,
    amp: Annotated[bool, typer.Option("--amp", help="bfloat16 autocast of the trained part, on CUDA.")] = False,
    num_workers: Annotated[int | None, typer.Option(help="Processes that load images besides the main one.")] = None,
    image_cache_mb: Annotated[int | None, typer.Option(help="Most MB of decoded images; 1074 by default.")] = None,
    device: Annotated[str | None, typer.Option(help="'auto', 'cpu', 'cuda' or 'cuda:1'.")] = None,
    shard: Annotated[str | None, typer.Option(help="I/N: do the I-th of N parts alone; others do the rest.")] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Train nothing: write the results of the shards.")] = False,
    ray: Annotated[
        str | None, typer.Option(help="Ray cluster: HOST:PORT, 'auto' or 'local'; each cell is one of its tasks.")
    ] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try cells that failed once more.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, and no progress.")] = False,
) -> None:
    """Compare methods on data sets under one budget.

    Every method gets the same epochs, images and number of learning rates,
    chosen on the validation split. Each finished cell is kept: the same command
    continues where it was stopped, and may name more methods, data sets or seeds.
    Options change what --experiment, --paper or --smoke says, DATA too.
    Writes results.json, results.csv and report.html.

    Example: torchsnow compare photos/ --methods full,head,snow --out comparison
    """
    given = _given(locals())
    from torchsnow.cluster import validate_ray
    from torchsnow.experiments.compare import Comparison
    from torchsnow.train import torch_device

    torch_device(device or "auto")
    others = ("--merge", merge), ("--retry-failed", retry_failed), ("--ray", ray)
    part = _shard(shard, [name for name, given in others if given])
    if ray is not None:
        if merge:
            raise ExperimentError("--ray and --merge contradict each other: --merge trains nothing")
        validate_ray()
    chosen = _experiment(given, experiment, paper, smoke)
    for name in chosen.data:
        validate_outside(name, out, "--out")
    comparison = Comparison(chosen, out, lambda name: load_checked(name, quiet=json))
    _carry_out(comparison, part, ray, merge, retry_failed, json)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """What the options say of the experiment, by its own names."""
    seeds, cache_mb = options["seeds"], options["image_cache_mb"]
    given = {
        **{name: options[name] for name in _AS_THEY_ARE},
        "data": options["data"] or None,
        "methods": _split(options["methods"]),
        "seeds": None if seeds is None else list(range(seeds)),
        "sources": _split(options["source"]),
        "amp": options["amp"] or None,
        "image_cache_bytes": None if cache_mb is None else 1_000_000 * cache_mb,
    }
    return {name: value for name, value in given.items() if value is not None}


def _carry_out(
    comparison: Comparison,
    part: tuple[int, int] | None,
    ray: str | None,
    merge: bool,
    retry_failed: bool,
    json: bool,
) -> None:
    cells = comparison.experiment.cells()
    if not (json or merge):
        comparison.validate_cells()
        _say_plan(comparison, part)
    if part is not None:
        with _telling_how_to_go_on(comparison), _progress(quiet=json) as report:
            comparison.run(report, note, part)
        say(
            f"{comparison.num_kept} cells of shard {part[0]}/{part[1]} are done in {comparison.path}; when all "
            "are, --merge writes the results"
        )
        return
    with comparison.owned(), _telling_how_to_go_on(comparison), _progress(quiet=json) as report:
        if retry_failed:
            comparison.forget_failed()
        if not merge:
            comparison.run(report, note, part, ray)
        report(None, len(cells), len(cells) + 1)  # the costs are the last piece of work
        results, missing = comparison.finish(note), comparison.missing()
    if json:
        print_json(results.to_dict())
    else:
        _show(results, comparison.path)
    if missing:
        raise ExperimentError(
            f"{len(missing)} of {len(cells)} cells are missing, such as {missing[0]}; the same command without --merge "
            "does them"
        )
    if results.failed:
        raise ExperimentError(
            f"{len(results.failed)} of {len(cells)} cells failed; report.html says why, the others are kept, and "
            "--retry-failed tries the failed ones again"
        )


def _shard(text: str | None, others: list[str]) -> tuple[int, int] | None:
    if text is None:
        return None
    if others:
        raise ExperimentError(f"--shard and {others[0]} contradict each other: {others[0]} is about all cells")
    number, _, count = text.partition("/")
    if not (number.isascii() and number.isdigit() and count.isascii() and count.isdigit()):
        raise ExperimentError(f"--shard is {text!r}; expected I/N, such as 1/4")
    return int(number), int(count)


def _split(text: str | None) -> list[str] | None:
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def _experiment(given: dict[str, Any], file: Path | None, paper: bool, smoke: bool) -> Experiment:
    from torchsnow.experiments.plan import Experiment, packaged_experiment

    ready = [name for name, wanted in (("--experiment", file), ("--paper", paper), ("--smoke", smoke)) if wanted]
    if len(ready) > 1:
        raise ExperimentError(f"{ready[0]} and {ready[1]} contradict each other: each is a whole experiment")
    if file is not None:
        return Experiment.load(file).changed(given)
    if paper or smoke:
        return packaged_experiment("paper" if paper else "smoke").changed(given)
    if "data" not in given:
        raise ExperimentError("name at least one data set, or --experiment FILE, --paper or --smoke")
    return Experiment.from_dict({"name": "comparison", "methods": _split(_METHODS), **given})


def _say_plan(comparison: Comparison, part: tuple[int, int] | None) -> None:
    from torchsnow.experiments.costs import plan_text

    cells = [cell for cell in comparison.experiment.shard(*part or (1, 1)) if comparison.read(cell) is None]
    if cells:
        note(plan_text(cells, comparison.experiment, comparison.resources))


@contextmanager
def _telling_how_to_go_on(comparison: Comparison) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as stop:
        kept = f"{comparison.num_kept} of {len(comparison.experiment.cells())} cells are kept"
        raise KeyboardInterrupt(f"stopped; {kept}; the same command continues") from stop


@contextmanager
def _progress(quiet: bool) -> Iterator[Any]:
    """A bar over the cells, on stderr, and the function that moves it: (cell, done, total)."""
    description = TextColumn("{task.description}")
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeLeft(), description)
    # FORCE_COLOR makes no terminal of a log, whatever Rich takes it for.
    with Progress(*columns, console=Console(stderr=True), disable=quiet or not sys.stderr.isatty()) as bar:
        task = bar.add_task("", total=None)

        def report(cell: PlannedCell | None, done: int, total: int) -> None:
            text = "measuring training steps" if cell is None else str(cell)
            bar.update(task, completed=done, total=total, description=text)

        yield report


def _show(results: Results, out: Path) -> None:
    from torchsnow.report.summary import summarise, where_snow_loses

    columns = [
        "source",
        "data",
        "method",
        "test accuracy ± standard deviation",
        "seeds",
        "parameters",
        "a further task",
        "stored, kB",
    ]
    print_table(columns, [_cells(row) for row in summarise(results)])
    for line in where_snow_loses(results):
        say(line)
    say(f"{len(results.cells)} cells are in {out}: results.json, results.csv, report.html")


def _cells(row: Summary) -> list[Any]:
    from torchsnow.report.formatting import row_label, share_of_source

    accuracy = row.accuracy
    width = "" if accuracy.deviation is None else f" ± {100 * accuracy.deviation:.1f}"
    name = row_label(row.method, row.variant)
    shown = f"{percent(accuracy.mean)}{width}"
    cost = f"{row.num_params:,}", share_of_source(row.added_share), row.stored_bytes // 1000
    return [row.source, row.data, name, shown, len(row.seeds), *cost]
