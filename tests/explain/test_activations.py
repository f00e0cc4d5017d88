from __future__ import annotations

import numpy as np
import pytest
import torch

from sample_photos import make_photos
from torchsnow.data import ImageSet, eval_transform, load_data, prepare
from torchsnow.explain.channels import spread_channels, to_dicts, top_images
from torchsnow.explain.figures import channels_figure
from torchsnow.explain.subscriptions import LAST, Channel, TapSubscription, read_subscription
from torchsnow.heat import visible
from torchsnow.source import Framing, Source, load_source
from torchsnow.task_file import Task


def parts(*sizes: int) -> list[TapSubscription]:
    """Taps a, b, ... of so many channels; the strength of a channel is its index plus one."""
    return [
        TapSubscription("abcdefgh"[at], size, torch.arange(size), torch.ones(size), torch.arange(size) + 1.0)
        for at, size in enumerate(sizes)
    ]


def chosen(taps: list[TapSubscription], number: int) -> list[str]:
    return [f"{channel.tap}{channel.index}" for channel in spread_channels(taps, number)]


def test_channels_are_spread_over_depth() -> None:
    assert chosen(parts(2, 9, 3, 4), 2) == ["b8", "d3"]
    assert chosen(parts(2, 9, 3, 4), 4) == ["a1", "b8", "c2", "d3"]
    assert chosen(parts(2, 9, 3, 4), 1) == ["b8"]


def test_few_taps_give_several_channels_in_the_order_of_depth() -> None:
    assert chosen(parts(3, 5), 5) == ["a2", "a1", "a0", "b4", "b3"]
    assert chosen(parts(1), 6) == ["a0"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    data = load_data(make_photos(tmp_path_factory.mktemp("photos") / "data", 4))
    config = load_source("test_resnet", "random").input_config
    return ImageSet(data.examples, data.classes, eval_transform(config, Framing(32)), prepare(config, Framing(32)))


def test_the_images_with_the_largest_averages(source: Source, images: ImageSet) -> None:
    name, tap = list(source.taps.items())[1]
    channels = [Channel(name, 3, 1.0, 1.0), Channel(LAST, 5, 1.0, 1.0), Channel(name, 0, 1.0, 1.0)]
    seen: list[tuple[int, int]] = []
    found = top_images(source, images, channels, torch.device("cpu"), lambda *step: seen.append(step))
    features = source(torch.stack([image for image, _ in images]))
    whole = features.taps[name].movedim(tap.dim, 1).flatten(2).mean(2)
    assert features.last is not None
    for best, values in zip(found, (whole[:, 3], features.last[:, 5], whole[:, 0]), strict=True):
        largest = values.sort(descending=True).values[:8]
        np.testing.assert_allclose([top.value for top in best], largest, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(values[[top.place for top in best]], largest, rtol=1e-4, atol=1e-6)
        assert len({top.place for top in best}) == 8
    assert seen[-1] == (12, 12)


def test_pictures_and_names_in_rows(source: Source, task: Task, images: ImageSet) -> None:
    channels = spread_channels(read_subscription(source, task.name, task.delta).layers, 2)
    tops = top_images(source, images, channels, torch.device("cpu"), lambda *_: None)
    made = torch.rand(2, 3, 32, 32)
    figure = channels_figure("pets", channels, made, tops, images, source.input_config)
    assert len(figure.axes) == 2 * 9
    assert [axes.get_xlabel() for axes in figure.axes[::9]] == ["made for it"] * 2
    np.testing.assert_array_equal(figure.axes[9].images[0].get_array(), made[1].permute(1, 2, 0))
    assert figure.axes[1].get_xlabel().split("\n")[1] in images.classes
    rows = to_dicts(channels, tops, lambda place: images.examples[place].path.name)
    assert rows[1]["top_images"][0]["image"] == images.examples[tops[1][0].place].path.name


def test_an_image_looks_as_it_did(images: ImageSet) -> None:
    config = load_source("test_resnet", "random").input_config
    raw = ImageSet(images.examples, images.classes, prepare=prepare(config, Framing(32)))[0][0]
    shown = visible(images[0][0], config)
    border = (raw.shape[1] - 32) // 2
    cropped = raw[:, border : border + 32, border : border + 32] / 255
    torch.testing.assert_close(shown, cropped, atol=1e-3, rtol=0)
