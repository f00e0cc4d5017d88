"""One task in scikit-learn's manner: fit, predict, predict_proba, score."""

from __future__ import annotations

import io
import os
import shutil
import sys
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import accuracy_score
from sklearn.utils.validation import check_is_fitted

from torchsnow.data import LoadedData, eval_transform, find_images, load_data, read_image
from torchsnow.data.checking import check_images, validate_classes, validate_unique
from torchsnow.data.listing import Entry, Listing
from torchsnow.data.loading import loaded
from torchsnow.errors import DataError
from torchsnow.hub import Hub, source_for
from torchsnow.io.files import write_atomically
from torchsnow.methods import kind_of
from torchsnow.source import Source
from torchsnow.train import AUTO, RunFolder, TrainSettings
from torchsnow.train.auto import MOST_EPOCHS
from torchsnow.workflows.place import Place
from torchsnow.workflows.recipe import Recipe
from torchsnow.workflows.training import train_task

_BATCH_SIZE = 32
_METHOD = "snow"


class Classifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc] # scikit-learn has no types
    """An image classifier that trains a task, as `torchsnow train` does, and answers with it.

    - `task`: the task's name in the hub;
    - `hub`: the hub's folder, made if there is none; None keeps the task in a temporary one, as long as this object
      lives. A task of that name is replaced, and can be rolled back;
    - `source`: a name, as for `torchsnow.load_source`, or a Source; None is the hub's, or the bundled one;
    - `preset`: "default", "small", "large" or "paper";
    - `epochs`, `image_size` (pixels): None chooses them by the images;
    - `random_state`: a whole number, of the split and the order of images;
    - `verbose`: whether to show progress.

    Images are paths, PIL images, or uint8 arrays (H, W, 3) or (H, W); an array (N, H, W, 3) is N of them.

    Fitted, it has `classes_` (num_classes,), in the order of the columns of `predict_proba`; `hub_`, the opened hub;
    `run_`, the run folder; and `result_`, what the training reached. All that cannot be used raises a TorchsnowError,
    which is a ValueError.
    """

    def __init__(
        self,
        task: str = "task",
        hub: Path | str | None = None,
        source: Source | str | None = None,
        preset: str = "default",
        epochs: int | None = None,
        image_size: int | None = None,
        random_state: int = 0,
        verbose: bool = False,
    ) -> None:
        self.task, self.hub, self.source, self.preset = task, hub, source, preset
        self.epochs, self.image_size = epochs, image_size
        self.random_state, self.verbose = random_state, verbose

    def fit(self, X: Any, y: Any = None) -> Self:  # noqa: N803 # scikit-learn's name
        """Train on images and their labels, N of each; or, without labels, on a data set as `load_data` takes it.

        15% of the images are held out to choose the best epoch by, and of a data set that is named, without a test
        split of its own, another 15% to test with.
        """
        root = Path(tempfile.mkdtemp(prefix="torchsnow-"))
        weakref.finalize(self, shutil.rmtree, root, ignore_errors=True)
        hub = root / "hub" if self.hub is None else Path(self.hub)
        run = RunFolder(root / "run" if self.hub is None else _free(Path("runs"), self.task))
        settings, auto = self._settings()
        source = self.source if isinstance(self.source, Source) else source_for(hub, self.source, None, None)
        if y is None:
            data = _data_set(X)
            classes = np.array(data.classes)
        else:
            data, classes = _labelled(X, y, root / "images")
        recipe, place = Recipe(settings, _METHOD, self.preset, auto), Place(hub, source, replace=True)
        say = partial(print, file=sys.stderr) if self.verbose else None
        self.result_ = train_task(data, self.task, run, recipe, source, place, say=say)
        self.classes_, self.hub_, self.run_ = classes, Hub.open(hub, source), run.path
        return self

    def predict_proba(self, X: Any) -> np.ndarray:  # noqa: N803
        """Probabilities (N, num_classes) of N images, or of those that a folder or a pattern names."""
        check_is_fitted(self)
        source, task = self.hub_.source, self.hub_.task(self.task)
        transform = eval_transform(source.input_config, task.framing)
        device = next(source.parameters()).device
        images, parts = (_opened(one) for one in _several(X)), [np.empty((0, len(self.classes_)), np.float32)]
        while batch := list(islice(images, _BATCH_SIZE)):
            pixels = torch.stack([transform(image) for image in batch]).to(device)
            parts.append(self.hub_.predict(pixels, [self.task])[self.task].softmax(1).cpu().numpy())
        return np.concatenate(parts)

    def predict(self, X: Any) -> np.ndarray:  # noqa: N803
        """The likeliest classes (N,) of N images, or of those that a folder or a pattern names."""
        places = self.predict_proba(X).argmax(1)
        likeliest: np.ndarray = self.classes_[places]
        return likeliest

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:  # noqa: N803
        """The accuracy on images and their labels, or, without labels, on a data set as `load_data` takes it."""
        if y is None:
            data = _data_set(X)
            X, y = [example.path for example in data.examples], [data.classes[e.label] for e in data.examples]  # noqa: N806
        return float(accuracy_score(y, self.predict(X), sample_weight=sample_weight))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.no_validation = False, True
        return tags

    def _settings(self) -> tuple[TrainSettings, list[str]]:
        """The settings, and the names of those that follow from the images."""
        given = {"epochs": self.epochs, "image_size": self.image_size}
        known = {name: value for name, value in given.items() if value is not None}
        epochs = known.setdefault("epochs", MOST_EPOCHS)
        lr, warmup_epochs = kind_of(_METHOD, self.preset).lr, min(1, epochs - 1)
        settings = TrainSettings(**known, lr=lr, warmup_epochs=warmup_epochs, seed=self.random_state)  # type: ignore[arg-type]
        return settings, [name for name in AUTO if given.get(name) is None]


def _data_set(name: Any) -> LoadedData:
    if not isinstance(name, str | os.PathLike):
        raise DataError("there are no labels: give images and labels, or the name of a data set alone")
    return load_data(os.fspath(name))


def _labelled(images: Any, labels: Any, folder: Path) -> tuple[LoadedData, np.ndarray]:
    """Images and labels as a data set, and the classes; images that are no files are written into the folder."""
    images, labels = _several(images), np.asarray(labels)
    if labels.ndim != 1 or len(images) != len(labels):
        raise DataError(f"there are {len(images)} images and labels of shape {labels.shape}; give one label per image")
    try:
        classes, places = np.unique(labels, return_inverse=True)
    except TypeError as error:  # which have no order
        raise DataError("the labels are of several types, or None: give texts, or numbers") from error
    folder.mkdir()
    paths = [_as_file(image, folder / f"{number}.png") for number, image in enumerate(images)]
    names = tuple(map(str, classes))
    entries = tuple(Entry(path, names[place], "train") for path, place in zip(paths, places.tolist(), strict=True))
    root = Path(os.path.commonpath([path.parent for path in paths])) if paths else folder
    listing = Listing("images", root, names, entries)
    validate_classes(listing)
    validate_unique(entries)
    checked = check_images(entries, None)
    if checked.skipped:
        bad = checked.skipped[0]
        raise DataError(f"cannot read the image {bad.path}: {bad.reason}")
    data = loaded(listing, checked, 0)
    return replace(data, splits={**data.splits, "test": []}), classes  # whoever has labels at hand tests by `score`


def _several(images: Any) -> Sequence[Any]:
    """One by one: what a folder or a pattern names, or what a sequence or an array holds."""
    if isinstance(images, str | os.PathLike):
        return find_images([os.fspath(images)], _raise_bad_image)
    if isinstance(images, Image.Image) or (isinstance(images, np.ndarray) and images.shape[2:] in ((3,), (4,))):
        raise DataError("this is one image; give a list of images, as in [image]")
    try:
        return list(images)
    except TypeError as error:
        raise DataError(f"this is of the type {type(images).__name__}; give a list of images, or a folder") from error


def _raise_bad_image(path: Path, why: str) -> None:
    raise DataError(why)


def _as_file(image: Any, path: Path) -> Path:
    if isinstance(image, str | os.PathLike):
        return Path(os.path.abspath(image))
    write_atomically(path, _png(image), DataError)
    return path


def _opened(image: Any) -> Image.Image:
    return read_image(Path(image) if isinstance(image, str | os.PathLike) else io.BytesIO(_png(image)))


def _png(image: Any) -> bytes:
    """An image in memory as a file, so that it is read by the rules of files."""
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
            shape = f"{image.dtype} {image.shape}"
            raise DataError(f"an image is an array {shape}; expected uint8 (H, W, 3) or (H, W)")
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise DataError(f"an image is a {type(image).__name__}; expected a path, a PIL image or a uint8 array")
    content = io.BytesIO()
    (image.convert("RGB") if image.mode in ("CMYK", "YCbCr", "LAB", "HSV") else image).save(content, "PNG")
    return content.getvalue()


def _free(folder: Path, name: str) -> Path:
    """runs/NAME, or runs/NAME-2 and so on where that is taken."""
    names = (name if number == 1 else f"{name}-{number}" for number in count(1))
    return next(folder / one for one in names if not (folder / one).exists())
