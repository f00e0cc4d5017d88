"""Pictures to compare engines and files with, where no photographs are at hand."""

from __future__ import annotations

import torch
from torch import Tensor

from torchsnow.source import InputConfig


def smooth_images(batch_size: int, image_size: int, config: InputConfig) -> Tensor:
    """Random pictures with the large areas and few edges of photographs, normalised: (B, 3, S, S)."""
    generator = torch.Generator().manual_seed(batch_size)
    picture = torch.zeros(batch_size, 3, image_size, image_size)
    for cells in (2, 4, 8, 16, 32):
        layer = torch.rand(batch_size, 3, cells, cells, generator=generator)
        picture += torch.nn.functional.interpolate(layer, size=image_size, mode="bilinear") / cells
    picture /= picture.amax()
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (config.mean, config.std))
    return (picture - mean) / std
