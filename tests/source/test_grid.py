"""The grid against adaptive pooling, against a reference written from its definition, and against whole taps."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import TINY, image, lively_source
from torch import Tensor, nn
from torch.nn import functional as F

from torchsnow.errors import SourceError
from torchsnow.source import FeatureMaps, InputConfig, Precision, Request, Source
from torchsnow.source import source as source_module
from torchsnow.source.grid import (
    ONE_CELL,
    Grid,
    choose_channels,
    grid_size,
    join_channels,
    join_images,
    moments,
    places_in,
    to_grid,
)

SIDES = st.integers(1, 12)


def cells_of(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """The mean over every cell, by area: (B, C, H, W) -> (B, C, *size). Repeating every pixel as often as there are
    cells makes all cells whole numbers of pixels wide."""
    fine = maps.double().repeat_interleave(size[0], 2).repeat_interleave(size[1], 3)
    return F.avg_pool2d(fine, (maps.shape[2], maps.shape[3])).float()


def maps_of(height: int, width: int, num_chs: int = 5, batch: int = 2) -> Tensor:
    return torch.randn(batch, num_chs, height, width, generator=torch.Generator().manual_seed(0))


def near(given: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(given, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("side", "size"), [((8, 12), (4, 3)), ((6, 6), (6, 6)), ((7, 7), (7, 1)), ((9, 4), (1, 1))])
def test_where_the_map_is_a_multiple_it_is_adaptive_average_pooling(
    side: tuple[int, int], size: tuple[int, int]
) -> None:
    maps = maps_of(*side)
    near(to_grid(maps, 1, None, size), F.adaptive_avg_pool2d(maps, size))


@settings(deadline=None)
@given(height=SIDES, width=SIDES, rows=SIDES, columns=SIDES)
def test_a_pixel_in_two_cells_counts_in_each_by_its_area(height: int, width: int, rows: int, columns: int) -> None:
    maps = maps_of(height, width)
    near(to_grid(maps, 1, None, (rows, columns)), cells_of(maps, (rows, columns)))


@settings(deadline=None)
@given(height=SIDES, width=SIDES, rows=SIDES, columns=SIDES)
def test_the_mean_over_the_cells_is_the_mean_over_the_map(height: int, width: int, rows: int, columns: int) -> None:
    maps = maps_of(height, width)
    near(to_grid(maps, 1, None, (rows, columns)).mean((2, 3)), maps.mean((2, 3)))


def test_a_grid_finer_than_the_map_repeats_its_pixels() -> None:
    maps = maps_of(2, 3)
    near(to_grid(maps, 1, None, (4, 3)), maps.repeat_interleave(2, 2))


@pytest.mark.parametrize("idx", [None, torch.tensor([0, 3, 4])], ids=["all", "some"])
@pytest.mark.parametrize("layout", ["channels first", "channels last in memory", "dim 3", "tokens", "tokens, dim 1"])
def test_every_layout_of_channels_gives_the_same(layout: str, idx: Tensor | None) -> None:
    maps = maps_of(6, 9)
    given, dim = {
        "channels first": (maps, 1),
        "channels last in memory": (maps.contiguous(memory_format=torch.channels_last), 1),
        "dim 3": (maps.movedim(1, 3).contiguous(), 3),
        "tokens": (maps.flatten(2).transpose(1, 2).contiguous(), 2),
        "tokens, dim 1": (maps.flatten(2), 1),
    }[layout]
    expected = cells_of(maps, (2, 3))
    near(to_grid(given, dim, idx, (2, 3)), expected if idx is None else expected[:, idx])


@pytest.mark.parametrize("size", [(1, 1), (4, 5), (2, 2)])
def test_no_token_is_left_out_whatever_the_aspect(size: tuple[int, int]) -> None:
    """As of images of 100 x 160 pixels, whose maps are not quite of the grid's aspect."""
    maps = maps_of(25, 40)
    tokens = maps.flatten(2).transpose(1, 2)
    near(to_grid(tokens, 2, None, size).mean((2, 3)), maps.mean((2, 3)))
    near(to_grid(tokens, 2, None, (4, 5)), cells_of(maps, (4, 5)))


def test_a_grid_is_in_float32() -> None:
    assert to_grid(maps_of(4, 4).bfloat16(), 1, None, (2, 2)).dtype == torch.float32


@pytest.mark.parametrize(
    ("pixels", "reduction", "size"),
    [((224, 224), 32, (7, 7)), ((225, 97), 32, (8, 4)), ((32, 32), 32, (1, 1)), ((97, 500), ONE_CELL, (1, 1))],
)
def test_a_grid_has_a_cell_per_so_many_pixels_rounded_up(
    pixels: tuple[int, int], reduction: int, size: tuple[int, int]
) -> None:
    assert grid_size(*pixels, reduction) == size


def test_joining_and_choosing_keep_every_channel_of_every_image() -> None:
    first, second = maps_of(2, 3, 4), maps_of(2, 3, 5) + 10
    joint = join_channels([(x, *moments(x, with_std=True)) for x in (first, second)])
    expected = Grid.of(torch.arange(9), torch.cat([first, second], 1))[1:]
    assert all(torch.equal(*pair) for pair in zip(joint, expected, strict=True))
    idx = torch.tensor([1, 4, 8])
    assert torch.equal(choose_channels(joint[0], idx), joint[0][:, idx])
    halves = [tuple(x[rows] for x in joint) for rows in (slice(0, 1), slice(1, 2))]
    assert all(torch.equal(*pair) for pair in zip(join_images(halves), joint, strict=True))
    assert join_images([joint]) is joint


# in a source's pass


def of_whole_taps(source: Source, images: Tensor, index: Tensor, reduction: int) -> Tensor:
    """The channels on their grid, made of a pass that returns all taps whole."""
    size = (1, 1) if reduction == ONE_CELL else tuple(math.ceil(side / reduction) for side in images.shape[2:])
    features = source(images)
    maps = [features.taps[tap.name].float().movedim(tap.dim, 1) for tap in source.taps.values()]
    return torch.cat([cells_of(one, size) for one in maps], 1)[:, index]


def some_channels(source: Source) -> Tensor:
    """A third of all channels, but all of the second tap, and none of the third."""
    generator = torch.Generator().manual_seed(3)
    chosen = torch.rand(source.num_chs, generator=generator) < 1 / 3
    chosen[source.channels_of([list(source.taps)[1]])] = True
    chosen[source.channels_of([list(source.taps)[2]])] = False
    return chosen.nonzero().flatten()


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 3e-2)])
@pytest.mark.parametrize("name", TINY)
def test_the_pass_gives_the_grid_of_its_whole_taps(name: str, precision: Precision, tolerance: float) -> None:
    source = lively_source(name, precision=precision)
    images, index = torch.cat([image(96, 3), image(96, 3)[:, :, :, :33]], 3), some_channels(source)
    for reduction in (32, 20, ONE_CELL):
        expected = of_whole_taps(source, images, index, reduction)
        given = source(images, Request(grids={reduction: index})).grid(reduction, index)
        assert given.shape == (3, len(index), *grid_size(96, 129, reduction))
        assert (given - expected).norm() < tolerance * expected.norm()


def test_a_batch_in_parts_gives_what_it_gives_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    source, index = lively_source("test_resnet"), torch.tensor([0, 17, 300])
    request = Request(grids={32: index}, last=True)
    whole = source(image(64, 5), request)
    monkeypatch.setattr(source_module, "_PIXELS_AT_A_TIME", 2 * 64 * 64)
    parts = source(image(64, 5), request)
    near(parts.grid(32, index), whole.grid(32, index), 1e-4)
    near(parts.last, whole.last, 1e-4)


def test_deltas_read_their_own_channels_of_a_joint_grid() -> None:
    source = lively_source("test_resnet")
    one, other, third = torch.tensor([3, 40]), torch.tensor([0, 40, 200]), torch.tensor([7, 200])
    requests = [Request(grids={32: one}), Request(grids={32: other}), Request(grids={ONE_CELL: third})]
    joint = Request.together(requests)
    assert {reduction: index.tolist() for reduction, index in joint.grids.items()} == {32: [0, 3, 7, 40, 200]}
    features = source(image(64), joint)
    for index in (one, other):
        near(features.grid(32, index), source(image(64), Request(grids={32: index})).grid(32, index), 1e-4)
    near(features.averages(third), source(image(64), requests[2]).averages(third), 1e-4)


def test_averages_come_from_a_grid_that_has_the_channels() -> None:
    source = lively_source("test_resnet")
    fine, coarse = torch.tensor([1, 2]), torch.tensor([5, 9, 30])
    features = source(image(64), Request.together([Request(grids={16: fine}), Request(grids={32: coarse})]))
    for index in (fine, coarse, coarse[1:]):
        alone = source(image(64), Request(grids={ONE_CELL: index}))
        near(features.averages(index), alone.averages(index), 1e-4)


def test_some_images_of_a_batch_keep_their_cells() -> None:
    source, index = lively_source("test_resnet"), torch.tensor([3, 40])
    features = source(image(64, 4), Request(grids={32: index}))
    assert torch.equal(features.rows(torch.tensor([3, 1])).grid(32, index), features.grid(32, index)[[3, 1]])
    assert torch.equal(features.span(1, 3).grid(32, index), features.grid(32, index)[1:3])


def test_a_tap_of_which_nothing_is_wanted_gives_nothing() -> None:
    none = torch.empty(0, dtype=torch.int64)
    assert to_grid(maps_of(4, 4), 1, none, (2, 2)).shape == (2, 0, 2, 2)
    source = lively_source("test_resnet")
    assert source(image(64), Request(grids={32: none})).grid(32, none).shape == (2, 0, 2, 2)


def test_a_tap_of_which_nothing_is_wanted_leaves_the_batch_of_an_export_open() -> None:
    class Nothing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return to_grid(x, 1, torch.tensor([], dtype=torch.int64), (1, 1))

    batch = torch.export.Dim("batch")
    program = torch.export.export(Nothing(), (torch.rand(2, 3, 4, 4),), dynamic_shapes=({0: batch},))
    assert program.module()(torch.rand(5, 3, 4, 4)).shape == (5, 0, 1, 1)


def test_images_smaller_than_a_cell_are_refused() -> None:
    source, index = lively_source("test_resnet"), torch.tensor([0])
    with pytest.raises(SourceError, match="64 x 64 pixels, less than the 65 x 65 of one cell"):
        source(image(64), Request(grids={65: index}))
    assert source(image(64), Request(grids={64: index})).grid(64, index).shape == (2, 1, 1, 1)


@pytest.mark.parametrize("beyond", [-1, 0])
def test_channels_that_there_are_not_are_refused(beyond: int) -> None:
    source = lively_source("test_resnet")
    channel = beyond if beyond < 0 else source.num_chs
    index = torch.tensor([5, channel]).sort().values
    with pytest.raises(SourceError, match=f"asked for channel {channel}; test_resnet has {source.num_chs}"):
        source(image(64), Request(grids={32: index}))


@pytest.mark.parametrize("name", TINY)
def test_gradients_reach_the_images_through_a_grid(name: str) -> None:
    source, images = lively_source(name), image(64, 1).requires_grad_()
    index = some_channels(source)
    weights = torch.randn(1, len(index), 2, 2, generator=torch.Generator().manual_seed(5))
    grid = source.differentiable(images, Request(grids={32: index})).grid(32, index)
    (gradient,) = torch.autograd.grad((grid * weights).sum(), images)
    features = source.differentiable(images)
    maps = [features.taps[tap.name].movedim(tap.dim, 1) for tap in source.taps.values()]
    reference = torch.cat([cells_of(one, (2, 2)) for one in maps], 1)[:, index]
    (expected,) = torch.autograd.grad((reference * weights).sum(), images)
    assert gradient.abs().sum() > 0
    near(gradient, expected, 1e-3 * float(expected.abs().max()))


# steps of oneDNN


def unfused(source: Source, request: Request, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> FeatureMaps:
    with monkeypatch.context() as patch:
        patch.setattr(Source, "_fuses", False)
        result: FeatureMaps = source(images, request)
    return result


@pytest.mark.parametrize("name", [*TINY, "mobilenetv2_035", "resnet18", "densenet121"])
def test_the_fused_pass_equals_the_plain_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = lively_source(name)
    index = some_channels(source)
    request = Request(grids={32: index}, last=True)
    fused, plain = source(image(64), request), unfused(source, request, image(64), monkeypatch)
    near(fused.grid(32, index), plain.grid(32, index), 1e-4 * max(1.0, float(plain.grid(32, index).abs().max())))
    near(fused.last, plain.last, 1e-4 * max(1.0, float(plain.last.abs().max())))


class Adding(nn.Module):
    """Adds to a convolution's result what is to be broadcast: the map of one position, and a learned map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.gate = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.position = nn.Parameter(torch.randn(1, 8, 16, 16))

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        x = x + self.gate(x.mean((2, 3), keepdim=True))
        x = self.conv(x) + self.position
        return torch.relu(self.conv(x.relu()) + x.mean((2, 3), keepdim=True)).mean((2, 3))


def test_what_is_broadcast_is_not_fused() -> None:
    torch.manual_seed(0)
    model, images = Adding().eval(), torch.randn(3, 3, 16, 16)
    config = InputConfig((3, 16, 16), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bilinear", 1.0)
    with torch.no_grad():
        expected = model(images)
    near(Source(model, "adding", config, "random")(images, Request(last=True)).last, expected, 1e-4)


def test_a_pass_without_a_grid_says_what_to_ask_for() -> None:
    source = lively_source("test_resnet")
    with pytest.raises(SourceError, match="asked for no grid"):
        source(torch.randn(1, 3, 32, 32)).averages(torch.tensor([0]))


@pytest.mark.parametrize("name", [*TINY, "mobilenetv2_035"])
def test_a_pass_gives_means_and_deviations_over_the_cells(name: str) -> None:
    source = lively_source(name)
    index = some_channels(source)
    features = source(image(64), Request(grids={32: index}, stds=frozenset({32}), last=True))
    maps = features.grid(32, index)
    near(features.averages(index[1:]), maps.mean((2, 3))[:, 1:], 1e-5)
    near(features.deviations(32, index[1:]), maps.std((2, 3), correction=0)[:, 1:], 1e-5)
    expected = torch.cat([maps.mean((2, 3)), maps.std((2, 3), correction=0), features.last], 1)
    near(features.values(index, last=True, std_reduction=32), expected, 1e-5)


def test_deviations_come_where_they_are_asked_for() -> None:
    source = lively_source("test_resnet")
    index = torch.tensor([0, 5])
    plain, with_std = Request(grids={32: index}), Request(grids={32: index[:1]}, stds=frozenset({32}))
    with pytest.raises(SourceError, match="asked for no deviations"):
        source(image(64), plain).deviations(32, index)
    assert source(image(64), Request.together([plain, with_std])).deviations(32, index).shape == (2, 2)


def test_places_are_those_of_the_channels_as_they_are_now() -> None:
    channels, index = torch.tensor([2, 5, 9]), torch.tensor([9, 2])
    assert places_in(channels, index).tolist() == [2, 0]
    channels.copy_(torch.tensor([1, 2, 9]))
    assert places_in(channels, index).tolist() == [2, 1]


def test_a_span_is_a_view_of_the_same_images() -> None:
    maps = torch.randn(4, 6, 2, 3)
    whole = FeatureMaps(torch.zeros(4, 3, 64, 96), {}, grids={32: Grid.of(torch.arange(6), maps)})
    for part in (slice(0, 4), slice(1, 3), slice(3, 4)):
        span = whole.span(part.start, part.stop).grids[32]
        assert span.stds is not None
        torch.testing.assert_close(span.means, maps[part].mean((2, 3)))
        torch.testing.assert_close(span.stds, maps[part].std((2, 3), correction=0))
        assert span.stds.data_ptr() == whole.grids[32].stds[part].data_ptr()
        assert span.maps.data_ptr() == maps[part].data_ptr()
