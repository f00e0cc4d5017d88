"""Where in an image a logit comes from: cell by cell of the grid, and over the photograph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from torchsnow.data import eval_transform, read_image
from torchsnow.delta import Delta
from torchsnow.errors import DeltaError
from torchsnow.hub import Hub
from torchsnow.io.files import clear_os_errors
from torchsnow.source import FeatureMaps, InputConfig, Source
from torchsnow.source.grid import Grid
from torchsnow.task_file import Task

_SIDE = 448  # pixels of a picture, at least
_FOR, _AGAINST = (0.85, 0.1, 0.1), (0.1, 0.25, 0.85)  # red and blue
_STRONGEST = 0.7  # of the colour over the photograph
_LEAST_VARIANCE = 1e-12  # of a channel over the cells: at 0 the root has no gradient


def heat_map(source: Source, delta: Delta, image: Tensor, label: int) -> Tensor:
    """What every cell of the grid adds to the logit of the class `label` of a frozen delta, (Gh, Gw), for a normalised
    image (1, 3, S, S).

    It is exact for the averages that a head reads, in which the logit is linear, and the gradient times the value for
    deviations and for what a body makes of the grid. The source's last features have no place in the image and are left
    out. Raises DeltaError for a delta that reads no grid.
    """
    request = delta.request(delta.choose())
    if request.channels or not request.grids:
        raise DeltaError("it reads whole layers or the last features, and no grid of the image: there is no heat map")
    reduction, (index,) = delta.spec.grid_reduction, request.grids.values()
    given = source(image, replace(request, grids={reduction: index}, stds=frozenset()))
    with torch.enable_grad():
        maps = given.grids[reduction].maps.detach().requires_grad_()
        stds = maps.var((2, 3), correction=0).clamp_min(_LEAST_VARIANCE).sqrt()
        grid = Grid(index, maps, maps.mean((2, 3)), stds)
        features = FeatureMaps(image, {}, grids={reduction: grid}, last=given.last)
        (gradient,) = torch.autograd.grad(delta(features)[0, label], maps)
    heat: Tensor = (gradient * maps.detach()).sum(1)[0]
    return heat


def over_photograph(image: Tensor, heat: Tensor, config: InputConfig) -> Image.Image:
    """The normalised image (1, 3, S, S), grey, with what speaks for the class in red and against it in blue."""
    side = max(_SIDE, image.shape[2])
    grey = visible(image[0], config).mean(0, keepdim=True)
    shown = F.interpolate(grey[None], (side, side), mode="bilinear")[0]
    strength = F.interpolate(heat[None, None].float().cpu(), (side, side), mode="bicubic")[0]
    strength = strength / strength.abs().max().clamp_min(1e-12)
    speaks_for, against = (torch.tensor(one).view(3, 1, 1) for one in (_FOR, _AGAINST))
    alpha = _STRONGEST * strength.abs()
    pixels = (shown * (1 - alpha) + torch.where(strength > 0, speaks_for, against) * alpha).clamp(0, 1)
    return as_picture(pixels)


def visible(pixels: Tensor, config: InputConfig) -> Tensor:
    """A normalised image (3, H, W) as it looks, in 0..1, on the CPU."""
    mean, std = torch.tensor(config.mean)[:, None, None], torch.tensor(config.std)[:, None, None]
    return (pixels.cpu() * std + mean).clamp(0, 1)


def as_picture(pixels: Tensor) -> Image.Image:
    """Pixels (3, H, W) in 0..1 as a picture."""
    return Image.fromarray((255 * pixels).round().byte().permute(1, 2, 0).contiguous().numpy())


def drawn(source: Source, task: Task, picture: Image.Image, label: str) -> Image.Image:
    """A picture with what speaks for and against the class `label` of a task. Raises DeltaError as `heat_map` does."""
    pixels = eval_transform(source.input_config, task.framing)(picture)[None].to(next(source.parameters()).device)
    heat = heat_map(source, task.delta, pixels, task.classes.index(label))
    return over_photograph(pixels, heat, source.input_config)


def write_heat_maps(
    hub: Hub, answers: Sequence[tuple[str, str, str]], folder: Path, progress: Callable[[int, int], None]
) -> tuple[list[Path], dict[str, str]]:
    """A picture for every answer, (image, task, class): "NUMBER-IMAGE.TASK.png" in a folder, which is made.

    Returns the files, and why tasks have none. `progress` is called with (answers done, answers in all). Raises
    DataError for an image that cannot be read any more.
    """
    written: list[Path] = []
    refused: dict[str, str] = {}
    numbers = {path: number for number, path in enumerate(dict.fromkeys(path for path, _, _ in answers), 1)}
    with clear_os_errors("write heat maps into", folder):
        folder.mkdir(parents=True, exist_ok=True)
        for done, (path, name, label) in enumerate(answers, 1):
            try:
                picture = drawn(hub.source, hub.task(name), read_image(Path(path)), label)
            except DeltaError as error:
                refused[name] = str(error)
                continue
            file = folder / f"{numbers[path]:04}-{Path(path).stem}.{name}.png"
            picture.save(file)
            written.append(file)
            progress(done, len(answers))
    return written, refused
