from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from torchsnow.data import eval_transform
from torchsnow.engines import Program
from torchsnow.experiments import serving_speed as module
from torchsnow.experiments.measuring import Workload
from torchsnow.experiments.serving_speed import (
    Heads,
    MultiplyAdds,
    Throughput,
    multiply_adds,
    random_deltas,
    shape_of,
    throughput,
)
from torchsnow.source import Framing, Source, load_source

TINY = Workload(source="test_resnet", weights="random", image_size=32, batch_size=2, device="cpu", num_classes=3)


@pytest.fixture(scope="module")
def source() -> Source:
    return load_source("test_resnet", "random")


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, int], Throughput]:
    monkeypatch.setattr(module, "peak_bytes", lambda device, prepare, whole: 1000)
    return {(row.kind, row.tasks): row for row in throughput(TINY, (1, 3), 1)}


def test_deltas_choose_their_own_channels_and_leave_randomness_alone(source: Source) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first, second = random_deltas(source, shape_of(TINY, source), 2)
    assert torch.equal(torch.rand(1), expected)
    indices = [delta.grid_pool.index for delta in (first, second)]
    assert all(torch.equal(index, index.unique()) for index in indices)
    assert len(set(indices[0].tolist()) & set(indices[1].tolist())) < len(indices[0]) / 2
    assert not torch.equal(first.head.pool.index, second.head.pool.index)


def test_many_deltas_give_what_each_gives_alone(source: Source) -> None:
    deltas = random_deltas(source, shape_of(TINY, source), 3)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        together = Program(source, deltas)(images)
        alone = [Program(source, [delta])(images)[0] for delta in deltas]
    torch.testing.assert_close(together, tuple(alone))
    assert [logits.shape for logits in together] == [(2, 3)] * 3


def test_heads_are_the_network_with_other_last_layers(source: Source) -> None:
    heads = Heads(source, 2, 3)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        features = source.model(images)
        torch.testing.assert_close(heads(images), tuple(layer(features) for layer in heads.layers))


def test_limits_are_ratios_of_multiply_adds() -> None:
    adds = MultiplyAdds(source=1000, head=10, delta=40)
    assert adds.limit("separate", 5) == 1
    assert adds.limit("heads", 5) == pytest.approx(5 * 1010 / 1050)
    assert adds.limit("snow", 5) == pytest.approx(5 * 1010 / 1200)


def test_multiply_adds_are_counted(source: Source) -> None:
    adds = multiply_adds(TINY, source)
    assert adds.head == 3 * source.num_features
    assert 0.005 < adds.delta / adds.source < 0.08


def test_every_kind_with_every_number_of_tasks(rows: dict[tuple[str, int], Throughput]) -> None:
    assert set(rows) == {(kind, tasks) for kind in ("separate", "heads", "snow") for tasks in (1, 3)}
    for (kind, tasks), row in rows.items():
        assert row.images_per_s == pytest.approx(2 / row.pass_s)
        assert row.images_per_s_with_decoding < row.images_per_s
        assert row.speedup == pytest.approx(rows["separate", tasks].pass_s / row.pass_s)
        assert (kind == "separate") == (row.speedup == 1 == row.limit) or tasks == 1


def test_memory_grows_by_what_a_task_adds(rows: dict[tuple[str, int], Throughput], source: Source) -> None:
    head_bytes = 4 * 3 * (source.num_features + 1)
    network_bytes = sum(tensor.nbytes for tensor in source.model.state_dict().values()) + head_bytes
    assert rows["separate", 1].memory_bytes == network_bytes + 1000
    assert rows["separate", 3].memory_bytes == 3 * network_bytes + 1000
    assert rows["heads", 3].memory_bytes - rows["heads", 1].memory_bytes == 2 * head_bytes
    delta_bytes = (rows["snow", 3].memory_bytes - rows["snow", 1].memory_bytes) / 2
    assert head_bytes < delta_bytes < 0.5 * network_bytes


@pytest.mark.usefixtures("rows")
def test_separate_networks_are_passed_over_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_HELD", 2)
    passes: list[int] = []

    def make(network: nn.Module, images: torch.Tensor) -> Any:
        own = id(network) if isinstance(network, Heads) and len(network.layers) == 1 else 0
        return lambda images: passes.append(own)

    monkeypatch.setattr(module, "BACKENDS", {"eager": make})
    throughput(TINY, (5,), 1)
    separate = [own for own in passes if own]
    assert len(separate) == 2 * 5  # a round that does not count, and one that does
    assert len(set(separate)) == 2
    assert separate[:5] == [separate[0], separate[1], separate[0], separate[1], separate[0]]


def test_photos_are_decoded_to_a_batch(source: Source) -> None:
    photos = module._photos(3)
    assert all(photo[:2] == b"\xff\xd8" for photo in photos)
    assert len(set(photos)) == 3
    assert module._decode(photos, eval_transform(source.input_config, Framing(32))).shape == (3, 3, 32, 32)


def test_the_pass_whose_memory_is_measured() -> None:
    for kind, logits in (("heads", 2), ("snow", 2)):
        step = partial(module._pass, TINY, kind)()
        outputs: Any = step()
        assert [output.shape for output in outputs] == [(2, 3)] * logits
