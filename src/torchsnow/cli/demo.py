"""`torchsnow demo`: the main job from end to end, offline, on real photographs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from torchsnow.cli.output import load_checked, note, percent, print_json, print_table, say

if TYPE_CHECKING:
    from torchsnow.data import Example
    from torchsnow.workflows.predictions import Prediction
    from torchsnow.workflows.training import TrainedTask

_DATA = "elpv:binary"
_TASK = "solar-cells"
_PATIENCE = 10


def demo(
    out: Annotated[Path, typer.Option(help="Folder for hub/ and run/; a former demo's are replaced.")],
    epochs: Annotated[int, typer.Option(help="Most passes over the training images.")] = 16,
    image_size: Annotated[int, typer.Option(help="Pixels.")] = 128,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, and no progress.")] = False,
) -> None:
    """Try everything: train, evaluate and use a task, offline.

    The data are 2,624 photographs of solar cells, the source is EfficientNet-
    Lite0 with its ImageNet weights. It takes a few minutes.

    Example: torchsnow demo --out demo-output
    """
    from torchsnow.data import Splits
    from torchsnow.hub import Hub, source_for
    from torchsnow.source import BUNDLED
    from torchsnow.train import RunFolder, TrainSettings
    from torchsnow.workflows.place import Place
    from torchsnow.workflows.predictions import predict_images
    from torchsnow.workflows.recipe import Recipe
    from torchsnow.workflows.training import train_task, validate_run

    start = time.monotonic()
    warmup_epochs = min(1, epochs - 1)
    settings = TrainSettings(epochs=epochs, image_size=image_size, warmup_epochs=warmup_epochs, patience=_PATIENCE)
    hub_path, run = out / "hub", RunFolder(out / "run")
    data = load_checked(_DATA, quiet=json)
    source = source_for(hub_path, BUNDLED, None, None)
    if not json:
        note(f"source: {source.name} with ImageNet weights, {len(source.taps)} taps; data: {len(data.examples)} images")
    validate_run(_TASK, hub_path, run, resume=True, replace=True)
    with run.owned():
        if run.args.exists():  # a former demo
            run.clear()
        place = Place(hub_path, source, replace=True)
        result = train_task(data, _TASK, run, Recipe(settings, auto=["lr"]), source, place, say=None if json else note)
    shown = _some_of_each(Splits.load(run.splits, data).test, len(data.classes))
    files = [example.path for example in shown]
    predictions = list(predict_images(Hub.open(hub_path, source), files, [_TASK], lambda path, why: None))
    truths = [data.classes[example.label] for example in shown]
    seconds = round(time.monotonic() - start, 1)
    if json:
        said = [{"image": p.image, "true_class": t, "label": p.label} for p, t in zip(predictions, truths, strict=True)]
        print_json({**result.summary(), "seconds": seconds, "predictions": said})
    else:
        _show(result, predictions, truths, seconds)


def _some_of_each(examples: tuple[Example, ...], num_classes: int) -> list[Example]:
    """Three images of every class."""
    return [e for label in range(num_classes) for e in [e for e in examples if e.label == label][:3]]


def _show(result: TrainedTask, predictions: list[Prediction], truths: list[str], seconds: float) -> None:
    print_table(
        ["image", "true class", "predicted", "probability"],
        [
            [Path(p.image).name, truth, p.label, percent(p.probabilities[p.label])]
            for p, truth in zip(predictions, truths, strict=True)
        ],
    )
    summary = result.summary()
    what = "the linear probe that it started as" if result.alone else "a grid delta"
    say(
        f"validation accuracy: a linear probe {percent(summary['probe_val_accuracy'])} (cross-entropy "
        f"{result.fit.history[0].val_loss:.3f}), the task {percent(summary['val_accuracy'])} "
        f"({result.fit.metrics.loss:.3f}); what ships is {what}"
    )
    say(
        f"test accuracy {percent(summary['test_accuracy'])} (balanced {percent(summary['test_balanced_accuracy'])}) on "
        f"{summary['test_images']} held-out images; the task is {result.size_bytes / 1e6:.2f} MB"
    )
    files = ", ".join(
        sorted(path.name for path in result.run.iterdir() if path.is_file() and not path.name.startswith("."))
    )
    say(f"hub: {result.hub}; run: {result.run} with {files}; {seconds:.0f} s in all")
