"""Head2Toe: a linear layer over the averages of all taps, of which a group lasso chooses.

Evci, Dumoulin, Larochelle, Mozer, "Head2Toe: Utilizing Intermediate Representations for Better Transfer Learning",
ICML 2022: a linear layer with a penalty on the norm of each value's weights is fitted first, and the values whose
weights are the largest are kept.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from torchsnow.methods.linear import LinearMethod
from torchsnow.source.source import Source

KEPT_SHARE = 0.25  # of all values
_PENALTY_SHARE = 0.02  # of the smallest penalty under which no value has any weight
_STEPS = 60


def make_taps(source: Source, num_classes: int) -> LinearMethod:
    """A linear layer over a quarter of the averages of all taps and of the last features.

    It starts as the logistic regression over the values that the group lasso has chosen.
    """
    taps = tuple(source.taps)
    num_values = sum(tap.num_chs for tap in source.taps.values()) + source.num_features
    num_read = max(1, round(KEPT_SHARE * num_values))

    def choose(values: Tensor, labels: Tensor, num_classes: int) -> Tensor:
        strength = group_lasso(values, labels, num_classes).norm(dim=1)
        chosen: Tensor = strength.argsort(descending=True, stable=True)[:num_read]
        return chosen.sort().values

    return LinearMethod("taps", source, num_classes, taps, num_read, choose, probe=True)


def group_lasso(values: Tensor, labels: Tensor, num_classes: int, penalty_share: float = _PENALTY_SHARE) -> Tensor:
    """Weights (N, num_classes) of a linear layer over values (n, N) under a group lasso.

    Minimises the mean cross-entropy plus `penalty * sum of the norms of the rows` by accelerated proximal steps
    (Beck and Teboulle, "FISTA", 2009). The penalty is a share of the smallest one under which all weights are 0.
    """
    targets = F.one_hot(labels, num_classes).float()
    count = len(values)
    prior = targets.mean(0).clamp_min(1e-6).log()  # the best logits without any weight

    def gradient(weights: Tensor) -> Tensor:
        slope: Tensor = values.T @ ((values @ weights + prior).softmax(1) - targets) / count
        return slope

    weights = moved = torch.zeros(values.shape[1], num_classes)
    penalty = penalty_share * float(gradient(weights).norm(dim=1).max())
    rate, pace = 1 / _curvature(values), 1.0
    for _ in range(_STEPS):
        last, step = weights, moved - rate * gradient(moved)
        weights = step * (1 - rate * penalty / step.norm(dim=1, keepdim=True).clamp_min(1e-12)).clamp_min(0)
        next_pace = (1 + (1 + 4 * pace**2) ** 0.5) / 2
        moved, pace = weights + (pace - 1) / next_pace * (weights - last), next_pace
    return weights


def _curvature(values: Tensor) -> float:
    """An upper bound of the second derivative of the mean cross-entropy: half the largest eigenvalue of X'X/n."""
    direction = torch.ones(values.shape[1]) / values.shape[1] ** 0.5
    for _ in range(20):  # power iteration
        product = values.T @ (values @ direction)
        direction = product / product.norm().clamp_min(1e-12)
    return max(1e-12, 0.55 * float(product.norm()) / len(values))
