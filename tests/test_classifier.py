from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import cross_val_score
from sklearn.utils import estimator_checks

from sample_photos import make_photos
from torchsnow import Classifier
from torchsnow.errors import DataError, TrainingError
from torchsnow.hub import Hub
from torchsnow.source import Source, load_source
from torchsnow.train import RunFolder


@pytest.fixture(scope="module")
def source() -> Source:
    return load_source("test_resnet", weights="random")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photos(tmp_path_factory.mktemp("data") / "photos")


@pytest.fixture(scope="module")
def paths(photos: Path) -> list[Path]:
    return sorted(photos.rglob("*.png"))


@pytest.fixture(scope="module")
def labels(paths: list[Path]) -> list[str]:
    return [path.parent.name for path in paths]


@pytest.fixture(scope="module", autouse=True)
def _no_pictures() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("torchsnow.plots.draw_run", lambda run, metrics: [])
        yield


def quick(source: Source, **options: Any) -> Classifier:
    return Classifier(source=source, epochs=1, image_size=32, **options)


@pytest.fixture(scope="module")
def fitted(source: Source, paths: list[Path], labels: list[str]) -> Classifier:
    return quick(source).fit(paths, labels)


def test_it_learns_and_answers(fitted: Classifier, paths: list[Path], labels: list[str]) -> None:
    assert fitted.classes_.tolist() == ["blue", "green", "red"]
    assert fitted.result_.test is None  # no image is held out to test with
    probabilities = fitted.predict_proba(paths)
    assert probabilities.shape == (30, 3)
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
    predicted = fitted.predict(paths)
    assert predicted.tolist() == fitted.classes_[probabilities.argmax(1)].tolist()
    assert fitted.score(paths, labels) == np.mean(predicted == labels) > 0.8
    assert fitted.predict([]).shape == (0,)


def test_images_of_all_kinds_are_the_same_to_it(fitted: Classifier, photos: Path, paths: list[Path]) -> None:
    few = paths[::9]
    expected = fitted.predict_proba(few)
    pictures = [Image.open(path) for path in few]
    arrays = np.stack([np.asarray(picture) for picture in pictures])
    for images in (list(map(str, few)), pictures, arrays, [few[0], pictures[1], *arrays[2:]]):
        np.testing.assert_array_equal(fitted.predict_proba(images), expected)
    np.testing.assert_array_equal(fitted.predict(photos / "red"), fitted.predict(paths[20:]))
    np.testing.assert_array_equal(fitted.predict(str(photos / "blue" / "*.png")), fitted.predict(paths[:10]))


def test_arrays_with_numbers_for_labels(source: Source, paths: list[Path]) -> None:
    images = np.stack([np.asarray(Image.open(path)) for path in paths])
    labels = np.repeat([10, 9, -1], 10)
    classifier = quick(source).fit(images, labels)
    assert classifier.classes_.tolist() == [-1, 9, 10]
    assert set(classifier.predict(images).tolist()) <= {-1, 9, 10}
    assert classifier.score(images, labels) > 0.8


def test_a_folder_a_hub_and_a_run_as_from_the_command_line(
    source: Source, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    classifier = quick(source, task="colours", hub="my-hub").fit(photos)
    assert Hub.open("my-hub").names() == ["colours"]
    assert classifier.run_ == Path("runs/colours")
    assert RunFolder(classifier.run_).splits.exists()
    assert classifier.result_.test is not None
    assert 0 <= classifier.score(photos) <= 1
    assert quick(source, task="colours", hub="my-hub").fit(photos).run_ == Path("runs/colours-2")
    assert len(Hub.open("my-hub").former()["colours"]) <= 1  # the same file may have come out


@pytest.mark.parametrize(
    "check",
    [
        "check_no_attributes_set_in_init",
        "check_parameters_default_constructible",
        "check_get_params_invariance",
        "check_set_params",
        "check_estimator_repr",
        "check_estimator_cloneable",
        "check_estimator_tags_renamed",
        "check_valid_tag_types",
        "check_mixin_order",
    ],
)
def test_scikit_learns_checks_that_need_no_table(check: str) -> None:
    getattr(estimator_checks, check)("Classifier", Classifier())


def test_it_works_with_cross_validation(source: Source, paths: list[Path], labels: list[str]) -> None:
    scores = cross_val_score(quick(source), paths, labels, cv=2)
    assert scores.shape == (2,)
    assert clone(quick(source)).source is source


def test_short_words_for_it(fitted: Classifier) -> None:
    assert (
        " ".join(repr(fitted).split())
        == "Classifier(epochs=1, image_size=32, source=Source(test_resnet, 14 taps, fp32))"
    )
    assert repr(fitted.result_).startswith("TrainedTask('task', validation ")


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        ([np.zeros((4, 4, 3))], ["a"], "array float64"),
        ([np.zeros((4, 4, 4), np.uint8)], ["a"], "expected uint8"),
        ([3], ["a"], "an image is a int"),
        (["gone.png"] * 2, ["a", "b"], "one file listed twice"),
        (["gone.png", "away.png"], ["a", "b"], "cannot read the image .*gone.png: there is no such file"),
        (["gone.png"], ["a"], "only the class 'a'"),
        (["gone.png"], ["a", "b"], "1 images and labels of shape"),
        ([], [], "no images"),
        (["gone.png"], None, "there are no labels"),
        ("nowhere", None, "'nowhere' does not exist"),
        (Image.new("RGB", (4, 4)), ["a"], "this is one image"),
        (np.zeros((4, 4, 3), np.uint8), ["a"] * 4, "this is one image"),
        (3, ["a"], "this is of the type int; give a list of images"),
        (["gone.png", "away.png"], ["a", None], "the labels are of several types, or None"),
    ],
)
def test_what_cannot_be_learned(source: Source, images: Any, labels: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        quick(source).fit(images, labels)


def test_what_cannot_be_asked(source: Source, fitted: Classifier) -> None:
    with pytest.raises(NotFittedError):
        quick(source).predict(["a.png"])
    with pytest.raises(DataError, match=r"gone\.png"):
        fitted.predict(["gone.png"])
    with pytest.raises(DataError, match="this is one image"):
        fitted.predict(np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(TrainingError, match="epochs is 0"):
        Classifier(source=source, epochs=0).fit(["a.png"], ["a"])
