"""`torchsnow demo`: the main job from end to end, offline, on real photographs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from torchsnow.cli.output import file_list, load_checked, percent, print_json, print_table, say

_DATA = "elpv:binary"
_TASK = "solar-cells"


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the hub and the run; must be new or a former demo's.")],
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = 8,
    image_size: Annotated[int, typer.Option(help="Pixels.")] = 144,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, and no progress.")] = False,
) -> None:
    """Train a task on 2,624 photographs of solar cells, evaluate it, add it to a hub, and predict.

    Example: torchsnow demo --out demo-output
    """
    import shutil

    from torchsnow.data import Splits
    from torchsnow.errors import DataError
    from torchsnow.hub import SOURCE_FILE, Hub
    from torchsnow.jobs import predict_images, train_task
    from torchsnow.source import load_source
    from torchsnow.train import RunFolder, TrainSettings

    start = time.monotonic()
    hub_path, run = out / "hub", RunFolder(out / "run")
    if (hub_path / SOURCE_FILE).exists():  # a former demo
        shutil.rmtree(hub_path)
        shutil.rmtree(run.path, ignore_errors=True)
    elif out.exists() and any(out.iterdir()):
        raise DataError(f"{out} holds something else than a demo; give --out a new folder")
    data = load_checked(_DATA, quiet=json)
    source = load_source()
    if not json:
        say(f"source: {source.name} with ImageNet weights, {len(source.taps)} taps; data: {len(data.examples)} images")
    settings = TrainSettings(epochs=epochs, image_size=image_size, augmentation="light", warmup_epochs=1)
    result = train_task(data, _TASK, hub_path, run, settings, source, quiet=json)
    test = Splits.load(run.splits, data).test
    shown = [next(e for e in test if e.label == label) for label in range(len(data.classes))] + list(test[:2])
    predictions = predict_images(Hub.open(hub_path, source), [e.path for e in shown], None, lambda path, why: None)
    seconds = round(time.monotonic() - start, 1)
    if json:
        print_json({**result.summary(), "seconds": seconds, "predictions": [p.probabilities for p in predictions]})
        return
    rows = [
        [Path(p.image).name, data.classes[example.label], p.label, percent(p.probabilities[p.label])]
        for p, example in zip(predictions, shown, strict=True)
    ]
    print_table(["image", "true class", "predicted", "probability"], rows)
    test_metrics = result.test
    assert test_metrics is not None
    say(
        f"test accuracy {percent(test_metrics.accuracy)} (balanced {percent(test_metrics.balanced_accuracy)}) on "
        f"{test_metrics.num_images} held-out images; the task is {result.size_bytes / 1e6:.2f} MB"
    )
    say(f"hub: {hub_path}; run: {run.path} with {file_list(run.path)}; {seconds:.0f} s in all")
