"""From where on an image is unlike those that a task was trained for."""

from __future__ import annotations

import math

import torch
from torch.utils.data import DataLoader

from torchsnow.data import ImageSet
from torchsnow.model import SnowModel
from torchsnow.train import TrainSettings

UNKNOWN_RATE = 0.05
"""How many images of the task's own kind are taken for unknown, at most, on average."""
_MOST_IMAGES = 1_000  # more hardly say it any better


def unknown_above(model: SnowModel, val: ImageSet, settings: TrainSettings) -> float | None:
    """The distance (see `Head.distance`) above which an image is unknown, by validation images.

    Of images like those, at most `UNKNOWN_RATE` are above it, whatever their distribution (split conformal prediction,
    Vovk et al., "Algorithmic Learning in a Random World", 2005). None for fewer than 19 images, which cannot say, and
    for a task whose head reads nothing of the source.
    """
    images, delta = val.subset(range(0, len(val), math.ceil(len(val) / _MOST_IMAGES))), model.delta.eval()
    rank = math.ceil((len(images) + 1) * (1 - UNKNOWN_RATE))
    if rank > len(images):
        return None
    distances, request = [], delta.request(delta.choose())
    with torch.no_grad():
        for pixels, _ in DataLoader(images, settings.batch_size):
            of_batch = delta.distance(model.source(pixels.to(settings.torch_device()), request))
            if of_batch is None:
                return None
            distances.append(of_batch.float().cpu())
    limit = float(torch.cat(distances).kthvalue(rank).values)
    return limit if 0 < limit < math.inf else None
