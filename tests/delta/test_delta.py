from __future__ import annotations

import copy
import json
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from torchsnow.delta import Delta, DeltaSpec
from torchsnow.delta.derive import key_of
from torchsnow.delta.layers import Slots
from torchsnow.errors import DeltaError
from torchsnow.pooling import num_pooled
from torchsnow.source import FeatureMaps, Request, Source, load_source
from torchsnow.source.grid import ONE_CELL

SPEC = DeltaSpec(3, 4, 4)


@pytest.fixture(scope="module")
def source() -> Source:
    return load_source("test_resnet", weights="random")


@pytest.fixture(scope="module")
def features(source: Source) -> FeatureMaps:
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    every = {ONE_CELL: torch.arange(source.num_chs)}
    return source(images, Request(taps=tuple(source.taps), grids=every, last=True))


def worn(delta: Delta, features: FeatureMaps) -> Delta:
    """As after some training: every parameter moved, statistics gathered, the head's input measured."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in delta.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        if hasattr(delta.head, "center"):
            delta.head.center.normal_()
            delta.head.spread.uniform_(0.5, 2)
        delta.train()
        for _ in range(3):
            delta(features)
    return delta


SPECS = {
    "channel slots": DeltaSpec(3, 4, 4),
    "rank slots": DeltaSpec(3, 4, 4, slots="rank"),
    "everything": DeltaSpec(3, 1, 1),
    "a head that chooses": DeltaSpec(3, 8, 2, head_divisor=6),
    "a head that chooses, rank slots": DeltaSpec(3, 8, 2, slots="rank", head_divisor=6),
    "a head of its own": DeltaSpec(3, 4, 4, head_last=False, head_taps=()),
    "some taps": DeltaSpec(3, 4, 4, taps=("layer2.0.conv1",), head_taps=("layer1.0.conv1",), head_last=False),
    "no taps": DeltaSpec(3, 4, 4, taps=(), head_taps=()),
}


@pytest.mark.parametrize("name", SPECS)
def test_freezing_keeps_the_logits(source: Source, features: FeatureMaps, name: str) -> None:
    delta = worn(Delta(source, SPECS[name]), features)
    before = copy.deepcopy(delta.state_dict())
    frozen = delta.freeze(source)
    assert frozen.frozen
    assert frozen.training
    assert delta.training
    assert all(torch.equal(tensor, before[key]) for key, tensor in delta.state_dict().items())
    # The chosen channels are summed in another order, so the last bits may differ.
    torch.testing.assert_close(frozen.eval()(features), delta.eval()(features), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SPECS)
def test_a_settled_delta_loads_into_a_fresh_one(source: Source, features: FeatureMaps, name: str) -> None:
    frozen = worn(Delta(source, SPECS[name]), features).freeze(source).eval()
    loaded = Delta(source, SPECS[name], frozen=True).eval()
    loaded.load_state_dict(frozen.state_dict())
    assert torch.equal(loaded(features), frozen(features))


@pytest.mark.parametrize("slots", get_args(Slots))
def test_what_a_settled_delta_holds(source: Source, slots: Any) -> None:
    state = Delta(source, DeltaSpec(3, 4, 4, slots=slots)).freeze(source).state_dict()
    pools = {key for key in state if key.startswith("pools.")}
    assert pools == {f"pools.{key_of(tap)}.{part}" for tap in source.taps for part in ("index", "weight")}
    assert {key for key in state if key.startswith("head.")} == {
        *("head.pool.index", "head.pool.weight", "head.fc.columns", "head.fc.local.weight", "head.fc.local.bias"),
        *("head.center", "head.spread"),
    }
    for tap in source.taps.values():
        pooled = num_pooled(tap.num_chs, 4)
        assert state[f"pools.{key_of(tap.name)}.index"].shape == (pooled,)
        assert all(state[f"body.{reader}.columns"].shape[1] == pooled for reader in tap.consumers)
    assert not any("times_chosen" in key for key in state)


@pytest.mark.parametrize("slots", get_args(Slots))
def test_a_settled_delta_reads_the_strongest_channels(source: Source, slots: Any) -> None:
    delta = Delta(source, DeltaSpec(3, 4, 4, slots=slots))
    name, pool = next(iter(delta.named_pools().items()))
    with torch.no_grad():
        pool.weight.copy_(torch.arange(pool.num_chs))
    frozen = delta.freeze(source)
    strongest = pool.weight.detach().topk(pool.num_pooled).indices.tolist()
    # In the order of the source's memory, but where a column belongs to a rank.
    assert frozen.choose()[name].tolist() == (strongest if slots == "rank" else sorted(strongest))
    assert torch.equal(frozen.choose()[name], frozen.train().choose()[name])


def test_open_and_settled_pools(source: Source) -> None:
    delta = Delta(source, SPEC)
    assert list(delta.named_pools()) == [*source.taps, "head"]
    assert delta.freeze(source).named_pools() == {}
    alone = Delta(source, SPECS["a head of its own"])
    assert "head" not in alone.named_pools()
    assert isinstance(alone.head, nn.Linear)


def test_a_settled_delta_cannot_be_settled_again(source: Source) -> None:
    with pytest.raises(DeltaError, match="this delta is frozen already"):
        Delta(source, SPEC).freeze(source).freeze(source)


def test_settling_is_not_counted_as_choosing(source: Source) -> None:
    delta = Delta(source, SPEC)
    delta.freeze(source)
    assert all(int(pool.times_chosen.sum()) == 0 for pool in delta.named_pools().values())


@pytest.mark.parametrize("name", SPECS)
def test_a_request_for_the_choice_gives_the_same_logits(source: Source, features: FeatureMaps, name: str) -> None:
    delta = worn(Delta(source, SPECS[name]), features).eval()
    choice = delta.choose()
    small = source(features.images, delta.request(choice))
    assert small.taps == {}
    torch.testing.assert_close(delta(small, choice), delta(features), rtol=1e-4, atol=1e-4)


def test_a_request_names_what_is_read_and_nothing_else(source: Source) -> None:
    delta = Delta(source, SPECS["some taps"])
    request = delta.request(delta.choose())
    assert (list(request.channels), list(request.grids), request.last) == (["layer2.0.conv1"], [ONE_CELL], False)
    assert torch.equal(request.grids[ONE_CELL], source.channels_of(["layer1.0.conv1"]))
    delta = Delta(source, SPECS["a head of its own"])
    request = delta.request(delta.choose())
    assert (request.grids, request.last, request.taps) == ({}, False, ())


def test_noise_explores_in_training_alone(source: Source, features: FeatureMaps) -> None:
    torch.manual_seed(0)
    delta = Delta(source, SPEC)
    for pool in delta.named_pools().values():
        pool.sigma = 1.0
    name = next(iter(source.taps))
    assert len({tuple(delta.choose()[name].tolist()) for _ in range(10)}) > 1
    delta.eval()
    assert torch.equal(delta(features), delta(features))


def test_the_same_seed_gives_the_same_delta_and_the_same_training(source: Source, features: FeatureMaps) -> None:
    def trained() -> dict[str, Tensor]:
        torch.manual_seed(7)
        delta = Delta(source, SPEC)
        for pool in delta.named_pools().values():
            pool.sigma = 0.5
        optimizer = torch.optim.AdamW(delta.parameters(), lr=0.01)
        for _ in range(2):
            optimizer.zero_grad()
            nn.functional.cross_entropy(delta(features), torch.tensor([0, 1, 2, 0])).backward()
            optimizer.step()
        return delta.state_dict()

    first, second = trained(), trained()
    assert all(torch.equal(tensor, second[key]) for key, tensor in first.items())


@pytest.mark.parametrize("frozen", [False, True])
def test_every_parameter_learns(source: Source, features: FeatureMaps, frozen: bool) -> None:
    delta = worn(Delta(source, SPEC), features)
    delta = delta.freeze(source) if frozen else delta
    delta.zero_grad()
    nn.functional.cross_entropy(delta(features), torch.tensor([0, 1, 2, 0])).backward()
    assert [key for key, p in delta.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_a_new_delta_is_in_training_mode_throughout(source: Source) -> None:
    assert all(module.training for module in Delta(source, SPEC).modules())


def test_half_the_divisor_is_about_four_times_the_weights(source: Source) -> None:
    sizes = [
        sum(p.numel() for p in Delta(source, DeltaSpec(2, k, k)).freeze(source).body.parameters()) for k in (2, 4, 8)
    ]
    assert sizes[0] > 3 * sizes[1] > 6 * sizes[2]


def test_a_spec_survives_json() -> None:
    for spec in SPECS.values():
        assert DeltaSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize(
    ("setting", "given", "message"),
    [
        ("num_classes", 1, "at least 2 classes; 1 given"),
        ("num_classes", "3", "at least 2 classes; '3' given"),
        ("width_divisor", 0, "width_divisor is 0; expected a whole number of 1 or more"),
        ("pool_divisor", -8, "pool_divisor is -8"),
        ("pool_divisor", 2.5, "pool_divisor is 2.5"),
        ("head_divisor", None, "head_divisor is None"),
        ("slots", "ranks", "slots is 'ranks'; expected one of channel, ascending, rank"),
        ("head_last", "yes", "head_last is 'yes'"),
        ("taps", "layer1", "taps is 'layer1'"),
        ("head_taps", [1, 2], r"head_taps is \(1, 2\)"),
    ],
)
def test_settings_out_of_range_are_refused(setting: str, given: Any, message: str) -> None:
    with pytest.raises(DeltaError, match=message):
        DeltaSpec.from_dict({**SPEC.to_dict(), setting: given})


def test_missing_and_unknown_settings_are_refused() -> None:
    values = SPEC.to_dict()
    values["colour"] = values.pop("slots")
    with pytest.raises(DeltaError, match="differ from the expected ones in: colour, slots"):
        DeltaSpec.from_dict(values)


@pytest.mark.parametrize("setting", ["width_divisor", "pool_divisor"])
def test_a_divisor_beyond_the_widest_tap_is_refused(source: Source, setting: str) -> None:
    widest = max(tap.num_chs for tap in source.taps.values())
    with pytest.raises(
        DeltaError, match=f"{setting}={widest + 1} leaves no channel.*use a divisor of at most {widest}"
    ):
        Delta(source, DeltaSpec.from_dict({**SPEC.to_dict(), setting: widest + 1}))


@pytest.mark.parametrize("setting", ["taps", "head_taps"])
def test_unknown_taps_are_refused(source: Source, setting: str) -> None:
    with pytest.raises(DeltaError, match=r"test_resnet has no tap 'layer9'; its taps are conv1\.3, "):
        Delta(source, DeltaSpec.from_dict({**SPEC.to_dict(), setting: ["layer9"]}))
