"""SNOW with a grid body, from images to what ships."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from method_training import CPU, Batches, logits, train
from sklearn.feature_selection import f_classif
from torch import Tensor

from torchsnow.delta.cost import delta_cost, source_cost
from torchsnow.errors import SourceError
from torchsnow.methods import PRESETS, Snow, make_method
from torchsnow.methods.snow import make_snow
from torchsnow.source import Request, Source, make_source
from torchsnow.source.grid import ONE_CELL

NAMES = ["test_resnet", "test_convnext", "test_efficientnet"]


@pytest.fixture(scope="module", params=NAMES)
def any_source(request: pytest.FixtureRequest) -> Source:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make_source(timm.create_model(request.param, num_classes=0), request.param, "random")


def joined(batches: Batches) -> tuple[Tensor, Tensor]:
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return images, labels


def averages(source: Source, images: Tensor) -> Tensor:
    """Of all channels of all taps, in the order of the pass, as each tap gives them."""
    features = source(images)
    return torch.cat(
        [features.taps[tap.name].movedim(tap.dim, 1).flatten(2).mean(2) for tap in source.taps.values()], 1
    )


def trained(source: Source, batches: Batches, method: str = "snow", seed: int = 0, **changes: Any) -> Snow:
    made = make_method(method, source, 3, seed=seed, changes=changes)
    assert isinstance(made, Snow)
    train(made, batches)
    return made


def test_the_channels_with_the_highest_f_of_all_taps_are_chosen(any_source: Source, batches: Batches) -> None:
    snow = make_snow(any_source, 3)
    snow.start(batches, CPU)
    images, labels = joined(batches)
    values = averages(any_source, images).double()
    spread = values.std(0, correction=0)
    alive = spread >= 0.01 * spread.mean()  # others are all but constant, and tell nothing
    scores = torch.zeros(any_source.num_chs, dtype=torch.float64)
    scores[alive] = torch.from_numpy(f_classif(values[:, alive], labels)[0])
    pool = snow.delta.grid_pool
    assert pool is not None
    assert pool.num_pooled == round(any_source.num_chs / 8)
    best = set(scores.topk(pool.num_pooled).indices.tolist())
    assert len(best - set(pool.index.tolist())) <= 0.02 * pool.num_pooled  # the last ones are all but equal
    assert len({any_source.tap_of(number)[0] for number in pool.index.tolist()}) > 1


def test_every_channel_is_over_its_deviation_over_images_and_cells(any_source: Source, batches: Batches) -> None:
    snow = make_snow(any_source, 3)
    snow.start(batches, CPU)
    pool = snow.delta.grid_pool
    assert pool is not None
    images, _ = joined(batches)
    grid = any_source(images, Request(grids={32: pool.index})).grid(32, pool.index)
    spread = (grid * pool.weight[:, None, None]).transpose(0, 1).flatten(1).std(1, correction=0)
    assert float(spread.max()) == pytest.approx(1, abs=1e-3)
    assert float((spread - 1).abs().median()) < 1e-3  # what is all but constant stays small


def test_random_differs_from_snow_in_the_choice_alone(source: Source, batches: Batches) -> None:
    snow, random = (make_method(name, source, 3, seed=4) for name in ("snow", "random"))
    assert isinstance(snow, Snow)
    assert isinstance(random, Snow)
    assert random.spec == snow.spec
    body, other = snow.delta.body, random.delta.body
    assert body is not None
    assert other is not None
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in body.state_dict().items())
    for method in (snow, random):
        method.start(batches, CPU)
    chosen = [set(method.subscription().get("head")["index"]) for method in (snow, random)]
    assert chosen[0] != chosen[1]
    pools = [method.delta.grid_pool for method in (snow, random)]
    assert len(pools[0].index) == len(pools[1].index)
    assert not torch.equal(pools[0].index, pools[1].index)
    groups = [[len(group["params"]) for group in method.parameter_groups(1.0, 0.1)] for method in (snow, random)]
    assert groups[0] == groups[1]


def test_a_random_choice_depends_on_the_seed_alone(source: Source, batches: Batches) -> None:
    indices = []
    for seed in (0, 0, 1):
        method = make_method("random", source, 3, seed=seed)
        assert isinstance(method, Snow)
        torch.manual_seed(len(indices))
        method.start(batches, CPU)
        pool = method.delta.grid_pool
        assert pool is not None
        assert torch.equal(pool.index, pool.index.unique())
        indices.append(pool.index)
    assert torch.equal(indices[0], indices[1])
    assert not torch.equal(indices[0], indices[2])


def test_the_same_seed_gives_the_same_task(any_source: Source, batches: Batches) -> None:
    states = [trained(any_source, batches, seed=seed).shipped_state() for seed in (0, 0, 1)]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    bodies = [trained(any_source, batches, seed=seed, head="joint").shipped_state() for seed in (0, 1)]
    assert not torch.equal(bodies[0]["body.stem.0.weight"], bodies[1]["body.stem.0.weight"])


def test_training_leaves_the_source_bit_by_bit(any_source: Source, batches: Batches) -> None:
    before = {name: tensor.clone() for name, tensor in any_source.state_dict().items()}
    trained(any_source, batches)
    assert all(torch.equal(tensor, before[name]) for name, tensor in any_source.state_dict().items())
    assert not any(parameter.requires_grad for parameter in any_source.parameters())


def test_the_body_learns_what_its_channels_tell(source: Source, batches: Batches) -> None:
    snow = make_snow(source, 3)
    train(snow, batches, steps=60)
    snow.delta.head.mix(0.0, 1.0)  # type: ignore[union-attr]
    images, labels = joined(batches[:2])
    assert float((snow.model.eval()(images).argmax(1) == labels).float().mean()) > 0.9
    assert snow.finish().delta.grid_pool is not None


def test_what_counts_nothing_does_not_ship(source: Source, batches: Batches) -> None:
    snow = trained(source, batches)
    head = snow.delta.head
    head.mix(1.0, 0.0)  # type: ignore[union-attr]
    assert snow.finish().delta.body is None
    head.mix(0.0, 1.0)  # type: ignore[union-attr]
    expected = logits(snow.model, batches)
    alone = snow.finish()
    assert list(snow.subscription()) == ["grid"]
    assert torch.allclose(logits(alone, batches), expected, rtol=5e-2, atol=5e-2)  # but for rounding


@pytest.mark.parametrize("preset", ["default", "small", "large"])
def test_a_preset_is_as_wide_as_its_budget_allows(any_source: Source, preset: str) -> None:
    chosen, spec = PRESETS[preset], PRESETS[preset].spec_for(any_source, 3)
    assert chosen.budget is not None
    assert spec.grid_width is not None
    most = chosen.budget * source_cost(any_source).multiply_adds
    assert 32 <= spec.grid_width <= chosen.shape["grid_width"]
    assert delta_cost(any_source, spec).multiply_adds <= most or spec.grid_width == 32


def test_who_names_a_width_gets_it(source: Source) -> None:
    assert make_snow(source, 3, changes={"grid_width": 200}).spec.grid_width == 200


def test_images_smaller_than_a_cell_are_refused(source: Source) -> None:
    with pytest.raises(SourceError, match=r"31 x 31 pixels, less than the 32 x 32 of one cell of the grid; use larger"):
        make_snow(source, 3).start([(torch.randn(4, 3, 31, 31), torch.arange(4) % 3)], CPU)


def test_statistics_need_one_pass_over_the_images(
    source: Source, batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    forward = Source.forward
    monkeypatch.setattr(
        Source, "forward", lambda self, images, *rest: seen.append(len(images)) or forward(self, images, *rest)
    )
    snow = make_snow(source, 3)
    assert list(snow.statistics(CPU).request.grids) == [32]  # from which the averages are taken too
    assert ONE_CELL not in snow.statistics(CPU).request.grids
    snow.start(batches, CPU)
    assert seen == [12, 12, 6]
