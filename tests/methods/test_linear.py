"""Linear layers over fixed values of the source."""

from __future__ import annotations

import pytest
import torch
from method_training import CPU, Batches, logits, train
from sklearn.linear_model import LogisticRegression

from torchsnow.methods import make_method
from torchsnow.methods.head import make_head
from torchsnow.methods.lasso import group_lasso
from torchsnow.methods.probe import INVERSE_PENALTIES, fit_probe
from torchsnow.methods.taps import KEPT_SHARE, make_taps
from torchsnow.source import Source
from torchsnow.train.store import values_of


def planted(num_values: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    """200 images of three classes that values 5 and 17 tell apart, among noise."""
    generator = torch.Generator().manual_seed(0)
    values, labels = torch.randn(200, num_values, generator=generator), torch.arange(200) % 3
    values[:, 5] += 3.0 * (labels == 0)
    values[:, 17] += 3.0 * (labels == 1)
    return (values - values.mean(0)) / values.std(0), labels


def test_the_group_lasso_finds_the_values_that_matter() -> None:
    strength = group_lasso(*planted(), num_classes=3, penalty_share=0.5).norm(dim=1)
    assert set(strength.nonzero().flatten().tolist()) == {5, 17}


def test_the_group_lasso_meets_the_conditions_of_its_optimum() -> None:
    """For rows w of the minimiser: gradient + penalty * w / |w| = 0, and |gradient| <= penalty where w = 0."""
    values, labels = planted()
    targets = torch.nn.functional.one_hot(labels, 3).float()
    prior = targets.mean(0).log()

    def gradient(weights: torch.Tensor) -> torch.Tensor:
        probabilities = (values @ weights + prior).softmax(1)
        return torch.stack([(values[:, [i]] * (probabilities - targets)).mean(0) for i in range(values.shape[1])])

    penalty = 0.1 * float(gradient(torch.zeros(40, 3)).norm(dim=1).max())
    weights = group_lasso(values, labels, 3, penalty_share=0.1)
    norms, slope = weights.norm(dim=1), gradient(weights)
    alive = norms > 0
    assert 2 <= int(alive.sum()) < 40
    assert torch.allclose(slope[alive], -penalty * weights[alive] / norms[alive, None], atol=0.05 * penalty)
    assert bool((slope[~alive].norm(dim=1) <= 1.02 * penalty).all())


def test_above_the_largest_gradient_there_are_no_weights() -> None:
    assert not bool(group_lasso(*planted(), num_classes=3, penalty_share=1.001).any())


def test_taps_reads_a_share_of_all_values_and_those_that_tell_classes_apart(source: Source, batches: Batches) -> None:
    method = make_taps(source, 3)
    num_values = method.values.num_values
    assert num_values == sum(tap.num_chs for tap in source.taps.values()) + source.num_features
    method.start(batches, CPU)
    index = method.values.index
    assert len(index) == round(KEPT_SHARE * num_values)
    assert torch.equal(index, index.unique())
    assert int(index.max()) >= round(KEPT_SHARE * num_values)  # not simply the first ones


@pytest.mark.parametrize("text", ["taps", "head:probe"])
def test_a_probe_starts_as_logistic_regression(text: str, source: Source, batches: Batches) -> None:
    name, _, preset = text.partition(":")
    method = make_method(name, source, 3, preset or "default")
    method.start(batches, CPU)
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    frozen, _ = method.frozen_part(64) or pytest.fail("no frozen part")
    values = values_of(frozen, images) * len(method.trainable_state()["values.index"]) ** 0.5
    ours = method.model(images).detach().softmax(1)
    fits = []
    for inverse_penalty in INVERSE_PENALTIES:
        fitted = LogisticRegression(C=inverse_penalty, max_iter=1000).fit(values.numpy(), labels.numpy())
        fits.append(float((torch.from_numpy(fitted.predict_proba(values.numpy())) - ours).abs().max()))
    assert min(fits) < 5e-3


def test_a_head_starts_at_zero_and_learns(source: Source, batches: Batches) -> None:
    method = make_head(source, 3, probe=False)
    method.start(batches, CPU)
    assert not bool(logits(method.model, batches).any())
    train(method, batches, steps=30)
    assert float((logits(method.model, batches).argmax(1) == batches[0][1]).float().mean()) > 0.8


def test_values_are_standardised_over_the_training_images(source: Source, batches: Batches) -> None:
    method = make_head(source, 3, probe=False)
    method.start(batches, CPU)
    images = torch.cat([images for images, _ in batches])
    raw = method.values.all_values(images).double()
    spread = raw.std(0, correction=0)
    spread = spread.clamp_min(0.01 * float(spread.mean()))
    expected = (raw - raw.mean(0)) / spread / source.num_features**0.5
    assert torch.allclose(method.values(images).double(), expected, atol=1e-4)


def test_a_probe_of_more_values_than_images_is_the_plain_regression() -> None:
    values, labels = planted(num_values=300)
    weight, bias = fit_probe(values, labels, 3)
    fits = []
    for inverse_penalty in INVERSE_PENALTIES:
        fitted = LogisticRegression(C=inverse_penalty, max_iter=2000).fit(values.numpy(), labels.numpy())
        fits.append(float((torch.from_numpy(fitted.coef_) - weight).abs().max()))
    assert min(fits) < 3e-3  # the fit ends a little early
    assert len(bias) == 3


def test_the_penalty_is_chosen_by_the_loss_on_held_out_images(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    values, labels = torch.randn(90, 200, generator=generator), torch.arange(90) % 3  # there is nothing to learn
    weight, _ = fit_probe(values, labels, 3)
    strict = LogisticRegression(C=INVERSE_PENALTIES[0]).fit(values.numpy(), labels.numpy())
    assert float((torch.from_numpy(strict.coef_) - weight).abs().max()) < 1e-4


@pytest.mark.parametrize("counts", [(1, 1, 1), (4, 4, 4), (40, 1, 3), (2, 60, 60)])
def test_a_probe_takes_classes_of_very_few_images(counts: tuple[int, ...]) -> None:
    labels = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
    values = torch.randn(len(labels), 10, generator=torch.Generator().manual_seed(0))
    weight, bias = fit_probe(values, labels, 3)
    assert weight.shape == (3, 10)
    assert bool(weight.isfinite().all())
    assert bool(bias.isfinite().all())


def test_a_class_without_images_is_never_the_answer() -> None:
    torch.manual_seed(0)
    labels = torch.arange(60) % 3
    values = torch.randn(60, 8)
    values[torch.arange(60), labels] += 6
    weight, bias = fit_probe(values, torch.tensor([0, 2, 4])[labels], 5)
    expected, expected_bias = fit_probe(values, labels, 3)
    torch.testing.assert_close(weight[[0, 2, 4]], expected)
    torch.testing.assert_close(bias[[0, 2, 4]], expected_bias)
    assert set((values @ weight.T + bias).argmax(1).tolist()) == {0, 2, 4}
