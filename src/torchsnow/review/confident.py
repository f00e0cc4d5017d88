"""Which labels are likely wrong: confident learning (Northcutt, Jiang, Chuang, "Confident Learning: Estimating
Uncertainty in Dataset Labels", JAIR 70, 2021)."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from sklearn.model_selection import StratifiedGroupKFold
from torch import Tensor

from torchsnow.methods.probe import choose_penalty, fit_probe

FOLDS = 5
_COMPONENTS = 256  # as good a probe as thousands of averages, in a tenth of the time
_ENOUGH = 1_000  # images to choose the penalty by: the time grows with their number, and the choice is coarse


def principal_components(values: Tensor) -> Tensor:
    """The at most 256 strongest components of standardised values (N, F), (N, n), scaled to a mean square of 1."""
    with torch.random.fork_rng(devices=[]):  # the decomposition is a randomised one
        torch.manual_seed(0)
        left, singular, _ = torch.pca_lowrank(values, min(_COMPONENTS, *values.shape), center=False)
    components = left * singular
    return components / components.square().mean().sqrt().clamp_min(1e-12)


def held_out_probabilities(values: Tensor, labels: Tensor, groups: Tensor, num_classes: int) -> Tensor:
    """What logistic regression says of images that it was not fitted on, (N, num_classes).

    It reads values (N, F), of a mean square near 1, of images with labels (N,), in five folds; images of one of the
    `groups` (N,) are held out together, for near-duplicates would give each other's labels away.
    """
    drawn = torch.randperm(len(values), generator=torch.Generator().manual_seed(0))[:_ENOUGH]
    penalty = choose_penalty(values[drawn].numpy(), labels[drawn].numpy(), num_classes)
    probabilities = torch.zeros(len(values), num_classes)
    for fit, held in _folds(labels, groups):
        if len(set(labels[fit].tolist())) == 1:  # nothing to tell apart
            probabilities[held, labels[fit][0]] = 1
            continue
        weight, bias = fit_probe(values[fit], labels[fit], num_classes, penalty)
        probabilities[held] = (values[held] @ weight.T + bias).softmax(1)
    return probabilities


def _folds(labels: Tensor, groups: Tensor) -> list[tuple[np.ndarray, np.ndarray]]:
    folds = min(FOLDS, int(labels.bincount().max()), len(set(groups.tolist())))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class")  # what is rare is not judged, see below
        return list(
            StratifiedGroupKFold(folds, shuffle=True, random_state=0).split(labels, labels.numpy(), groups.numpy())
        )


def likely_wrong(probabilities: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The images whose labels (N,) are likely wrong, the likeliest first, and the class of each that is likelier, (n,).

    An image is confidently of a class when its held-out probability (N, num_classes) reaches the mean of that class's
    own images; where it is of several, the likeliest counts. Where that is not its label, and the label is not the
    likeliest class either, the label is doubted. They are ordered by their margin, the label's probability less the
    likeliest other's. Classes with fewer images than folds are neither doubted nor likelier.
    """
    counts = labels.bincount(minlength=probabilities.shape[1])
    own = probabilities.gather(1, labels[:, None])[:, 0]
    sums = torch.zeros(probabilities.shape[1]).index_add(0, labels, own)
    thresholds = (sums / counts).masked_fill(counts < FOLDS, torch.inf)
    confident = probabilities.masked_fill(probabilities < thresholds, -1)
    likelier = confident.argmax(1)
    margin = own - probabilities.scatter(1, labels[:, None], -1).max(1).values
    is_doubted = (confident.max(1).values > 0) & (likelier != labels) & (margin < 0) & (counts[labels] >= FOLDS)
    order = margin.argsort(stable=True)
    order = order[is_doubted[order]]
    return order, likelier[order]
