from __future__ import annotations

import json

import numpy as np
import pytest
import sklearn.metrics
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from torchsnow.errors import TrainingError
from torchsnow.train import Metrics, evaluate

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


def test_calibration_error_of_overconfidence() -> None:
    logits = torch.tensor([[50.0, 0.0]] * 4)
    metrics = measured(logits, torch.tensor([0, 0, 0, 1]), ("a", "b"))
    assert metrics.calibration_error == pytest.approx(0.25)


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
