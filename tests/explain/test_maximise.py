from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from torchsnow.delta.head import LAST
from torchsnow.explain.channels import MOST_PX, maximise, painted
from torchsnow.explain.subscriptions import Channel
from torchsnow.source import InputConfig, Source, load_source

CONFIG = InputConfig((3, 16, 16), (0.5, 0.4, 0.3), (0.2, 0.2, 0.2), "bilinear", 1.0)


class Redness(nn.Module):
    """Channel 0 of its tap is how red the image is, channel 1 how far it is from red; grey is below zero for both."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 2, 1, bias=False)
        self.tail = nn.Conv2d(2, 4, 1)
        self.stem.weight.data = torch.tensor([[1.0, -1, -1], [-1.0, 1, 1]])[..., None, None]

    def forward(self, images: Tensor) -> Tensor:
        return self.tail(torch.relu(self.stem(images) - 1)).mean((2, 3))


def of(source: Source, *channels: int) -> list[Channel]:
    return [Channel(next(iter(source.taps)), index, 1.0, 1.0) for index in channels]


def test_a_known_channel_gets_the_colour_that_it_wants() -> None:
    source = Source(Redness(), "toy", CONFIG, "random")
    channels = of(source, 0, 1)
    assert not source(torch.zeros(1, 3, 16, 16)).taps[channels[0].tap].any()  # so a start in grey has no gradient
    red, not_red = maximise(source, channels, 16, lambda *_: None)
    (of_red, *of_others), (of_not_red, *others) = red.mean((1, 2)), not_red.mean((1, 2))
    assert of_red > max(of_others) + 0.05
    assert min(others) > of_not_red + 0.2


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext"])
def test_the_channel_grows(name: str) -> None:
    source = load_source(name, "random")
    channels = [*of(source, 1), Channel(LAST, 3, 1.0, 1.0)]
    steps: list[tuple[int, int]] = []
    mean, std = (torch.tensor(v)[:, None, None] for v in (source.input_config.mean, source.input_config.std))

    def values(pictures: Tensor) -> Tensor:
        features = source((pictures - mean) / std)
        assert features.last is not None
        tap = source.taps[channels[0].tap]
        average = features.taps[tap.name][0].select(tap.dim - 1, 1).mean()
        return torch.stack([average, features.last[1, 3]])

    before = maximise(source, channels, 32, lambda *_: None, steps=0)
    after = maximise(source, channels, 32, lambda *step: steps.append(step), steps=20)
    assert after.shape == (2, 3, 32, 32)
    assert after.min() >= 0
    assert after.max() <= 1
    assert bool((values(after) > values(before)).all())
    assert steps[-1] == (20, 20)


def test_two_calls_give_the_same_and_leave_the_generator_alone() -> None:
    source = load_source("test_resnet", "random")
    state = torch.random.get_rng_state()
    first, second = (maximise(source, of(source, 0), 16, lambda *_: None, steps=3) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_large_images_are_made_smaller_where_the_source_takes_them() -> None:
    source = load_source("test_resnet", "random")
    assert maximise(source, of(source, 0), 160, lambda *_: None, steps=0).shape[-1] == MOST_PX

    class Fixed(Redness):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images.reshape(-1, 3, 160, 160))

    config = InputConfig((3, 160, 160), CONFIG.mean, CONFIG.std, "bilinear", 1.0)
    fixed = Source(Fixed(), "toy", config, "random")
    assert maximise(fixed, of(fixed, 0), 160, lambda *_: None, steps=0).shape[-1] == 160


@pytest.mark.parametrize("size", [15, 16])
def test_no_spectrum_is_grey(size: int) -> None:
    pictures = painted(torch.zeros(1, 3, size, size // 2 + 1, 2), size)
    assert pictures.shape == (1, 3, size, size)
    assert bool((pictures == 0.5).all())
