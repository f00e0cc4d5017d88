from __future__ import annotations

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from sample_photos import make_photos
from torchsnow.data import load_data, make_splits
from torchsnow.methods import head
from torchsnow.methods import probe as module
from torchsnow.methods.probe import INVERSE_PENALTIES, fit_probe, lasso_importance, select_features
from torchsnow.source import Source
from torchsnow.source.features import Request
from torchsnow.train import TrainSettings
from torchsnow.train.batches import RunImages, run_images

SETTINGS = TrainSettings(image_size=32, batch_size=8, augmentation="strong", device="cpu")


@pytest.fixture(scope="module")
def images(source: Source, tmp_path_factory: pytest.TempPathFactory) -> RunImages:
    data = load_data(make_photos(tmp_path_factory.mktemp("data") / "photos", num_images=20))
    return run_images(make_splits(data), source.input_config, SETTINGS)


def last_features(source: Source, images: torch.utils.data.Dataset[tuple[torch.Tensor, int]]) -> torch.Tensor:
    batch = torch.stack([images[i][0] for i in range(len(images))])  # type: ignore[arg-type]
    last: torch.Tensor = source(batch, Request(last=True)).last
    return last


def test_the_probe_is_logistic_regression_over_the_last_features(source: Source, images: RunImages) -> None:
    train, val = last_features(source, images.plain), last_features(source, images.val)
    center, spread = train.mean(0), train.std(0, correction=0)
    spread = spread.clamp_min(0.01 * float(spread.mean()))
    expected = []
    for inverse_penalty in INVERSE_PENALTIES:
        model = LogisticRegression(C=inverse_penalty, max_iter=500)
        model.fit((train - center) / spread, images.plain.labels)
        expected.append(model.score((val - center) / spread, images.val.labels))
    assert head.probe_metrics(source, images, SETTINGS).accuracy in [pytest.approx(score) for score in expected]


def test_the_probe_sees_plain_images_so_many_at_most(
    source: Source, images: RunImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(head, "MAX_IMAGES", 12)
    with monkeypatch.context() as patched:
        forward = Source.forward
        patched.setattr(Source, "forward", lambda self, x, *rest: seen.append(len(x)) or forward(self, x, *rest))
        metrics = head.probe_metrics(source, images, SETTINGS)
    assert sum(seen) == 12 + len(images.val)
    assert metrics.num_images == len(images.val)


def test_nearly_as_many_classes_as_images_are_no_reason_to_warn() -> None:
    weight, bias = fit_probe(torch.randn(30, 4), torch.arange(30) % 25, 25, inverse_penalty=1.0)
    assert (weight.shape, bias.shape) == ((25, 4), (25,))


def test_many_classes_of_few_images_are_no_reason_to_warn_either() -> None:
    values, labels = torch.randn(120, 4), torch.arange(120) // 6 * 2 % 40
    labels[-30:] = torch.arange(30) % 29 + 40  # so that most of the classes are too small to be held out
    assert select_features(values, labels, 70, [2, 4]).num_read in (2, 4)


def test_of_very_many_values_the_group_lasso_sees_those_that_tell_most(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = torch.arange(90) % 3
    values = torch.randn(90, 40, generator=torch.Generator().manual_seed(0))
    values[torch.arange(90), 10 + labels] += 2.0
    all_seen = lasso_importance(values, labels, 3)
    monkeypatch.setattr(module, "_MOST_IN_LASSO", 12)
    some_seen = lasso_importance(values, labels, 3)
    assert int((some_seen > 0).sum()) <= 12 < int((all_seen > 0).sum())
    assert set(some_seen.topk(3).indices.tolist()) == set(all_seen.topk(3).indices.tolist()) == {10, 11, 12}
