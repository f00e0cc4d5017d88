from __future__ import annotations

import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score
from torch.nn import functional as F

from torchsnow.methods.probe import fit_probe, lasso_importance, probe_importance, select_features
from torchsnow.train.evaluate import compute_metrics
from torchsnow.train.targets import are_right, best_thresholds, losses, mean_average_precision, members, named


def several(count: int = 200, num_labels: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Values (count, 6) and targets, of which label i is told by value i, and the last label by nothing."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(count, 6, generator=generator)
    told = values[:, :num_labels] + 0.3 * torch.randn(count, num_labels, generator=generator)
    told[:, -1] = torch.randn(count, generator=generator)
    return values, (told > 0.5).float()


def test_classes_and_labels_as_members() -> None:
    assert members(torch.tensor([2, 0]), 3).tolist() == [[0, 0, 1], [1, 0, 0]]
    targets = torch.tensor([[1.0, 1.0, 0.0]])
    assert members(targets, 3) is targets


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_losses_are_pytorchs(smoothing: float) -> None:
    _, targets = several(7)
    logits = torch.randn(7, 4, generator=torch.Generator().manual_seed(1))
    smooth = targets * (1 - smoothing) + smoothing / 2
    expected = F.binary_cross_entropy_with_logits(logits, smooth, reduction="sum")
    assert float(losses(logits, targets, label_smoothing=smoothing).sum()) == pytest.approx(float(expected), rel=1e-5)
    labels = torch.tensor([0, 1, 2, 3, 3, 2, 1])
    given = losses(logits, labels, label_smoothing=smoothing).mean()
    torch.testing.assert_close(given, F.cross_entropy(logits, labels, label_smoothing=smoothing))


def test_an_image_is_right_with_all_its_labels_and_no_other() -> None:
    logits, targets = torch.tensor([[3.0, -3.0], [3.0, 0.1], [-1.0, -1.0]]), torch.tensor([[1.0, 0], [1, 0], [0, 0]])
    assert are_right(logits, targets).tolist() == [True, False, True]
    assert are_right(logits, targets, (0.5, 0.9)).tolist() == [True, True, True]
    assert are_right(logits, torch.tensor([0, 1, 0])).tolist() == [True, False, True]


def test_thresholds_have_the_best_f1_of_all() -> None:
    _, targets = several()
    logits = 2 * targets - 3 + torch.randn(targets.shape, generator=torch.Generator().manual_seed(2))
    thresholds = best_thresholds(logits, targets)
    for label, threshold in enumerate(thresholds):
        truth, shares = targets[:, label], logits[:, label].double().sigmoid()
        best = max(f1_score(truth, shares >= limit) for limit in shares)
        assert f1_score(truth, shares >= threshold) == pytest.approx(best)
    assert f1_score(targets, named(logits, thresholds), average="macro") > f1_score(
        targets, named(logits, None), average="macro"
    )


def test_too_few_images_say_no_threshold() -> None:
    targets = torch.zeros(30, 2)
    targets[:4, 0] = targets[:5, 1] = 1
    assert best_thresholds(torch.full((30, 2), -4.0) + targets, targets)[0] == 0.5
    assert best_thresholds(torch.full((30, 2), -4.0) + targets, targets)[1] < 0.1


def test_the_mean_average_precision_is_of_the_labels_that_occur() -> None:
    _, targets = several()
    targets[:, 1] = 0
    logits = torch.randn(targets.shape, generator=torch.Generator().manual_seed(3)) + targets
    of_others = [average_precision_score(targets[:, label], logits[:, label]) for label in (0, 2, 3)]
    assert mean_average_precision(logits, targets) == pytest.approx(sum(of_others) / 3)


def test_metrics_of_several_labels() -> None:
    logits = torch.tensor([[4.0, -4.0], [4.0, 4.0], [-4.0, -4.0], [-4.0, 4.0]])
    targets = torch.tensor([[1.0, 0], [1, 0], [0, 0], [1, 1]])
    found = compute_metrics(logits, targets, ("a", "b"))
    assert (found.accuracy, found.num_images, found.confusion, found.mistakes) == (0.5, 4, None, ())
    assert [row.num_images for row in found.per_class] == [3, 1]
    assert [row.recall for row in found.per_class] == pytest.approx([2 / 3, 1])
    assert [row.precision for row in found.per_class] == pytest.approx([1, 1 / 2])


def test_a_probe_tells_several_labels() -> None:
    values, targets = several()
    weight, bias = fit_probe(values, targets, 4)
    logits = values @ weight.T + bias
    right = (logits > 0) == targets.bool()
    assert (right.float().mean(0)[:3] > 0.85).all()
    assert (weight[:3, :3].abs().argmax(1) == torch.arange(3)).all()
    targets[:, 3] = 0  # no image has it
    weight, bias = fit_probe(values, targets, 4)
    assert float((values @ weight.T + bias)[:, 3].max()) < -10


@pytest.mark.parametrize("importance", [probe_importance, lasso_importance])
def test_values_that_tell_labels_are_important(importance: object) -> None:
    values, targets = several()
    assert callable(importance)
    found = importance(values, targets, 4)
    assert set(found.argsort(descending=True)[:3].tolist()) == {0, 1, 2}
    assert select_features(values, targets, 4, [6, 3]).num_read in (6, 3)
