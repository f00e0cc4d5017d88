"""Activation maximisation: an image that is made so that one channel of the source is as large as it can get.

The image is described by its spectrum, scaled so that all frequencies are equally easy to change, and by colours that
are as correlated as those of photographs, as in "Feature Visualization" (Olah, Mordvintsev and Schubert, 2017). It is
moved, turned and scaled a little at every step, so that only what survives this can grow. Many channels behind a ReLU
are zero on a grey start, with no way up; so in the first steps a little of the gradient goes through closed ReLUs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torchvision.transforms import InterpolationMode, v2

from torchsnow.errors import SourceError
from torchsnow.explain.activations import Averages
from torchsnow.explain.subscriptions import Channel
from torchsnow.source import Source

STEPS = 128
MOST_PX = 128  # of a side: more shows little more and takes longer
_LR = 0.05
_LEAKY_SHARE = 0.25  # of the steps, at their start
_LEAK = 0.1
_START_STD = 0.01
# A square root of the correlation of red, green and blue over the pixels of ImageNet.
_COLOURS = torch.tensor([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])
_GREY = 0.5  # what comes into view when the image is moved: torchvision fills with 0; other fills are written in place


def maximise(
    source: Source,
    channels: Sequence[Channel],
    image_size: int,
    progress: Callable[[int, int], None],
    steps: int = STEPS,
) -> Tensor:
    """One image for each channel, (channels, 3, S, S) in 0..1, on the CPU.

    S is `image_size` in pixels, or MOST_PX where that is less and the source takes it. The channel's mean over all
    positions is maximised. Two calls give the same; torch's global generator is left as it was.
    """
    config, averages = source.input_config, Averages(source, channels)
    image_size = _affordable(source, averages, image_size)
    device = next(source.parameters()).device
    mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (config.mean, config.std))
    shake = v2.RandomAffine(5, (1 / 16, 1 / 16), (0.9, 1.1), interpolation=InterpolationMode.BILINEAR, fill=None)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        start = torch.view_as_real(torch.fft.rfft2(torch.zeros(len(channels), 3, image_size, image_size)))
        spectrum = (_START_STD * torch.randn(start.shape)).to(device).requires_grad_()
        optimizer = torch.optim.Adam([spectrum], _LR)
        for step in range(steps):
            images = (shake(painted(spectrum, image_size) - _GREY) + _GREY - mean) / std
            with _LeakyGradients() if step < _LEAKY_SHARE * steps else nullcontext():
                values = averages.read(source.differentiable(images, averages.request)).diagonal()
            (spectrum.grad,) = torch.autograd.grad(-values.sum(), spectrum)
            optimizer.step()
            progress(step + 1, steps)
    return painted(spectrum.detach(), image_size).cpu()


class _LeakyGradients(TorchFunctionMode):
    """ReLUs give what they always give, and let some of the gradient through even where they are closed."""

    _OF = frozenset({F.relu, F.relu6, F.hardtanh, torch.relu, Tensor.relu})

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        value = func(*args, **(kwargs or {}))
        return value + _LEAK * (args[0] - args[0].detach()) if func in self._OF else value


def _affordable(source: Source, averages: Averages, image_size: int) -> int:
    if image_size <= MOST_PX:
        return image_size
    try:
        source(torch.zeros(1, 3, MOST_PX, MOST_PX, device=next(source.parameters()).device), averages.request)
    except SourceError:  # some networks take no images smaller than their own
        return image_size
    return MOST_PX


def painted(spectrum: Tensor, image_size: int) -> Tensor:
    """Spectra (B, 3, S, S // 2 + 1, 2) of decorrelated colours -> images (B, 3, S, S) in 0..1."""
    rows = torch.fft.fftfreq(image_size, device=spectrum.device)[:, None]
    columns = torch.fft.rfftfreq(image_size, device=spectrum.device)
    frequency = (rows.square() + columns.square()).sqrt().clamp_min(1 / image_size)
    scaled = torch.view_as_complex(spectrum) / frequency
    pixels = torch.fft.irfft2(scaled, (image_size, image_size), norm="ortho") / 4
    colours = (_COLOURS / _COLOURS.norm(dim=0).max()).to(pixels.device)
    return torch.einsum("rc,bchw->brhw", colours, pixels).sigmoid()
