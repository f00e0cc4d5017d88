"""Which of many values tell classes apart together: a linear layer under a group lasso.

Yuan and Lin, "Model selection and estimation in regression with grouped variables", JRSS B 2006; for the features of a
network Evci et al., "Head2Toe", ICML 2022.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torchsnow.train.targets import members

_PENALTY_SHARE = 0.02  # of the smallest penalty under which no value has any weight
_STEPS = 60


def group_lasso(values: Tensor, labels: Tensor, num_classes: int, penalty_share: float = _PENALTY_SHARE) -> Tensor:
    """Weights (N, num_classes) of a linear layer over values (n, N) under a group lasso.

    Minimises the mean cross-entropy plus `penalty * sum of the norms of the rows` by accelerated proximal steps
    (Beck and Teboulle, "FISTA", 2009). The penalty is a share of the smallest one under which all weights are 0.
    """
    targets = members(labels, num_classes).float()
    count, of_one = len(values), labels.ndim == 1
    share = targets.mean(0).clamp(1e-6, 1 - 1e-6)
    prior = share.log() if of_one else share.logit()  # the best logits without any weight

    def gradient(weights: Tensor) -> Tensor:
        logits = values @ weights + prior
        slope: Tensor = values.T @ ((logits.softmax(1) if of_one else logits.sigmoid()) - targets) / count
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
