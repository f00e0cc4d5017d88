"""What `train` and `train-many` have in common: how tasks are trained, and what is said when that is stopped."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import replace as replaced
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from torchsnow.cli.data_options import GreyRange
from torchsnow.errors import TrainingError
from torchsnow.train.ranks import here

if TYPE_CHECKING:
    from torchsnow.source import Source
    from torchsnow.workflows.recipe import Recipe

_AS_THEY_ARE = (
    *("optimizer", "weight_decay", "label_smoothing", "class_weights", "augmentation", "crop_mode", "grey_range"),
    *("patience", "amp", "seed", "device", "num_workers"),
)
"""Options that are settings under the same names."""
PRETRAINED = "pretrained"


@dataclass(frozen=True)
class TrainingOptions:
    """Options of a verb that trains, see `with_option_groups`."""

    source: Annotated[
        str | None,
        typer.Option(
            "--source",
            "--model",
            help="timm model, hf-hub:ORG/NAME, torchvision/NAME or 'bundled', the default. A hub keeps its source.",
        ),
    ] = None
    weights: Annotated[
        str | None,
        typer.Option("--weights", "--checkpoint", help="'pretrained', the default; 'random'; or a file, also .pth."),
    ] = None
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="The same as --weights pretrained, which is the default.")
    ] = False
    mean: Annotated[
        tuple[float, float, float] | None, typer.Option(help="Of the source's images, for red, green, blue in 0..1.")
    ] = None
    std: Annotated[
        tuple[float, float, float] | None, typer.Option(help="Their standard deviations; by default the source's own.")
    ] = None
    method: Annotated[
        str,
        typer.Option(
            help="snow, scratch, random, side (for a hub); train alone: full, features, head, taps, bn, lora."
        ),
    ] = "snow"
    preset: Annotated[str, typer.Option(help="'default'; 'small', 'large', 'paper' (snow); 'probe' (head).")] = (
        "default"
    )
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the training images; by default by their number, 5 to 60.")
    ] = None
    image_size: Annotated[
        int | None,
        typer.Option(
            *("--image-size", "--img-size"),
            help="Pixels, to 1024; by default the images' own size, 64 to the source's own.",
        ),
    ] = None
    crop_mode: Annotated[
        str,
        typer.Option(help="'squash', the picture as a square; 'center', its middle; 'border', all, filled up."),
    ] = "squash"
    grey_range: GreyRange = (0, 65_535)
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", "--batch", help="Images per step; 32 by default, fewer for few images."),
    ] = None
    lr: Annotated[
        float | None, typer.Option(help="Highest learning rate; by default the method's own, unless a test disagrees.")
    ] = None
    optimizer: Annotated[str, typer.Option(help="'adamw' or 'sgd'.")] = "adamw"
    weight_decay: Annotated[float, typer.Option(help="Weight decay of the delta's weights.")] = 0.05
    warmup_epochs: Annotated[
        int | None, typer.Option(help="Epochs in which the learning rate rises; 1 by default, 0 of one.")
    ] = None
    label_smoothing: Annotated[float, typer.Option(help="Share of a label spread over all classes, below 1.")] = 0.1
    class_weights: Annotated[str, typer.Option(help="'none', or 'balanced' for classes of unequal size.")] = "none"
    augmentation: Annotated[str, typer.Option(help="'none', 'flip', 'light' or 'strong'.")] = "flip"
    patience: Annotated[int | None, typer.Option(help="Stop after so many epochs without a better model.")] = None
    precision: Annotated[
        str | None, typer.Option(help="Of the source pass: 'fp32' or 'bf16'; by default the hub's, or fp32.")
    ] = None
    amp: Annotated[bool, typer.Option("--amp", help="bfloat16 autocast of the trained part, on CUDA.")] = False
    seed: Annotated[int, typer.Option(help="Of the split, the first weights and the order of images.")] = 0
    device: Annotated[str, typer.Option(help="'auto', 'cpu', 'cuda' or 'cuda:1'.")] = "auto"
    num_workers: Annotated[int, typer.Option(help="Processes that load images besides the main one.")] = 0
    store_mb: Annotated[int, typer.Option(help="Most MB of stored features; 0 computes them in every epoch.")] = 16_000

    def settings(self) -> dict[str, Any]:
        """What is known of `TrainSettings` before source and data are; it loads no torch. Raises TrainingError."""
        from torchsnow.train import TrainSettings
        from torchsnow.train.auto import MOST_EPOCHS

        epochs = MOST_EPOCHS if self.epochs is None else self.epochs
        known = {name: getattr(self, name) for name in ("image_size", "batch_size", "lr", "precision")}
        given = {name: getattr(self, name) for name in _AS_THEY_ARE} | {
            "epochs": epochs,
            "warmup_epochs": min(1, epochs - 1) if self.warmup_epochs is None else self.warmup_epochs,
            "store_bytes": 1_000_000 * self.store_mb,
            **{name: value for name, value in known.items() if value is not None},
        }
        TrainSettings(**given)
        if self.pretrained and self.weights not in (None, PRETRAINED):
            raise TrainingError(f"--pretrained and --weights {self.weights} contradict each other; give one of them")
        return given

    def recipe(self, time_s: float | None = None) -> Recipe:
        """The method and its settings. Raises TrainingError for a method or a device that there is not."""
        from torchsnow.methods import kind_of, split_name
        from torchsnow.train import AUTO, TrainSettings
        from torchsnow.workflows.recipe import Recipe

        method, preset = split_name(self.method) if ":" in self.method else (self.method, self.preset)
        settings = TrainSettings(**{"lr": kind_of(method, preset).lr, **self.settings()})
        settings.torch_device()
        return Recipe(settings, method, preset, [name for name in AUTO if getattr(self, name) is None], time_s)

    def on_source(self, recipe: Recipe, hub: Path | None) -> tuple[Recipe, Source]:
        """The source of the hub, or for a new one, and the recipe in its precision. Raises HubError and SourceError."""
        from torchsnow.hub import source_for

        weights = PRETRAINED if self.pretrained else self.weights
        source = source_for(hub, self.source, weights, self.precision, self.mean, self.std)  # type: ignore[arg-type] # `settings` has checked it
        return replaced(recipe, settings=replaced(recipe.settings, precision=source.precision)), source


@contextmanager
def telling_how_to_resume(is_begun: Callable[[], bool]) -> Iterator[None]:
    """Ctrl-C inside says by which command the training continues, if there is anything to continue with."""
    try:
        yield
    except KeyboardInterrupt as stop:
        words = [*here().launcher, *(word for word in sys.argv[1:] if word != "--resume"), "--resume"]
        how = f"to continue: {shlex.join(words)}" if is_begun() else "no training was begun"
        raise KeyboardInterrupt(f"{str(stop).removesuffix('.') or 'interrupted'}; {how}") from stop
