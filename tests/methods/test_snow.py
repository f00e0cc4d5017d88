from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.feature_selection import f_classif
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import StratifiedKFold
from torch import Tensor, nn

from torchsnow.delta.head import Head
from torchsnow.errors import TrainingError
from torchsnow.methods import PRESETS, PoolTraining, Snow, make_method
from torchsnow.methods.lasso import group_lasso
from torchsnow.methods.probe import INVERSE_PENALTIES, FeatureSelection, fit_probe, probe_importance, select_features
from torchsnow.methods.snow import best_mixing_weights, clearly_better, init_by_scores, make_snow, still_changing
from torchsnow.methods.statistics import ClassSums
from torchsnow.pooling import ChannelPooling
from torchsnow.source import Request, Source
from torchsnow.source.grid import ONE_CELL
from torchsnow.train.store import values_of

CPU = torch.device("cpu")
Batches = list[tuple[Tensor, Tensor]]
NARROW = {"width_divisor": 8, "grid_width": None, "learned": True, "sigma": 0.5, "head_std": False}
"""A narrow copy whose choice is learned, otherwise as in the default preset."""
ROUNDING = 3e-2  # what is lost where a grid delta's weights are rounded to a byte per number


@pytest.fixture
def snow(source: Source) -> Snow:
    return make_snow(source, 3)


@pytest.fixture
def narrow(source: Source) -> Snow:
    return make_snow(source, 3, changes=NARROW)


def joined(batches: Batches) -> tuple[Tensor, Tensor]:
    """All images, and their labels."""
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return images, labels


def all_values(source: Source, images: Tensor) -> Tensor:
    """The averages of all channels, then the last features."""
    index = torch.arange(source.num_chs)
    values: Tensor = source(images, Request(grids={ONE_CELL: index}, last=True)).values(index, last=True)
    return values


def train(snow: Snow, batches: Batches, steps: int, lr: float) -> None:
    """A plain loop, as anybody would write it."""
    optimizer = torch.optim.AdamW(snow.parameter_groups(lr, 0.05))
    snow.model.train()
    for step in range(steps):
        snow.set_progress(step / steps)
        images, labels = batches[step % 2]
        optimizer.zero_grad()
        nn.functional.cross_entropy(snow.model(images), labels).backward()
        optimizer.step()


# statistics


def sums_of(values: Tensor, labels: Tensor, num_classes: int) -> ClassSums:
    sums = ClassSums(values.shape[1], num_classes, CPU)
    for part, own in zip(values.split(7), labels.split(7), strict=True):
        sums.add(part, own)
    return sums


def test_streamed_statistics_equal_those_of_all_images_at_once() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (50,), generator=generator)
    values = 100 + torch.randn(50, 6, generator=generator) + labels[:, None] * torch.arange(6)
    sums = sums_of(values, labels, 5)  # of the fifth class there is no image
    np.testing.assert_allclose(sums.mean, values.double().mean(0), rtol=1e-9)
    np.testing.assert_allclose(sums.std, values.double().std(0, correction=0), rtol=1e-6)
    np.testing.assert_allclose(sums.f_statistic(), f_classif(values.double(), labels)[0], rtol=1e-6)


def test_spread_is_never_zero_and_dead_values_score_nothing() -> None:
    labels = torch.arange(20) % 2
    values = torch.stack([torch.randn(20), torch.zeros(20), torch.full((20,), 7.3), 1e-7 * torch.randn(20)], dim=1)
    sums = sums_of(values, labels, 2)
    assert bool((sums.std > 1e-3 * sums.std[0]).all())
    assert sums.f_statistic()[1:].tolist() == [0, 0, 0]
    nothing = sums_of(torch.zeros(20, 3), labels, 2)
    assert bool((nothing.std > 0).all())
    assert nothing.f_statistic().tolist() == [0, 0, 0]


def test_perfect_values_score_highest() -> None:
    labels = torch.arange(20) % 2
    score = sums_of(torch.stack([torch.randn(20), labels.float()], dim=1), labels, 2).f_statistic()
    assert int(score.argmax()) == 1
    assert not bool(score.isnan().any())


# the probes


@pytest.mark.parametrize(("num_images", "ridge"), [(40, 75.0), (1500, 3.0)])
def test_importance_is_that_of_a_ridge_regression(num_images: int, ridge: float) -> None:
    generator = torch.Generator().manual_seed(0)
    values, labels = torch.randn(num_images, 60, generator=generator), torch.arange(num_images) % 3
    penalty = ridge * float(values.square().sum(1).mean())
    indicators = nn.functional.one_hot(labels, 3).double()
    targets = indicators - indicators.mean(0)
    reference = Ridge(alpha=penalty, fit_intercept=False).fit(values.double().numpy(), targets.numpy())
    found, expected = probe_importance(values, labels, 3).numpy(), np.linalg.norm(reference.coef_, axis=0)
    np.testing.assert_allclose(found, expected / np.sqrt(np.mean(expected**2)), rtol=1e-3)


def test_a_value_that_repeats_others_is_worth_less_than_one_that_adds() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 4
    first, second = (labels % 2).float(), (labels // 2).float()
    noise = 0.3 * torch.randn(400, 21, generator=generator)
    values = torch.cat([first[:, None].expand(-1, 20), 0.8 * second[:, None]], dim=1) + noise
    standard = (values - values.mean(0)) / values.std(0)
    assert int(probe_importance(standard, labels, 4).argmax()) == 20
    assert int(sums_of(values, labels, 4).f_statistic().argmax()) != 20


# start


def test_informed_weights_follow_the_scores() -> None:
    pool = ChannelPooling(5, 2)
    init_by_scores(pool, torch.tensor([3.0, 0.0, torch.inf, 1.0, 2.0]))
    torch.testing.assert_close(pool.weight.detach(), torch.tensor([1.25, 0.5, 1.5, 0.75, 1.0]))
    single = ChannelPooling(1, 1)
    init_by_scores(single, torch.tensor([3.0]))
    assert single.weight.item() == 1


def test_start_standardises_the_head_and_informs_the_pools(source: Source, batches: Batches) -> None:
    snow = make_snow(source, 3, changes={**NARROW, "start": "probe"})
    snow.start(batches, CPU)
    images, labels = joined(batches)
    values = all_values(source, images).double()
    torch.testing.assert_close(snow.delta.head.center.double(), values.mean(0), rtol=1e-4, atol=1e-5)
    alive = values.std(0, correction=0) > 0.1 * values.std(0, correction=0).mean()
    spread = snow.delta.head.spread.double()
    torch.testing.assert_close(spread[alive], values.std(0, correction=0)[alive], rtol=1e-3, atol=1e-5)
    for pool in snow.delta.named_pools().values():
        weight = pool.weight.detach()
        assert (float(weight.min()), float(weight.max())) == (0.5, 1.5)
    standard = (values - values.mean(0)) / snow.delta.head.spread.double()
    names = [*source.taps, "last"]
    sizes = [source.taps[name].num_chs for name in source.taps] + [source.num_features]
    of_all = probe_importance(standard.float(), labels, 3)
    importance = dict(zip(names, of_all.split(sizes), strict=True))
    pools = snow.delta.named_pools()
    for name, own in importance.items():
        if name in pools:
            pool = pools[name]
            assert set(pool.choose().tolist()) == set(own.topk(pool.num_pooled).indices.tolist())
    head = snow.delta.head.pool
    best = set(of_all.topk(head.num_pooled).indices.tolist())  # wherever they stand
    assert len(best - set(head.choose().tolist())) <= 0.02 * head.num_pooled  # the last ones are all but equal


def test_anova_ranks_each_channel_alone(narrow: Snow, source: Source, batches: Batches) -> None:
    narrow.start(batches, CPU)
    images, labels = joined(batches)
    features = source(images)
    for name, tap in narrow.delta.taps.items():
        averages = features.taps[name].movedim(tap.dim, 1).flatten(2).mean(2)
        score = sums_of(averages, labels, 3).f_statistic()
        pool = narrow.delta.named_pools()[name]
        assert set(pool.choose().tolist()) == set(score.topk(pool.num_pooled).indices.tolist())


def test_random_start_stays_random_but_standardised(source: Source, batches: Batches) -> None:
    snow = make_snow(source, 3, "paper")
    before = {name: pool.weight.detach().clone() for name, pool in snow.delta.named_pools().items()}
    snow.start(batches, CPU)
    for name, pool in snow.delta.named_pools().items():
        assert torch.equal(pool.weight, before[name])
    weights = torch.cat(list(before.values()))
    assert float(weights.mean()) == pytest.approx(1, abs=0.02)
    assert float(weights.std()) == pytest.approx(0.1, abs=0.02)
    assert not torch.equal(snow.delta.head.spread, torch.ones_like(snow.delta.head.spread))


def test_seed_decides_the_first_weights_alone(source: Source) -> None:
    before = torch.get_rng_state()
    states = [make_snow(source, 3, seed=seed).trainable_state() for seed in (0, 0, 1)]
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not all(torch.equal(states[0][key], states[2][key]) for key in states[0])


# a frozen probe and a body


def test_apart_the_probe_stays_and_the_body_learns_alone(source: Source, batches: Batches) -> None:
    snow = make_snow(source, 3)
    snow.start(batches, CPU)
    images = batches[0][0]
    head = snow.delta.head
    probe = snow.model.eval()(images)
    before = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    train(snow, batches, steps=4, lr=1e-2)
    changed = {name for name, tensor in head.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed <= {"fc.local.weight", "pool.times_chosen"}
    assert "fc.local.weight" in changed
    torch.testing.assert_close(snow.model.eval()(images), probe)  # until it is tuned, the body counts for nothing


def test_freezing_keeps_the_bodys_share(source: Source, batches: Batches) -> None:
    snow = make_snow(source, 3, changes={"head_bits": 8})
    snow.start(batches, CPU)
    train(snow, batches, steps=2, lr=1e-2)
    probe = snow.model.eval()(batches[0][0])
    snow.delta.head.share.fill_(0.5)
    logits = snow.model.eval()(batches[0][0])
    assert not torch.allclose(logits, probe)
    torch.testing.assert_close(snow.finish()(batches[0][0]), logits, rtol=ROUNDING, atol=ROUNDING)
    assert not any("share" in name for name in snow.shipped_state())


def best_sum(probe: Tensor, body: Tensor, labels: Tensor) -> tuple[float, float]:
    """The share of the body in the sum with the lowest cross-entropy at the best of six temperatures, and that one."""
    losses = {
        (share, heat): float(nn.functional.cross_entropy((probe + share * body) / heat, labels))
        for share in (0.0, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
        for heat in (0.125, 0.25, 0.5, 1, 2, 4)
    }
    return min(losses, key=lambda pair: losses[pair])


@pytest.mark.parametrize("stored", [False, True])
def test_tune_sets_the_shares_that_the_validation_images_favour(snow: Snow, batches: Batches, stored: bool) -> None:
    snow.start(batches, CPU)
    train(snow, batches, steps=6, lr=1e-2)
    head, model = snow.delta.head, snow.model
    images, labels = joined(batches)
    logits = []
    for shares in ((1.0, 0.0), (0.0, 1.0)):
        head.mix(*shares)
        with torch.no_grad():
            logits.append(model.eval()(images))
    head.mix(0.3, 0.7)
    frozen, rest = snow.frozen_part(64) or pytest.fail("no frozen part")
    if stored:
        of_body = snow.tune(rest, [(values_of(frozen, images), labels) for images, labels in batches], CPU)
    else:
        of_body = snow.tune(model, batches, CPU)
    assert of_body == pytest.approx(float((logits[1].argmax(1) == labels).float().mean()))
    assert (float(head.read_share), float(head.share)) == best_mixing_weights(*logits, labels)


def test_without_a_head_apart_nothing_is_tuned(source: Source, batches: Batches) -> None:
    snow = make_snow(source, 3, changes={"head": "joint"})
    snow.start(batches, CPU)
    assert snow.tune(snow.model, batches, CPU) is None
    assert (float(snow.delta.head.read_share), float(snow.delta.head.share)) == (1.0, 1.0)


def test_a_body_that_says_what_the_probe_says_is_no_gain() -> None:
    labels = torch.arange(60) % 3
    right = nn.functional.one_hot(labels, 3).float()
    for scale in (1.0, 4.0, 20.0):
        assert best_mixing_weights(scale * right, scale * right, labels) == (1.0, 0.0)
    assert best_mixing_weights(20 * right[:1], right[:1], labels[:1]) == (1.0, 0.0)


def test_a_useless_body_does_not_count() -> None:
    labels = torch.arange(60) % 3
    right = nn.functional.one_hot(labels, 3).float()
    noise = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    assert best_mixing_weights(10 * right, noise, labels) == (1.0, 0.0)
    assert best_mixing_weights(right, torch.zeros(60, 3), labels) == (1.0, 0.0)


def test_a_body_that_is_better_without_the_probe_counts_alone() -> None:
    labels = torch.arange(60) % 3
    right = nn.functional.one_hot(labels, 3).float()
    noise = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    hottest = 1 / 0.125  # of a body that is always right
    assert best_mixing_weights(noise, right, labels) == (0.0, hottest)
    assert best_mixing_weights(torch.zeros(60, 3), right, labels) == (hottest, hottest)  # the same


@pytest.mark.parametrize("loudness", [0.5, 1.0, 4.0])
def test_of_many_images_the_body_counts_by_the_best_sum(loudness: float) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(3000) % 3
    right = nn.functional.one_hot(labels, 3).float()
    probe, body = (2 * right + torch.randn(3000, 3, generator=generator) for _ in range(2))
    share, heat = best_sum(probe, loudness * body, labels)
    assert share == pytest.approx(1 / loudness)
    assert best_mixing_weights(probe, loudness * body, labels) == (1 / heat, share / heat)


def test_of_few_images_both_count_alike_unless_one_is_clearly_worse() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(24) % 3
    right = nn.functional.one_hot(labels, 3).float()
    noise = [torch.randn(24, 3, generator=generator) for _ in range(2)]
    probe, body = 2 * right + noise[0], 1.5 * right + noise[1]
    share, _ = best_sum(probe, body, labels)
    assert share != 1
    own, of_body = best_mixing_weights(probe, body, labels)
    assert own == of_body
    assert best_mixing_weights(probe, 4 * noise[1], labels) == (1.0, 0.0)


def test_over_confidence_is_no_reason_against_a_body() -> None:
    labels = torch.arange(300) % 3
    right = nn.functional.one_hot(labels, 3).float()
    generator = torch.Generator().manual_seed(0)
    probe, body = right + 2 * torch.randn(300, 3, generator=generator), 2 * right
    body[:15] = body[:15].roll(1, 1)
    for confidence in (1.0, 8.0):  # where it is wrong, a loud body is very wrong
        assert best_mixing_weights(probe, confidence * body, labels) != (1.0, 0.0)


def test_a_gain_that_a_few_images_make_is_none() -> None:
    labels = torch.zeros(100, dtype=torch.long)
    probe = torch.tensor([[0.5, -0.5]]).repeat(100, 1)
    body = torch.zeros(100, 2)
    body[:3] = torch.tensor([[1.0, -1.0]])
    body[3:5] = -body[0] / 2
    assert best_mixing_weights(probe, body, labels) == (1.0, 0.0)  # three images of a hundred, and two the other way
    probe[:20] *= -1
    body[:20] = body[0]
    own, share = best_mixing_weights(probe, body, labels)
    assert own > 0
    assert share > 0


@pytest.mark.parametrize(("gain", "is_clear"), [(0.08, False), (0.12, True)])
def test_a_gain_within_a_standard_error_is_no_clear_one(gain: float, is_clear: bool) -> None:
    """The gains of a hundred images are 1 apart from their mean, each way; the standard error is 0.1005."""
    losses = torch.zeros(100)
    assert clearly_better(losses, losses + torch.tensor([gain + 1, gain - 1]).repeat(50)) == is_clear


def test_a_clear_gain_is_more_than_one_in_sum() -> None:
    assert not clearly_better(torch.zeros(100), torch.full((100,), 0.009))
    assert clearly_better(torch.zeros(100), torch.full((100,), 0.011))


# training


@pytest.mark.parametrize(("preset", "changes"), [("default", NARROW), ("paper", {})])
def test_pooling_weights_get_gradient_and_change_the_selection(
    source: Source, batches: Batches, preset: str, changes: dict[str, Any]
) -> None:
    snow = make_snow(source, 3, preset, changes=changes)
    snow.start(batches, CPU)
    pools = snow.delta.named_pools()
    before = {name: set(pool.eval().choose().tolist()) for name, pool in pools.items()}
    train(snow, batches, steps=2, lr=1e-3)  # two, for the head's columns start at zero
    learned = {name: pool for name, pool in pools.items() if name != "head" or preset.startswith("paper")}
    for pool in learned.values():
        assert pool.weight.grad is not None
        assert float(pool.weight.grad.abs().sum()) > 0
    train(snow, batches, steps=12, lr=0.03)
    after = {name: set(pool.eval().choose().tolist()) for name, pool in pools.items()}
    changed = [name for name in before if before[name] != after[name]]
    assert len(changed) > len(before) / 2


def test_source_survives_an_optimiser_over_everything(snow: Snow, source: Source, batches: Batches) -> None:
    before = {key: tensor.clone() for key, tensor in source.state_dict().items()}
    model = snow.model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    for images, labels in batches:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    assert [key for key, tensor in source.state_dict().items() if not torch.equal(tensor, before[key])] == []
    assert not any(module.training for module in source.modules())


@pytest.mark.parametrize("shape", [NARROW, {"learned": True}])
def test_every_parameter_trains_once_with_its_own_rate(source: Source, shape: dict[str, Any]) -> None:
    snow = make_snow(source, 3, changes={**shape, "head": "joint", "pool_lr": 10.0, "head_lr": 3.0})
    groups = snow.parameter_groups(0.1, 0.05)
    listed = [parameter for group in groups for parameter in group["params"]]
    assert len(listed) == len({id(parameter) for parameter in listed})
    trained = {name: parameter for name, parameter in snow.delta.named_parameters() if parameter.requires_grad}
    assert {id(parameter) for parameter in listed} == {id(parameter) for parameter in trained.values()}
    by_id = {id(parameter): group for group in groups for parameter in group["params"]}
    for name, parameter in trained.items():
        group = by_id[id(parameter)]
        is_pool = name.startswith(("pools.", "head.pool."))
        factor = 10 if is_pool else 3 if name.startswith("head.") else 1
        assert group["lr"] == pytest.approx(0.1 * factor), name
        assert group["weight_decay"] == (0.0 if is_pool or parameter.ndim < 2 else 0.05), name


# noise


def test_noise_is_in_proportion_to_the_spread_and_ends(narrow: Snow, batches: Batches) -> None:
    narrow.start(batches, CPU)
    pools = [pool for name, pool in narrow.delta.named_pools().items() if name != "head"]
    expected = {0.0: 0.5, 0.35: 0.25, 0.7: 0.0, 0.99: 0.0}
    for progress, share in expected.items():
        narrow.set_progress(progress)
        for pool in pools:
            assert pool.sigma == pytest.approx(share * float(pool.weight.detach().std(correction=0)))


@pytest.mark.parametrize("slots", ["channel", "rank"])
def test_the_head_starts_as_a_linear_probe_and_gets_no_noise(source: Source, batches: Batches, slots: str) -> None:
    snow = make_snow(source, 3, changes={**NARROW, "slots": slots})
    snow.start(batches, CPU)
    snow.set_progress(0.0)
    head = snow.delta.head
    assert isinstance(head, Head)
    assert head.pool.sigma == 0
    images, labels = joined(batches)
    of_all = (all_values(source, images) - head.center) / head.spread
    idx = head.pool.choose()
    values = of_all[:, idx]
    with torch.no_grad():
        logits = snow.model.eval()(images)
    weight, bias = fit_probe(values, labels, 3, importance=probe_importance(of_all, labels, 3)[idx])
    torch.testing.assert_close(logits, values @ weight.T + bias, rtol=1e-3, atol=1e-3)


def test_a_more_important_value_is_penalised_less() -> None:
    """Penalising w_i by 1/s_i^2 is penalising the weights of s_i x_i alike: two equal values share by s^2."""
    torch.manual_seed(0)
    labels = torch.arange(60) % 2
    value = torch.randn(60, 1) + 2.0 * labels[:, None]
    values = value.expand(-1, 2) - value.mean()
    weight, _ = fit_probe(values, labels, 2, 0.01, torch.tensor([1.0, 3.0]))
    torch.testing.assert_close(weight[:, 1], 9 * weight[:, 0], rtol=1e-3, atol=1e-5)
    alone, _ = fit_probe(10**0.5 * values[:, :1], labels, 2, 0.01)
    torch.testing.assert_close(weight.sum(1), 10**0.5 * alone[:, 0], rtol=1e-3, atol=1e-5)


def test_with_one_image_a_class_the_values_that_vary_most_are_read(source: Source) -> None:
    torch.manual_seed(0)
    images, labels = torch.randn(3, 3, 64, 64), torch.arange(3)
    snow = make_snow(source, 3)
    snow.start([(images, labels)], CPU)
    head = snow.delta.head
    assert isinstance(head, Head)
    chosen = head.pool.choose()
    others = torch.ones(head.pool.num_chs, dtype=torch.bool)
    others[chosen] = False
    assert float(head.spread[chosen].min()) >= float(head.spread[others].max())


@pytest.mark.parametrize("num_classes", [2, 3])
def test_probe_separates_what_a_line_separates(num_classes: int) -> None:
    torch.manual_seed(0)
    labels = torch.arange(60) % num_classes
    values = torch.randn(60, 8)
    values[torch.arange(60), labels] += 6
    weight, bias = fit_probe(values, labels, num_classes)
    assert weight.shape == (num_classes, 8)
    assert bias.shape == (num_classes,)
    assert ((values @ weight.T + bias).argmax(1) == labels).float().mean() > 0.95


def test_noise_of_the_paper_never_ends() -> None:
    pools = PRESETS["paper"].pools
    assert pools.sigma_at(0.0) == pools.sigma_at(1.0) == pools.sigma > 0


def test_record_tells_noise_that_changes_nothing(narrow: Snow, batches: Batches) -> None:
    narrow.start(batches, CPU)
    train(narrow, batches, steps=4, lr=0.0)
    for row, pool in zip(narrow.record(), narrow.delta.named_pools().values(), strict=True):
        assert row["chosen"] <= row["ever_chosen"] <= row["channels"]
        pool.sigma = 1e-6 * float(pool.weight.detach().std())
        assert still_changing(pool) == 0
        pool.sigma = float(pool.weight.detach().std())
        assert 0 < still_changing(pool) <= pool.num_pooled
        pool.sigma = 0.0
        assert still_changing(pool) == 0
    assert any(row["ever_chosen"] > row["chosen"] for row in narrow.record())


def test_record_does_not_disturb_training(narrow: Snow) -> None:
    narrow.set_progress(0.0)
    before = torch.get_rng_state()
    first = narrow.record()
    assert len(first) == len(narrow.delta.taps) + 1
    assert torch.equal(before, torch.get_rng_state())
    assert narrow.record() == first
    assert json.loads(json.dumps(first)) == first


# state and result


def test_state_is_the_delta_alone_and_fits_only_its_own_shape(snow: Snow, source: Source) -> None:
    state = snow.trainable_state()
    assert sum(tensor.numel() for tensor in state.values()) < sum(p.numel() for p in source.parameters())
    other = make_snow(source, 3, seed=1)
    other.load_trainable_state(state)
    assert all(torch.equal(tensor, state[key]) for key, tensor in other.trainable_state().items())
    with pytest.raises(TrainingError, match="does not fit this delta"):
        make_snow(source, 4).load_trainable_state(state)


@pytest.mark.parametrize("preset", PRESETS)
def test_finished_model_has_the_logits_of_the_trained_one(source: Source, batches: Batches, preset: str) -> None:
    snow = make_snow(source, 3, preset)
    snow.start(batches, CPU)
    train(snow, batches, steps=3, lr=0.01)
    finished, images = snow.finish(), batches[0][0]
    assert not finished.training
    lost = 1e-5 if preset.startswith("paper") else ROUNDING
    torch.testing.assert_close(finished(images), snow.model.eval()(images), rtol=10 * lost, atol=lost)


@pytest.mark.parametrize("preset", PRESETS)
def test_subscription_lists_what_is_chosen(source: Source, batches: Batches, preset: str) -> None:
    snow = make_snow(source, 3, preset)
    snow.start(batches, CPU)
    snow.delta.head.share.fill_(1.0)  # a body that counts nothing would be left out
    subscription = snow.subscription()
    assert json.loads(json.dumps(subscription)) == subscription
    snow.model.eval()
    for name, pool in snow.delta.named_pools().items():
        index = sorted(pool.choose().tolist())
        assert subscription[name]["index"] == index
        assert subscription[name]["weight"] == pool.weight.detach()[index].tolist()
        assert subscription[name]["channels"] == pool.num_chs
    if snow.delta.grid_pool is not None:
        pool = snow.delta.grid_pool
        assert subscription["grid"]["index"] == pool.index.tolist() == sorted(set(pool.index.tolist()))
        assert subscription["grid"]["weight"] == pool.weight.tolist()
        assert subscription["grid"]["channels"] == source.num_chs


def test_head_without_values_of_the_source(source: Source, batches: Batches) -> None:
    spec = replace(PRESETS["paper"].spec(3), head_last=False)
    with pytest.raises(TrainingError, match="this delta's head reads nothing of the source; use 'joint'"):
        Snow(source, spec, PRESETS["default"].pools)
    snow = Snow(source, spec, PRESETS["paper"].pools)
    snow.start(batches, CPU)
    assert "head" not in snow.subscription()
    assert snow.finish()(batches[0][0]).shape == (12, 3)


# by name


def test_presets() -> None:
    default, paper = (PRESETS[name].spec(5) for name in ("default", "paper"))
    assert (default.slots, default.width_divisor, default.pool_divisor, default.head_taps) == ("channel", None, 8, None)
    assert [PRESETS[name].spec(5).grid_width for name in PRESETS] == [96, 96, 192, None, None]
    assert (PRESETS["paper"].pools.sigma, PRESETS["paper-rank"].pools.sigma) == (0.03, 0.5)
    assert PRESETS["paper-rank"].spec(5) == replace(paper, slots="rank")
    assert (paper.slots, paper.width_divisor, paper.pool_divisor, paper.head_taps) == ("ascending", 8, 8, ())
    assert default.head_last
    assert paper.head_last
    assert (default.head_std, paper.head_std) == (True, False)


def test_config_says_what_was_made(source: Source) -> None:
    configs = [make_method("snow", source, 3, preset, seed=2).config() for preset in ("default", "paper")]
    assert json.loads(json.dumps(configs[0]))["source"]["fingerprint"] == source.fingerprint
    assert configs[0]["spec"] != configs[1]["spec"]
    assert configs[0]["pools"] != configs[1]["pools"]


def test_unknown_names_are_told_apart(source: Source) -> None:
    with pytest.raises(TrainingError, match="no method 'quilt'; expected one of full, features, head, snow"):
        make_method("quilt", source, 3)
    with pytest.raises(TrainingError, match="no method 'hed'; did you mean 'head'"):
        make_method("hed", source, 3)
    with pytest.raises(
        TrainingError, match="'snow' has no preset 'slow'; expected one of default, small, large, paper"
    ):
        make_method("snow", source, 3, preset="slow")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head_start": "lucky"}, "head_start is 'lucky'; expected one of probe, anova, random, equal"),
        ({"start": "lucky"}, "start is 'lucky'; expected one of probe, anova, random, equal"),
        ({"head": "off"}, "head is 'off'; expected 'frozen_probe' or 'joint'"),
        ({"probe": False}, "head is 'frozen_probe', which keeps the probe, and probe is false"),
        ({"sigma": -1.0}, "sigma is -1.0; expected a number of 0 or more"),
        ({"noise_end": 0.0}, "noise_end is 0.0; expected None or a share"),
        ({"pool_lr": float("nan")}, "pool_lr is nan"),
    ],
)
def test_pool_training_out_of_range(change: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        PoolTraining(**change)


def test_a_saved_state_remembers_how_many_values_the_head_reads(source: Source, batches: Batches) -> None:
    first, again = make_snow(source, 3), make_snow(source, 3)
    first.start(batches, CPU)
    first.delta.head.select_k(5)
    again.load_trainable_state(first.trainable_state())
    images = torch.cat([images for images, _ in batches])
    assert again.delta.head.pool.num_pooled == 5
    assert torch.equal(again.model.eval()(images), first.model.eval()(images))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("few_tell", [True, False])
def test_the_reading_with_the_lowest_held_out_loss_is_taken(seed: int, few_tell: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(120) % 3
    values = torch.randn(120, 60, generator=generator)
    if few_tell:
        values[torch.arange(120), labels] += 1.5
    else:
        values += 0.2 * torch.randn(3, 60, generator=generator)[labels]
    nums, y = [60, 15, 4], labels.numpy()
    tried = [(60, False), (60, True), (15, True), (4, True)]
    losses = np.zeros((len(tried), len(INVERSE_PENALTIES), 120))
    for fit, held in StratifiedKFold(5, shuffle=True, random_state=0).split(y, y):
        importance = probe_importance(values[fit], labels[fit], 3)
        strength = group_lasso(values[fit], labels[fit], 3).norm(dim=1)
        for i, (num, by_importance) in enumerate(tried):
            scaled = (values * importance if by_importance else values).double().numpy()
            read = scaled[:, (importance if by_importance else strength).argsort(descending=True, stable=True)[:num]]
            for j, inverse_penalty in enumerate(INVERSE_PENALTIES):
                model = LogisticRegression(C=inverse_penalty, max_iter=1000).fit(read[fit], y[fit])
                losses[i, j, held] = -np.log(model.predict_proba(read[held])[np.arange(len(held)), y[held]])
    i, lowest = np.unravel_index(losses.sum(2).argmin(), losses.shape[:2])
    more = losses[i] - losses[i, lowest]
    j = next(j for j in range(len(more)) if more[j].mean() <= more[j].std(ddof=1) / 120**0.5)
    expected = FeatureSelection(*tried[i], INVERSE_PENALTIES[j])
    assert select_features(values, labels, 3, nums) == expected
    assert expected.by_importance == few_tell  # so that both kinds come up


def test_what_is_held_out_does_not_choose_the_values() -> None:
    """Of noise, no number is better than another; chosen with the held-out images, the fewest would seem so."""
    generator = torch.Generator().manual_seed(0)
    values, labels = torch.randn(100, 2000, generator=generator), torch.arange(100) % 2
    assert select_features(values, labels, 2, [2000, 20]).inverse_penalty == INVERSE_PENALTIES[0]
