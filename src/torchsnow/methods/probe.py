"""Linear probes over fixed values: where a delta's own head starts, and which values are worth reading."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from torch import Tensor, from_numpy
from torch.nn import functional as F

INVERSE_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)
MAX_IMAGES = 20_000  # more make the fit slow and hardly better
_MAX_DENSE = 4_000  # images: the time grows with the cube of their number
_RIDGE = 3.0  # of the average squared length of an image's values
_HELD_OUT = 0.2
_MAX_STEPS = 200


def fit_probe(values: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Logistic regression of standardised values (n, N) on labels (n,).

    Returns weights (num_classes, N) and biases (num_classes,), for logits `values @ weights.T + biases`.

    The inverse penalty (scikit-learn's C) is the one of `INVERSE_PENALTIES` that does best on a fifth of the values,
    which are training images like the rest.
    """
    x, y = values.cpu().numpy(), labels.cpu().numpy()
    rarest = np.bincount(y, minlength=num_classes).min()
    if rarest < 2 or round(len(y) * _HELD_OUT) < num_classes:
        return _regress(x, y, num_classes, INVERSE_PENALTIES[1])
    fit_x, held_x, fit_y, held_y = train_test_split(x, y, test_size=_HELD_OUT, stratify=y, random_state=0)

    def score(inverse_penalty: float) -> float:
        weight, bias = _regress(fit_x, fit_y, num_classes, inverse_penalty)
        return float(((held_x @ weight.numpy().T + bias.numpy()).argmax(1) == held_y).mean())

    return _regress(x, y, num_classes, max(INVERSE_PENALTIES, key=score))


def _regress(x: np.ndarray, y: np.ndarray, num_classes: int, inverse_penalty: float) -> tuple[Tensor, Tensor]:
    model = LogisticRegression(C=inverse_penalty, max_iter=_MAX_STEPS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # training goes on from here anyway
        model.fit(x, y)
    weight, bias = model.coef_, model.intercept_
    if num_classes == 2:  # scikit-learn gives the log-odds of the second class alone
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return from_numpy(weight).float(), from_numpy(bias).float()


def probe_strengths(values: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """How much a dense linear probe relies on each of the standardised values (n, N): its weights' norm, (N,).

    The probe is a strong ridge regression of the classes' indicators, solved in closed form over at most 4,000
    images. A value that tells little beyond what others tell gets little weight, however well it does alone.
    """
    if len(values) > _MAX_DENSE:
        drawn = torch.randperm(len(values), generator=torch.Generator().manual_seed(0))[:_MAX_DENSE]
        values, labels = values[drawn], labels[drawn]
    targets = F.one_hot(labels, num_classes).to(values)
    similar = values @ values.T
    ridge = _RIDGE * similar.diagonal().mean().clamp_min(1e-12) * torch.eye(len(values)).to(values)
    weights: Tensor = values.T @ torch.linalg.solve(similar + ridge, targets - targets.mean(0))
    strengths: Tensor = weights.norm(dim=1)
    return strengths
