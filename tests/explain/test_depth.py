from __future__ import annotations

import numpy as np
import torch

from sample_tasks import sample_task
from torchsnow.explain.figures import COLUMNS, depth_figure, strip
from torchsnow.explain.subscriptions import TapSubscription, places, read_subscription
from torchsnow.source import Source
from torchsnow.task_file import Task


def test_a_row_for_each_tap_from_the_image_down(source: Source, task: Task) -> None:
    subscription = read_subscription(source, task.name, task.delta)
    strips, strength, shares, _, *_ = depth_figure(subscription, places(source)).axes
    labels = [label.get_text() for label in strips.get_yticklabels()]
    first = subscription.layers[0]
    assert labels[0] == f"{first.tap}  ({len(first.index)} of {first.num_chs})"
    assert labels[-1] == "last features"
    assert strips.images[0].get_array().shape == (len(labels), COLUMNS)
    widths = [bar.get_width() for bar in strength.patches]
    np.testing.assert_allclose(widths, [*(part.total for part in subscription.layers), 0])
    read = {part.tap: len(part.index) / part.num_chs for part in subscription.head}
    assert [bar.get_width() for bar in shares.patches] == [read.get(name, 0) for name in places(source)]


def test_weights_are_sorted_and_stretched() -> None:
    weight = torch.tensor([0.5, 2.0, 1.0])
    values = strip(TapSubscription("conv", 24, torch.arange(3), weight, weight))
    assert values.tolist() == [2.0] * 34 + [1.0] * 33 + [0.5] * 33


def test_only_what_a_task_has_is_drawn(source: Source) -> None:
    for settings, titles in (
        ({"taps": ()}, ["head: share read", "head: strength"]),
        ({"head_taps": (), "head_last": False}, ["layers: weight w of the subscribed channels", "layers: strength"]),
    ):
        subscription = read_subscription(source, "pets", sample_task(source, **settings).delta)
        figure = depth_figure(subscription, places(source))
        assert [axes.get_title() for axes in figure.axes if axes.get_title()] == titles
