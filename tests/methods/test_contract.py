"""What every method must hold, over the table of methods."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from method_training import CPU, Batches, logits, train

from torchsnow.errors import TrainingError
from torchsnow.methods import METHODS, Snow, kind_of, make_method, split_name
from torchsnow.source import Source, load_source
from torchsnow.train import Method
from torchsnow.train.store import values_of

ALL = [f"{name}:{preset}" for name, kind in METHODS.items() for preset in kind.presets]
DELTAS = [name for name, kind in METHODS.items() if kind.is_delta]
SHARING = ["head", "taps", "snow", "random", "side"]
GRIDS = ["snow:default", "snow:small", "snow:large", "random:default"]
IMAGE_SIZE = 64  # pixels, of the batches
HALVES = 1e-2  # what may be lost where stored values are rounded to half precision
ROUNDING = 0.1  # and where the weights of a grid delta are rounded, those of a head to half a byte per number


def made(text: str, source: Source, seed: int = 0) -> Method:
    name, preset = split_name(text)
    return make_method(name, source, 3, preset, seed)


@pytest.mark.parametrize("text", ALL)
def test_training_changes_all_that_trains_and_nothing_of_the_source(
    text: str, source: Source, batches: Batches
) -> None:
    before = copy.deepcopy(source.model.state_dict())
    method = made(text, source)
    parameters = [p for group in method.parameter_groups(1.0, 0.1) for p in group["params"]]
    assert len({id(p) for p in parameters}) == len(parameters)
    method.start(batches, CPU)
    starts = [p.detach().clone() for p in parameters]
    train(method, batches)
    assert all(p.grad is not None for p in parameters)
    moved = [not torch.equal(p, start) for p, start in zip(parameters, starts, strict=True)]
    assert all(moved), f"{moved.count(False)} of {len(moved)} parameters stayed as they were"
    assert all(torch.equal(tensor, before[name]) for name, tensor in source.model.state_dict().items())
    assert not any(p.requires_grad for p in source.model.parameters())


@pytest.mark.parametrize("text", ALL)
def test_a_saved_state_gives_the_same_logits_in_a_new_method(text: str, source: Source, batches: Batches) -> None:
    method = made(text, source)
    train(method, batches)
    expected = logits(method.model, batches)
    other = made(text, source, seed=1)
    assert not torch.equal(logits(other.model, batches), expected)
    other.load_trainable_state({name: tensor.clone() for name, tensor in method.trainable_state().items()})
    assert torch.equal(logits(other.model, batches), expected)


@pytest.mark.parametrize("text", ALL)
def test_the_finished_model_has_the_logits_of_the_trained_one(text: str, source: Source, batches: Batches) -> None:
    method = made(text, source)
    train(method, batches)
    expected = logits(method.model, batches)
    finished = method.finish()
    assert not finished.training
    lost = (logits(finished, batches) - expected).norm() / expected.norm()
    assert lost < (ROUNDING if text in GRIDS else 1e-5)


@pytest.mark.parametrize("text", ALL)
def test_a_state_of_another_method_is_refused(text: str, source: Source) -> None:
    method, other = made(text, source), make_method(split_name(text)[0], source, 5, split_name(text)[1])
    with pytest.raises(TrainingError, match="the saved state does not fit"):
        method.load_trainable_state(other.trainable_state())


@pytest.mark.parametrize("text", ALL)
def test_the_config_is_json_and_names_the_source(text: str, source: Source) -> None:
    config = json.loads(json.dumps(made(text, source).config()))
    assert config["name"] == split_name(text)[0]
    assert config["source"]["fingerprint"] == source.fingerprint


@pytest.mark.parametrize("text", ALL)
def test_weights_decay_and_vectors_do_not(text: str, source: Source) -> None:
    groups = made(text, source).parameter_groups(1.0, 0.25)
    assert {group["weight_decay"] for group in groups} <= {0.0, 0.25}
    for group in groups:
        assert all((p.ndim > 1) == (group["weight_decay"] > 0) for p in group["params"])


@pytest.mark.parametrize("text", ALL)
def test_without_weight_decay_the_same_parameters_train(text: str, source: Source) -> None:
    counts = []
    for decay in (0.0, 0.1):
        groups = made(text, source).parameter_groups(1.0, decay)
        counts.append(sum(p.numel() for group in groups for p in group["params"]))
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("text", ALL)
def test_a_frozen_part_and_the_rest_are_the_model(text: str, source: Source, batches: Batches) -> None:
    method = made(text, source)
    parts = method.frozen_part(IMAGE_SIZE)
    assert (parts is not None) == (text in GRIDS or split_name(text)[0] in ("head", "taps"))
    if parts is not None:
        train(method, batches)
        if isinstance(method, Snow):
            method.delta.head.mix(0.5, 0.5)  # so that all of it counts
        (frozen, rest), images = parts, batches[0][0]
        for mode in (True, False):
            method.model.train(mode)
            assert torch.allclose(
                rest(values_of(frozen, images)), method.model(images), atol=HALVES if text in GRIDS else 0.0
            )
            assert method.model.training == mode
        assert not values_of(frozen, images).requires_grad


@pytest.mark.parametrize("text", ALL)
def test_training_does_not_change_the_frozen_part(text: str, source: Source, batches: Batches) -> None:
    method = made(text, source)
    parts = method.frozen_part(IMAGE_SIZE)
    if parts is None:
        return
    method.start(batches, CPU)
    chosen = {name: tensor.clone() for name, tensor in parts[0].chosen().items()}
    values = values_of(parts[0], batches[0][0])
    train(method, batches)
    assert torch.equal(values_of(parts[0], batches[0][0]), values)
    assert all(torch.equal(tensor, chosen[name]) for name, tensor in parts[0].chosen().items())


@pytest.mark.parametrize("changes", [{"learned": True}, {"sigma": 0.5, "probe": False}])
def test_a_head_whose_choice_may_change_has_no_frozen_part(source: Source, changes: dict[str, Any]) -> None:
    assert make_method("snow", source, 3, changes={"head": "joint", **changes}).frozen_part(IMAGE_SIZE) is None
    assert make_method("snow", source, 3, changes={"head": "joint"}).frozen_part(IMAGE_SIZE) is not None


@pytest.mark.parametrize("text", ALL)
def test_costs_are_those_of_a_shared_pass_or_of_a_network_of_its_own(text: str, source: Source) -> None:
    method = made(text, source)
    cost, stored = method.multiply_adds(), sum(t.nbytes for t in method.shipped_state().values())
    whole = make_method("full", source, 3).multiply_adds().first
    name = split_name(text)[0]
    if name in SHARING:
        assert cost.added < 0.1 * whole < whole < cost.first + 1000
    elif name == "scratch":
        assert cost.first == cost.added < 0.1 * whole
    elif name == "features":
        assert cost.added < 0.5 * whole < cost.first
    else:
        assert cost.first == cost.added == whole
    assert 0 < stored <= sum(t.nbytes for t in make_method("full", source, 3).shipped_state().values())


@pytest.mark.parametrize("text", ALL)
def test_the_seed_alone_decides_how_a_method_starts(text: str, source: Source) -> None:
    states = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        states.append(made(text, source, seed=7).trainable_state())
        assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


@pytest.mark.parametrize("name", [name for name in METHODS if name not in DELTAS])
def test_settings_of_a_delta_are_refused_where_there_is_none(name: str, source: Source) -> None:
    with pytest.raises(TrainingError, match=f"'{name}' makes no delta, so it has no setting 'width_divisor'"):
        make_method(name, source, 3, changes={"width_divisor": 4})


@pytest.mark.parametrize("name", DELTAS)
def test_a_delta_takes_other_settings(name: str, source: Source) -> None:
    wide = make_method(name, source, 3, changes={"pool_divisor": 2}).config()
    assert wide["spec"]["pool_divisor"] == 2
    with pytest.raises(TrainingError, match=r"a delta has no setting 'wide'; expected one of .*width_divisor"):
        make_method(name, source, 3, changes={"wide": 2})


def test_networks_of_their_own_need_a_source_in_full_precision() -> None:
    source = load_source("test_resnet", "random", "bf16")
    with pytest.raises(TrainingError, match="loaded in bf16, which is for methods that keep it frozen"):
        make_method("full", source, 3)


def test_names_with_presets() -> None:
    assert split_name("snow:paper") == ("snow", "paper")
    assert split_name("full") == ("full", "default")
    with pytest.raises(TrainingError, match="'full' has no preset 'paper'"):
        split_name("full:paper")
    assert kind_of("snow").is_delta
