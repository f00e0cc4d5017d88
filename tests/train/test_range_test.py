from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tiny_method import Tiny

from torchsnow.data import Splits
from torchsnow.source import Source
from torchsnow.train import TrainSettings
from torchsnow.train.batches import RunImages, run_images
from torchsnow.train.range_test import HIGHEST, LOWEST, STEPS, auto_lr, choose_factor, rising_losses

FACTORS = np.geomspace(LOWEST, HIGHEST, STEPS)


@pytest.fixture
def images(source: Source, splits: Splits, settings: TrainSettings) -> RunImages:
    return run_images(splits, source.input_config, settings)


def losses(falls_at: float, rises_at: float = 1e9, noise: float = 0.02) -> list[float]:
    """From 2 to 0.2 around one rate, and up again from another."""
    down = 1.1 - 0.9 * np.tanh(3 * np.log10(FACTORS / falls_at))
    up = 5 * np.maximum(0, np.log10(FACTORS / rises_at))
    return list(down + up + noise * np.random.default_rng(0).standard_normal(STEPS))


@pytest.mark.parametrize(("falls_at", "chosen"), [(0.3, 0.15), (0.5, 0.25), (5.0, 2.5), (7.0, 3.0), (0.1, 0.1)])
def test_half_the_rate_of_the_steepest_descent(falls_at: float, chosen: float) -> None:
    factor, why = choose_factor(list(FACTORS), losses(falls_at))
    assert factor == pytest.approx(chosen, rel=0.25)
    assert 0.1 <= factor <= 3
    assert "fell fastest" in why


@pytest.mark.parametrize("falls_at", [1.4, 2.0, 3.2])
def test_a_rate_near_the_default_is_the_default(falls_at: float) -> None:
    assert choose_factor(list(FACTORS), losses(falls_at))[0] == 1


@pytest.mark.parametrize("noise", [0.0, 0.1, 1.0])
def test_a_flat_curve_keeps_the_default(noise: float) -> None:
    flat = list(3 + noise * np.random.default_rng(1).standard_normal(STEPS))
    assert choose_factor(list(FACTORS), flat) == (1, "the method's own: the loss did not fall clearly")


def test_a_fall_within_the_noise_keeps_the_default() -> None:
    assert choose_factor(list(FACTORS), losses(0.3, noise=0.02))[0] < 1
    assert choose_factor(list(FACTORS), list(np.abs(losses(0.3, noise=1.0))))[0] == 1


def test_a_rising_loss_limits_the_rate() -> None:
    factor, why = choose_factor(list(FACTORS), list(2 + 8 * np.maximum(0, np.log10(FACTORS / 0.8))))
    assert factor == pytest.approx(0.25, abs=0.05)
    assert why == "a quarter of where the loss rose"
    free, bound = (choose_factor(list(FACTORS), losses(5.0, rises))[0] for rises in (1e9, 1.0))
    assert bound < 0.6 < free


def test_a_loss_that_is_not_finite_limits_the_rate() -> None:
    half = STEPS // 2
    factor, _ = choose_factor(list(FACTORS[:half]), [2.0] * half)
    assert factor == pytest.approx(FACTORS[half - 1] / 4)
    assert choose_factor([], [])[0] == 0.1


def test_rates_rise_to_where_the_loss_is_not_finite(source: Source, images: RunImages, settings: TrainSettings) -> None:
    factors, measured = rising_losses(Tiny(source.input_config), images, settings)
    assert len(measured) == STEPS
    assert (factors[0], factors[-1]) == pytest.approx((LOWEST, HIGHEST))
    spoiled = Tiny(source.input_config)
    spoiled.model[4].weight.data.fill_(math.nan)
    assert rising_losses(spoiled, images, settings) == ([], [])


def test_the_test_moves_only_its_own_method(source: Source, images: RunImages, settings: TrainSettings) -> None:
    made = [Tiny(source.input_config) for _ in range(2)]
    torch.manual_seed(5)
    before = torch.get_rng_state()
    results = [auto_lr(lambda own=own: own, images, settings) for own in made]
    assert torch.equal(before, torch.get_rng_state())
    lr, why = results[0]
    assert results[1] == (lr, why)
    assert 0.0005 <= lr <= 0.015
    assert why.endswith("in 48 steps at rising rates")
    assert [(own.starts, own.progress) for own in made] == [(25, [0.0])] * 2
