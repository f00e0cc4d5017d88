"""Linear probes over fixed values: where a delta's own head starts, and which values are worth reading."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, from_numpy
from torch.nn import functional as F

from torchsnow.methods.lasso import group_lasso
from torchsnow.methods.statistics import ClassSums

if TYPE_CHECKING:  # a second to load: the functions that fit load it
    from sklearn.linear_model import LogisticRegression

INVERSE_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
MAX_IMAGES = 20_000  # more make the fit slow and hardly better
_MAX_DENSE = 2_000  # images to rank and choose by: the time grows with the square of their number
_RIDGE, _LEAST_RIDGE = 3000.0, 3.0  # of the average squared length of an image's values; the first over their number
_FOLDS = 5
_FEWEST = 100  # images: fewer cannot tell how many values are worth reading
_MANY = 1_000  # images: from here on the group lasso was never worse
_ENOUGH = 400  # images held out in all: more hardly tell penalties apart any better
_MOST_IN_LASSO = 8_192  # values: its time grows with their number, and what tells little alone is hardly ever read
_MAX_STEPS, _TOLERANCE = 30, 1e-3
_JITTER = 1e-5  # of the mean squared length: equal images make a Gram matrix singular
_UNSEEN = -20.0  # the bias of a class without images


def fit_probe(
    values: Tensor,
    labels: Tensor,
    num_classes: int,
    inverse_penalty: float | None = None,
    importance: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Logistic regression of standardised values (n, N) on labels (n,).

    Returns weights (num_classes, N) and biases (num_classes,), for logits `values @ weights.T + biases`. With
    `importance` (N,) the penalty on a value's weights is divided by the square of its importance.

    The inverse penalty (scikit-learn's C), if it is not given, is the one of `INVERSE_PENALTIES` with the lowest
    cross-entropy in cross-validation on these values. By the loss and not by the accuracy, which a few hundred images
    cannot tell apart, and because the probe's probabilities are weighed against a body's later.
    """
    y = labels.cpu().numpy()
    scale = torch.ones(values.shape[1]) if importance is None else importance.cpu()
    x, basis = _in_their_span((values.cpu() * scale).numpy())
    if inverse_penalty is None:
        inverse_penalty = choose_penalty(x, y, num_classes)
    # From the strictest penalty on, as in cross-validation: few steps are taken for each, and where they start counts.
    model = _regression(INVERSE_PENALTIES[0])
    for weaker in (*(penalty for penalty in INVERSE_PENALTIES if penalty < inverse_penalty), inverse_penalty):
        weight, bias = _regress(model.set_params(C=weaker), x, y, num_classes)
    return scale * (weight if basis is None else weight @ from_numpy(basis).float().T), bias


def choose_penalty(x: np.ndarray, y: np.ndarray, num_classes: int) -> float:
    """The inverse penalty with the lowest cross-entropy in cross-validation on values (n, N) and labels (n,)."""
    losses = np.zeros(len(INVERSE_PENALTIES))
    for fit, held in _folds(y):
        losses += _losses(x[fit], y[fit], x[held], y[held], num_classes).sum(1)
    return INVERSE_PENALTIES[int(losses.argmin()) if losses.any() else len(losses) // 2]


@dataclass(frozen=True)
class FeatureSelection:
    """What a probe should read: the `num_read` strongest values, with this inverse penalty (None: not chosen here).

    The strength is a value's importance if `by_importance`, whose square then divides the penalty on its weights;
    otherwise it is the norm of its weights under a group lasso (`lasso_importance`).
    """

    num_read: int
    by_importance: bool
    inverse_penalty: float | None


def select_features(values: Tensor, labels: Tensor, num_classes: int, nums: Sequence[int]) -> FeatureSelection:
    """How many of the strongest of the values (n, N) a probe should read, and how they are penalised, by at most 2,000
    of the images.

    `nums` are the numbers to choose from. Taken is what has the lowest cross-entropy in cross-validation: one of these
    numbers by importance, or the first by the group lasso. How strong the values are is found again without what is
    held out. Where images of a class are few, what a dense probe relies on is mostly chance. Fewer than 100 images
    cannot say: the first number, by importance. From 1,000 images on it is the first number by the group lasso. The
    penalty is the strictest that is no worse than the best by more than a standard error.
    """
    if len(values) < _FEWEST:
        return FeatureSelection(nums[0], True, None)
    tried = [(nums[0], False)]
    if len(values) < _MANY:
        tried += [(num, True) for num in nums]
    values, labels = _some(values, labels)
    y = labels.cpu().numpy()
    losses: list[list[np.ndarray]] = [[np.zeros((len(INVERSE_PENALTIES), 0))] for _ in tried]
    for fit, held in _folds(y):
        ranked = {
            by_importance: (probe_importance if by_importance else lasso_importance)(
                values[fit], labels[fit], num_classes
            )
            for by_importance in {by_importance for _, by_importance in tried}
        }
        for place, (num, by_importance) in enumerate(tried):
            idx = ranked[by_importance].argsort(descending=True, stable=True)[:num]
            read = (values[:, idx] * (ranked[True][idx] if by_importance else 1)).cpu().numpy()
            x, basis = _in_their_span(read[fit])
            x_held = read[held] if basis is None else read[held] @ basis
            losses[place].append(_losses(x, y[fit], x_held, y[held], num_classes))
    of_tried = [np.concatenate(one, 1) for one in losses]
    best = min(range(len(tried)), key=lambda place: of_tried[place].sum(1).min())
    return FeatureSelection(*tried[best], INVERSE_PENALTIES[_best(of_tried[best])])


def _losses(x: np.ndarray, y: np.ndarray, x_held: np.ndarray, y_held: np.ndarray, num_classes: int) -> np.ndarray:
    """Cross-entropy on n held-out values for every penalty, the strictest first, (penalties, n); each fit starts at the
    last."""
    losses, model = [], _regression(INVERSE_PENALTIES[0])
    for inverse_penalty in INVERSE_PENALTIES:
        weight, bias = _regress(model.set_params(C=inverse_penalty), x, y, num_classes)
        logits = from_numpy(x_held).float() @ weight.T + bias
        losses.append(F.cross_entropy(logits, from_numpy(y_held), reduction="none").numpy())
    return np.stack(losses)


def _best(losses: np.ndarray) -> int:
    """The first place whose losses (places, n) are no worse than the lowest by more than a standard error of the
    difference (Breiman et al., "Classification and Regression Trees", 1984); where nothing could be held out, the
    middle."""
    count = losses.shape[1]
    if count < 2:
        return len(losses) // 2
    worse = losses - losses[losses.mean(1).argmin()]
    return int(np.flatnonzero(worse.mean(1) <= worse.std(1, ddof=1) / count**0.5)[0])


def _in_their_span(values: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Fewer columns where there are more than rows, for the same fit: penalised weights lie in the span of the rows.

    (n, N) -> (n, n) and the basis (N, n) to take weights back; or the values themselves and None.
    """
    if len(values) >= values.shape[1]:
        return values, None
    from scipy.linalg import solve_triangular

    # By the Gram matrix, which costs a quarter of a QR decomposition: with G = X X' = L L' the basis is X' inv(L)'.
    gram = values @ values.T
    gram[np.diag_indices_from(gram)] += _JITTER * gram.diagonal().mean()
    factor = np.linalg.cholesky(gram)
    basis = solve_triangular(factor, values, lower=True).T
    return values @ basis, basis


def _folds(labels: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows to fit and rows held out; those of classes with fewer images than folds are always fitted."""
    from sklearn.model_selection import StratifiedKFold

    common = np.flatnonzero(np.bincount(labels)[labels] >= _FOLDS)
    if len(common) == 0:
        return
    held_out = 0
    with _without_advice():
        folds = list(StratifiedKFold(_FOLDS, shuffle=True, random_state=0).split(common, labels[common]))
    for _, fold in folds:
        if held_out < _ENOUGH:
            yield np.setdiff1d(np.arange(len(labels)), common[fold]), common[fold]
        held_out += len(fold)


@contextmanager
def _without_advice() -> Iterator[None]:
    """scikit-learn warns of what is as it should be."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # training continues from here anyway
        warnings.filterwarnings("ignore", "The number of unique classes is greater than 50%")  # so few images it is
        yield


def _regression(inverse_penalty: float) -> LogisticRegression:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=inverse_penalty, max_iter=_MAX_STEPS, tol=_TOLERANCE, warm_start=True)


def _regress(model: LogisticRegression, x: np.ndarray, y: np.ndarray, num_classes: int) -> tuple[Tensor, Tensor]:
    with _without_advice():
        model.fit(x, y)
    weight, bias = model.coef_, model.intercept_
    if len(model.classes_) == 2:  # scikit-learn gives the log-odds of the second class alone
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    of_all, bias_of_all = torch.zeros(num_classes, x.shape[1]), torch.full((num_classes,), _UNSEEN)
    of_all[model.classes_], bias_of_all[model.classes_] = from_numpy(weight).float(), from_numpy(bias).float()
    return of_all, bias_of_all


def _some(values: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """At most 2,000 images, drawn at random."""
    if len(values) <= _MAX_DENSE:
        return values, labels
    drawn = torch.randperm(len(values), generator=torch.Generator().manual_seed(0))[:_MAX_DENSE]
    return values[drawn], labels[drawn]


def lasso_importance(values: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """The norm of the weights of each of the standardised values (n, N) in a linear layer under a group lasso, (N,), by
    at most 2,000 images. Beyond 8,192 values, those that tell the classes apart least, each alone, have none."""
    values, labels = _some(values, labels)
    importance = torch.zeros(values.shape[1])
    sums = ClassSums(values.shape[1], num_classes, values.device)
    sums.add(values, labels)
    best = sums.f_statistic().cpu().argsort(descending=True, stable=True)[:_MOST_IN_LASSO].sort().values
    importance[best] = group_lasso(values[:, best], labels, num_classes).norm(dim=1)
    return importance


def probe_importance(values: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """How much a dense linear probe relies on each of the standardised values (n, N): its weights' norm, (N,), over
    the root of their mean square.

    The probe is a strong ridge regression of the classes' indicators, solved in closed form over at most 2,000
    images. A value that tells little beyond what others tell gets little weight, however well it does alone. The fewer
    the images, the stronger the ridge, and the more every value is judged alone: few images cannot say what adds.
    """
    values, labels = _some(values, labels)
    targets = F.one_hot(labels, num_classes).to(values)
    similar = values @ values.T
    ridge = max(_LEAST_RIDGE, _RIDGE / len(values)) * similar.diagonal().mean().clamp_min(1e-12)
    regular = similar + ridge * torch.eye(len(values)).to(values)
    weights: Tensor = values.T @ torch.linalg.solve(regular, targets - targets.mean(0))
    importance: Tensor = weights.norm(dim=1)
    return importance / importance.square().mean().sqrt().clamp_min(1e-12)
