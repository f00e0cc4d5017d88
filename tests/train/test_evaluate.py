from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
import sklearn.metrics
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from torchsnow.errors import TrainingError
from torchsnow.train import Metrics, Mistake, evaluate
from torchsnow.train.evaluate import MATRIX_CLASSES

CPU = torch.device("cpu")
NAMES = tuple("abcdefg")


def problem(num_images: int = 200, num_classes: int = 7) -> tuple[Tensor, Tensor]:
    """Logits that are right more often than not, of which class 3 never occurs."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, num_classes, (num_images,), generator=generator)
    labels[labels == 3] = 0
    logits = torch.randn(num_images, num_classes, generator=generator)
    logits[torch.arange(num_images), labels] += 1
    return logits, labels


def measured(logits: Tensor, labels: Tensor, names: tuple[str, ...] = NAMES) -> Metrics:
    """Through a model that gives its input back, in batches that do not divide the set."""
    return evaluate(nn.Identity(), TensorDataset(logits, labels), names, 64, CPU)  # type: ignore[arg-type]


def test_equals_scikit_learn() -> None:
    logits, labels = problem()
    metrics = measured(logits, labels)
    predicted, truth = logits.argmax(1).numpy(), labels.numpy()
    rows = sklearn.metrics.precision_recall_fscore_support(truth, predicted, labels=range(7), zero_division=0)
    own = [(row.precision, row.recall, row.f1, row.num_images) for row in metrics.per_class]
    np.testing.assert_allclose(own, np.stack(rows, axis=1), rtol=1e-6)
    recalls = np.delete(rows[1], 3)
    assert metrics.balanced_accuracy == pytest.approx(recalls.mean())
    assert metrics.accuracy == pytest.approx((predicted == truth).mean())
    assert metrics.loss == pytest.approx(sklearn.metrics.log_loss(truth, logits.softmax(1).numpy(), labels=range(7)))
    top5 = sklearn.metrics.top_k_accuracy_score(truth, logits.numpy(), k=5, labels=range(7))
    assert metrics.top5 == pytest.approx(top5)
    assert metrics.confusion == tuple(map(tuple, sklearn.metrics.confusion_matrix(truth, predicted, labels=range(7))))
    assert metrics.num_images == 200


def test_mistakes_are_what_is_beside_the_diagonal_the_most_frequent_first() -> None:
    metrics = measured(*problem())
    assert metrics.confusion is not None
    others = {
        (NAMES[i], NAMES[j]): count
        for i, row in enumerate(metrics.confusion)
        for j, count in enumerate(row)
        if i != j and count
    }
    assert {(one.name, one.taken_for): one.num_images for one in metrics.mistakes} == others
    counts = [one.num_images for one in metrics.mistakes]
    assert counts == sorted(counts, reverse=True)
    assert measured(torch.eye(7), torch.arange(7)).mistakes == ()


def test_ten_thousand_classes_need_no_matrix() -> None:
    logits, labels = problem(num_images=300, num_classes=10_000)
    names = tuple(f"class {i}" for i in range(10_000))
    tracemalloc.start()
    metrics = measured(logits, labels, names)
    assert tracemalloc.get_traced_memory()[1] < 50e6  # a matrix has 100 million entries
    tracemalloc.stop()
    predicted = logits.argmax(1)
    rows = sklearn.metrics.precision_recall_fscore_support(labels, predicted, labels=range(10_000), zero_division=0)
    own = [(row.precision, row.recall, row.f1, row.num_images) for row in metrics.per_class]
    np.testing.assert_allclose(own, np.stack(rows, axis=1), rtol=1e-6)
    assert metrics.confusion is None
    assert sum(one.num_images for one in metrics.mistakes) == int((predicted != labels).sum())
    i = int((predicted != labels).nonzero()[0])
    assert Mistake(names[labels[i]], names[predicted[i]], 1) in metrics.mistakes


@pytest.mark.parametrize("num_classes", [MATRIX_CLASSES, MATRIX_CLASSES + 1])
def test_a_thousand_classes_have_a_matrix_and_more_have_none(num_classes: int) -> None:
    metrics = measured(*problem(20, num_classes), tuple(map(str, range(num_classes))))
    assert (metrics.confusion is None) == (num_classes > MATRIX_CLASSES)


def test_calibration_error_of_overconfidence() -> None:
    logits = torch.tensor([[50.0, 0.0]] * 4)
    metrics = measured(logits, torch.tensor([0, 0, 0, 1]), ("a", "b"))
    assert metrics.calibration_error == pytest.approx(0.25)


def test_calibration_error_equals_its_definition() -> None:
    logits, labels = problem()
    confidence, predicted = logits.softmax(1).max(1)
    bins = np.digitize(confidence, np.linspace(0, 1, 16))
    expected = 0.0
    for i in set(bins):
        here = bins == i
        accuracy = sklearn.metrics.accuracy_score(labels[here], predicted[here])
        expected += here.mean() * abs(accuracy - confidence[here].mean())
    assert measured(logits, labels).calibration_error == pytest.approx(float(expected), rel=1e-5)


def test_no_top5_of_five_classes() -> None:
    logits, labels = problem()
    assert measured(logits[:, :5], labels.clamp_max(4), NAMES[:5]).top5 is None


def test_dict_is_json() -> None:
    metrics = measured(*problem())
    values = json.loads(json.dumps(metrics.to_dict(), allow_nan=False))
    assert values["per_class"][3] == {"name": "d", "num_images": 0, "precision": 0.0, "recall": 0.0, "f1": 0.0}
    assert metrics.classes == NAMES


def test_model_is_in_eval_mode_and_left_in_its_own() -> None:
    model = nn.Sequential(nn.Dropout(0.9))
    metrics = evaluate(model.train(), TensorDataset(*problem()), NAMES, 64, CPU)  # type: ignore[arg-type]
    assert metrics.loss == measured(*problem()).loss
    assert model.training


def test_clear_errors() -> None:
    logits, labels = problem()
    with pytest.raises(TrainingError, match="no images"):
        measured(logits[:0], labels[:0])
    with pytest.raises(TrainingError, match="7 classes apart"):
        measured(logits, labels, NAMES[:4])
    with pytest.raises(TrainingError, match="not finite"):
        measured(logits / 0, labels)
    with pytest.raises(TrainingError, match="too large for a finite loss"):
        measured(logits.sign() * 3e38, labels)
