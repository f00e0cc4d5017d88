from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from sample_tasks import sample_task
from torchsnow.explain.attribution import attribute
from torchsnow.explain.channels import MOST_MAPS, MOST_TAPS, feature_maps
from torchsnow.explain.figures import OWN, attribution_figure, maps_figure
from torchsnow.explain.subscriptions import TapSubscription, places, read_subscription
from torchsnow.source import Source, load_source
from torchsnow.task_file import Task


def test_the_strongest_maps_of_taps_over_all_depths(source: Source, task: Task, image: Tensor) -> None:
    parts = read_subscription(source, task.name, task.delta).layers
    found = feature_maps(source, parts, image)
    assert len(found) == min(MOST_TAPS, len(parts))
    assert (found[0].tap, found[-1].tap) == (parts[0].tap, parts[-1].tap)
    whole = source(image).taps
    for tap in found:
        part = next(part for part in parts if part.tap == tap.tap)
        assert list(tap.channels) == part.strongest(MOST_MAPS)
        for channel, values in zip(tap.channels, tap.values, strict=True):
            expected = whole[tap.tap].movedim(source.taps[tap.tap].dim, 1)[0, channel.index]
            torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-5)


def test_maps_are_drawn_beside_the_image(source: Source, task: Task, image: Tensor) -> None:
    found = feature_maps(source, read_subscription(source, task.name, task.delta).layers, image)
    figure = maps_figure("pets", found, image, source.input_config)
    assert len(figure.axes) == len(found) * (1 + MOST_MAPS)
    assert figure.axes[0].images[0].get_array().shape == (64, 64, 3)
    np.testing.assert_array_equal(figure.axes[1].images[0].get_array(), found[0].values[0])
    assert figure.axes[1].get_title().startswith(f"channel {found[0].channels[0].index}: ")


def test_bars_over_depth(source: Source, task: Task, image: Tensor) -> None:
    found = attribute(source, task.delta, image)
    layers, head = attribution_figure("pets", "a $class", found, places(source)).axes
    names = [label.get_text() for label in layers.get_yticklabels()]
    assert names[-1] == OWN
    local, shared = (np.array([bar.get_width() for bar in bars]) for bars in layers.containers)
    at = names.index(found.taps[1].tap)
    assert local[at] == pytest.approx(float(found.taps[1].local.sum()))
    assert shared[at] == pytest.approx(float(found.taps[1].source.sum()))
    widths = np.array([bar.get_width() for bars in head.containers for bar in bars])
    assert widths.sum() + found.head.bias == pytest.approx(found.logit, rel=1e-4, abs=1e-5)


def test_a_task_without_subscribed_layers_has_the_head_alone(source: Source, image: Tensor) -> None:
    for settings in ({"taps": ()}, {"width_divisor": None}, {"taps": (), "head_taps": (), "head_last": False}):
        found = attribute(source, sample_task(source, **settings).delta, image)
        (head,) = attribution_figure("pets", "cat", found, places(source)).axes
        assert head.get_title().startswith("head: exact parts")
    assert feature_maps(source, (), image) == []


def test_tokens_are_maps_without_those_that_are_no_places() -> None:
    transformer = load_source("test_vit", "random")
    tap = next(iter(transformer.taps.values()))
    part = TapSubscription(tap.name, tap.num_chs, torch.arange(4), torch.ones(4), torch.ones(4))
    image = torch.randn(1, 3, 160, 160, generator=torch.Generator().manual_seed(2))
    (maps,) = feature_maps(transformer, [part], image)
    channel, values = maps.channels[0], maps.values[0]
    assert values.shape == (10, 10)
    torch.testing.assert_close(values.flatten(), transformer(image).taps[tap.name][0, 1:, channel.index])
