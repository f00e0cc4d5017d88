from __future__ import annotations

import pytest
import torch

from torchsnow.errors import SourceError
from torchsnow.source import Request, Source, load_source
from torchsnow.source import source as source_module
from torchsnow.source.grid import ONE_CELL


@pytest.fixture(scope="module")
def source() -> Source:
    return load_source("test_resnet", weights="random")


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def requests(source: Source) -> list[Request]:
    """Of four deltas, two of which read the same taps."""
    first, second, *_ = source.taps
    one, other = {ONE_CELL: source.channels_of([second])}, {ONE_CELL: source.channels_of([first])}
    return [
        Request(channels={first: torch.tensor([2, 0]), second: torch.tensor([1])}, grids=one, last=True),
        Request(channels={first: torch.tensor([1, 2])}, grids=other),
        Request(grids={16: torch.tensor([1, 20, 40])}),
        Request(channels={}, last=True),
    ]


@pytest.mark.parametrize("pixels_at_a_time", [10**9, 4 * 32 * 32, 32 * 32])
def test_every_delta_gets_what_a_pass_of_its_own_would_give(
    source: Source, images: torch.Tensor, pixels_at_a_time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_module, "_PIXELS_AT_A_TIME", pixels_at_a_time)
    parts = list(zip(requests(source), (slice(0, 6), slice(2, 5), slice(1, 4), slice(5, 6)), strict=True))
    for (request, rows), shared in zip(parts, source.shared(images, parts), strict=True):
        alone = source(images[rows], request)
        assert torch.equal(shared.images, images[rows])
        for tap, idx in request.channels.items():
            torch.testing.assert_close(shared.channels(tap, idx), alone.channels(tap, idx))
        for reduction, index in request.grids.items():
            torch.testing.assert_close(shared.averages(index), alone.averages(index))
            if reduction != ONE_CELL:
                torch.testing.assert_close(shared.grid(reduction, index), alone.grid(reduction, index))
        assert (shared.last is None) == (alone.last is None)
        if shared.last is not None and alone.last is not None:
            torch.testing.assert_close(shared.last, alone.last)


def test_the_same_images_give_the_same_bits(source: Source, images: torch.Tensor) -> None:
    request, *others = requests(source)
    shared, *_ = source.shared(images, [(one, slice(0, 6)) for one in (request, *others)])
    alone = source(images, request)
    assert all(
        torch.equal(shared.channels(tap, idx), alone.channels(tap, idx)) for tap, idx in request.channels.items()
    )
    torch.testing.assert_close(shared.averages(request.grids[ONE_CELL]), alone.averages(request.grids[ONE_CELL]))


def test_some_images_of_a_batch(source: Source, images: torch.Tensor) -> None:
    request = requests(source)[0]
    index = torch.tensor([4, 1])
    features = source(images, request)
    some = features.rows(index)
    assert torch.equal(some.images, images[index])
    for tap, idx in request.channels.items():
        assert torch.equal(some.channels(tap, idx), features.channels(tap, idx)[index])
        assert some.channels(tap, idx).is_contiguous(memory_format=torch.channels_last)
    averaged = request.grids[ONE_CELL]
    assert torch.equal(some.averages(averaged), features.averages(averaged)[index])
    assert some.last is not None
    assert features.last is not None
    assert torch.equal(some.last, features.last[index])


def test_whole_taps_are_refused(source: Source, images: torch.Tensor) -> None:
    with pytest.raises(SourceError, match="returns no whole taps"):
        source.shared(images, [(Request(taps=tuple(source.taps)), slice(0, 6))])


def test_an_unknown_tap_is_refused(source: Source, images: torch.Tensor) -> None:
    with pytest.raises(SourceError, match="has no tap 'nothing'"):
        source.shared(images, [(Request(channels={"nothing": torch.tensor([0])}), slice(0, 6))])
