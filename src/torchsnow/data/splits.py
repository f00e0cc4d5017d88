"""Training, validation and test examples, kept in a file so that a run can be repeated."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from torchsnow.data.listing import first_few
from torchsnow.data.loading import Example, LoadedData, by_class
from torchsnow.errors import DataError
from torchsnow.files import write_atomically

SCHEMA = 1
NAMES = ("train", "val", "test")
NO_TEST_NOTE = "the data defines train and val but no test: nothing was held out for a final test"


@dataclass(frozen=True)
class Splits:
    """Disjoint examples for training, choosing and testing; `note` says what a reader of results must know.

    `root` and `fingerprint` are those of the data.
    """

    train: tuple[Example, ...]
    val: tuple[Example, ...]
    test: tuple[Example, ...]
    classes: tuple[str, ...]
    seed: int
    root: Path
    fingerprint: str
    note: str = ""

    def __repr__(self) -> str:
        sizes = ", ".join(f"{len(getattr(self, name))} {name}" for name in NAMES)
        return f"Splits({len(self.classes)} classes, images: {sizes})"

    def save(self, path: Path) -> None:
        """Write as JSON, with paths relative to the data's root. Raises DataError when that is not possible."""
        content: dict[str, Any] = {
            "schema": SCHEMA,
            "fingerprint": self.fingerprint,
            "classes": self.classes,
            "seed": self.seed,
            "note": self.note,
        }
        for name in NAMES:
            content[name] = [example.path.relative_to(self.root).as_posix() for example in getattr(self, name)]
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        # File names need not be UTF-8; surrogateescape carries such bytes through.
        write_atomically(path, text.encode("utf-8", "surrogateescape"), DataError)

    @classmethod
    def load(cls, path: Path, data: LoadedData) -> Splits:
        """Read what `save` wrote. Raises DataError for a damaged file, or when `data` is not as it was then."""
        try:
            content = json.loads(path.read_text(encoding="utf-8", errors="surrogateescape"))
            _check_content(content)
        except FileNotFoundError as error:
            raise DataError(f"there is no splits file {path}; a training run writes one into its folder") from error
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise DataError(f"{path} is not a splits file: {error!r}") from error
        _check_unchanged(content, data, path)
        examples = {data.relative_path(example): example for example in data.examples}
        train, val, test = (tuple(examples[name] for name in content[split]) for split in NAMES)
        return cls(train, val, test, data.classes, content["seed"], data.root, data.fingerprint, content["note"])


def make_splits(data: LoadedData, val_share: float = 0.15, test_share: float = 0.15, seed: int = 0) -> Splits:
    """Splits in which every class has the given shares (fractions of its images), rounded, but at least one image.

    Splits that the data defines are kept. Only val is taken out of train when it defines train and test; when it
    defines train and val, the test split stays empty and `note` says so. A share of 0 makes an empty split. The same
    data, shares and seed give the same splits, in whatever order the files are listed.

    Raises DataError for shares that leave nothing to train on, naming the class and its number of images.
    """
    if min(val_share, test_share) < 0 or val_share + test_share >= 1:
        raise DataError(f"val_share {val_share} and test_share {test_share} must be at least 0 and sum to under 1")
    defined = {name: list(data.splits.get(name, ())) for name in NAMES}
    has_val, has_test = "val" in data.splits, "test" in data.splits
    pool = data.splits.get("all", defined["train"])
    shares = (0.0 if has_val else val_share, 0.0 if has_val or has_test else test_share)
    train, val, test = _carve(data, pool, shares, seed)
    return Splits(
        train=tuple(train),
        val=tuple(defined["val"] or val),
        test=tuple(defined["test"] or test),
        classes=data.classes,
        seed=seed,
        root=data.root,
        fingerprint=data.fingerprint,
        note=NO_TEST_NOTE if has_val and not has_test else "",
    )


def _carve(
    data: LoadedData, pool: Sequence[Example], shares: tuple[float, float], seed: int
) -> tuple[list[Example], list[Example], list[Example]]:
    if not any(shares):  # an order without regard to labels, so that tasks on the same images have the same
        return sorted(pool, key=data.relative_path), [], []
    train: list[Example] = []
    val: list[Example] = []
    test: list[Example] = []
    generator = np.random.default_rng(seed)
    for label, members in enumerate(by_class(pool, len(data.classes))):
        members.sort(key=data.relative_path)
        count = len(members)
        val_count, test_count = (max(1, round(count * share)) if share else 0 for share in shares)
        if val_count + test_count >= count:
            raise DataError(_too_few(data.classes[label], count, shares))
        shuffled = [members[i] for i in generator.permutation(count)]
        val += shuffled[:val_count]
        test += shuffled[val_count : val_count + test_count]
        train += shuffled[val_count + test_count :]
    return train, val, test


def _too_few(class_name: str, count: int, shares: tuple[float, float]) -> str:
    return (
        f"the class {class_name!r} has {count} images: val ({shares[0]:.0%}) and test ({shares[1]:.0%}) take at least "
        "one each and leave none to train on; add images, remove the class, or lower the shares"
    )


def _check_content(content: dict[str, Any]) -> None:
    if content["schema"] != SCHEMA:
        raise ValueError(f"its schema is {content['schema']}, this version reads {SCHEMA}")
    names = [name for split in NAMES for name in content[split]]
    texts = [content["fingerprint"], content["note"], *content["classes"], *names]
    if not all(isinstance(text, str) for text in texts) or not isinstance(content["seed"], int):
        raise TypeError("a field has the wrong type")
    if len(set(names)) < len(names):
        raise ValueError("an image is in it twice")


def _check_unchanged(content: dict[str, Any], data: LoadedData, path: Path) -> None:
    saved = {name for split in NAMES for name in content[split]}
    present = {data.relative_path(example) for example in data.examples}
    differences = {
        "images are missing or unreadable now": sorted(saved - present),
        "images are new": sorted(present - saved),
    }
    for what, names in differences.items():
        if names:
            raise DataError(f"{data.name} changed since {path} was written: {len(names)} {what}: {first_few(names)}")
    if tuple(content["classes"]) != data.classes or content["fingerprint"] != data.fingerprint:
        raise DataError(f"{data.name} changed since {path} was written: classes, labels or file contents differ")
