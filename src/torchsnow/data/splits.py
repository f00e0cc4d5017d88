"""Training, validation and test examples, kept in a file so that a run can be repeated."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchsnow.data.loading import Example, LoadedData, by_class
from torchsnow.data.names import counted, first_few
from torchsnow.errors import DataError
from torchsnow.io.files import write_atomically

SCHEMA = 2  # 1 knew images by their sizes, not by their contents
_RARE = 10  # a class is, whose images are so many times fewer than those of the largest one
NAMES = ("train", "val", "test")
NO_TEST_NOTE = "the data defines train and val but no test: nothing was held out for a final test"


@dataclass(frozen=True)
class Splits:
    """Disjoint examples for training, choosing and testing; `note` says what a reader of results must know.

    `root`, `fingerprint` and `digests` are those of the data.
    """

    train: tuple[Example, ...]
    val: tuple[Example, ...]
    test: tuple[Example, ...]
    classes: tuple[str, ...]
    seed: int
    root: Path
    fingerprint: str
    note: str = ""
    digests: Mapping[Path, str] = field(default_factory=dict, repr=False, compare=False)

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
        content["digests"] = {
            name: [self.digests.get(example.path, "") for example in getattr(self, name)] for name in NAMES
        }
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        # File names need not be UTF-8; surrogateescape carries such bytes through.
        write_atomically(path, text.encode("utf-8", "surrogateescape"), DataError)

    def warnings(self) -> list[str]:
        """What makes accuracy say little: a class with a tenth or less of the images of the largest one."""
        labels = [label for example in self.train for label in example.all_labels]
        counts = np.bincount(labels, minlength=len(self.classes))
        least, most = int(counts.argmin()), int(counts.argmax())
        if _RARE * counts[least] > counts[most]:
            return []
        num_rare = int((_RARE * counts <= counts[most]).sum())
        return [
            f"{counted(num_rare, 'class is', 'classes are')} rare in training: {self.classes[least]!r} has "
            f"{counted(int(counts[least]), 'image')}, {self.classes[most]!r} {counts[most]:,}, "
            f"{counts[most] / len(self.train):.1%} of all: look at balanced accuracy, and try --class-weights balanced"
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, for another process that has the same files."""
        examples = {
            name: [(str(example.path), example.label, example.labels) for example in getattr(self, name)]
            for name in NAMES
        }
        return {**vars(self), "root": str(self.root), "digests": {}, **examples}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Splits:
        """From `to_dict`."""
        examples = {
            name: tuple(
                Example(Path(path), label, None if labels is None else tuple(labels))
                for path, label, labels in values[name]
            )
            for name in NAMES
        }
        return cls(**{**values, "root": Path(values["root"]), "classes": tuple(values["classes"]), **examples})

    @classmethod
    def load(cls, path: Path, data: LoadedData) -> Splits:
        """Read what `save` wrote. Raises DataError for a damaged file, or when `data` is not as it was then."""
        try:
            content = json.loads(path.read_text(encoding="utf-8", errors="surrogateescape"))
            _validate_content(content)
        except FileNotFoundError as error:
            raise DataError(f"there is no splits file {path}; a training run writes one into its folder") from error
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise DataError(f"{path} is not a splits file: {error!r}") from error
        _validate_unchanged(content, data, path)
        examples = {data.relative_path(example): example for example in data.examples}
        train, val, test = (tuple(examples[name] for name in content[split]) for split in NAMES)
        about = data.classes, content["seed"], data.root, data.fingerprint, content["note"], data.digests
        return cls(train, val, test, *about)


def parts_in(path: Path) -> dict[str, str]:
    """The split of every image in a file that `Splits.save` wrote, by the digest of its content; empty where that is
    not known."""
    try:
        digests = json.loads(path.read_text(encoding="utf-8", errors="surrogateescape"))["digests"]
        return {str(digest): name for name in NAMES for digest in digests[name] if digest}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return {}


def make_splits(
    data: LoadedData,
    val_share: float = 0.15,
    test_share: float = 0.15,
    seed: int = 0,
    former: Mapping[str, str] | None = None,
) -> Splits:
    """Splits in which every class has the given shares (fractions of its images), rounded, but at least one image.

    Splits that the data defines are kept. Only val is taken out of train when it defines train and test; when it
    defines train and val, the test split stays empty and `note` says so. A share of 0 makes an empty split. The same
    data, shares and seed give the same splits, in whatever order the files are listed.

    Copies of one image stay in one split, where a class has enough different ones. So do the images of a group, where
    the data has groups: shares are then met as nearly as the groups allow. Images that `former` names, see `parts_in`,
    stay in the split that they were in, so that a new version of a task is tested on images that no version has
    learned from; a class with none to train on among these is drawn anew.

    Raises DataError for shares that leave nothing to train on, naming the class and its number of images.
    """
    if min(val_share, test_share) < 0 or val_share + test_share >= 1:
        raise DataError(f"val_share {val_share} and test_share {test_share} must be at least 0 and sum to under 1")
    defined = {name: list(data.splits.get(name, ())) for name in NAMES}
    has_val, has_test = "val" in data.splits, "test" in data.splits
    pool = data.splits.get("all", defined["train"])
    shares = (0.0 if has_val else val_share, 0.0 if has_val or has_test else test_share)
    drawn = {"train", *(name for name, share in zip(NAMES[1:], shares, strict=True) if share)}
    stays = {digest: name for digest, name in (former or {}).items() if name in drawn}
    train, val, test = _carve(data, pool, shares, seed, stays)
    return Splits(
        train=tuple(train),
        val=tuple(defined["val"] or val),
        test=tuple(defined["test"] or test),
        classes=data.classes,
        seed=seed,
        root=data.root,
        fingerprint=data.fingerprint,
        note=NO_TEST_NOTE if has_val and not has_test else "",
        digests=data.digests,
    )


def _carve(
    data: LoadedData, pool: Sequence[Example], shares: tuple[float, float], seed: int, former: Mapping[str, str]
) -> tuple[list[Example], list[Example], list[Example]]:
    pool = sorted(pool, key=data.relative_path)
    if not any(shares):  # an order without regard to labels, so that tasks on the same images have the same
        return pool, [], []
    if any(example.path in data.groups for example in pool):
        return _carve_groups(data, pool, shares, seed, former)
    train: list[Example] = []
    val: list[Example] = []
    test: list[Example] = []
    generator = np.random.default_rng(seed)
    for label, members in enumerate(by_class(pool, len(data.classes))):
        if not members:  # all images with this label have a rarer one
            continue
        counts = [max(1, round(len(members) * share)) if share else 0 for share in shares]
        if sum(counts) >= len(members) and any(example.labels is not None for example in members):
            train += members  # others with these labels, and a rarer one, are shared out
            continue
        if sum(counts) >= len(members):
            raise DataError(_too_few(data.classes[label], len(members), shares))
        kept = [[example for example in members if _part_of(example, data, former) == name] for name in NAMES]
        if not kept[0]:
            kept = [[], [], []]
        known = {example.path for part in kept for example in part}
        new = [example for example in members if example.path not in known]
        different = _different(new, data.digests)
        if not known and len(different) <= sum(count > 0 for count in counts):  # then copies cannot be kept together
            different = [[example] for example in new]
        shuffled = [different[i] for i in generator.permutation(len(different))]
        for part, of_former, count in zip((val, test), kept[1:], counts, strict=True):
            part += of_former
            taken = len(of_former)
            while taken < count and len(shuffled) > (not known):
                copies = shuffled.pop(0)
                part += copies
                taken += len(copies)
        train += kept[0] + [example for copies in shuffled for example in copies]
    return train, val, test


def _part_of(example: Example, data: LoadedData, former: Mapping[str, str]) -> str | None:
    """The split that an image was in."""
    return former.get(data.digests.get(example.path, ""))


def _different(members: Sequence[Example], digests: Mapping[Path, str]) -> list[list[Example]]:
    """The images of a class, each with its copies."""
    copies: dict[object, list[Example]] = {}
    for example in members:
        copies.setdefault(digests.get(example.path, example.path), []).append(example)
    return list(copies.values())


def _carve_groups(
    data: LoadedData, pool: Sequence[Example], shares: tuple[float, float], seed: int, former: Mapping[str, str]
) -> tuple[list[Example], list[Example], list[Example]]:
    of_group: dict[str, str] = {}
    for name in NAMES[::-1]:  # a group of which an image was trained on is for training
        of_group |= {_group_of(one, data): name for one in pool if _part_of(one, data, former) == name}
    new = [example for example in pool if _group_of(example, data) not in of_group]
    groups = [_group_of(example, data) for example in new]
    drawn = draw_groups([example.label for example in new], groups, shares, seed)
    parts = [[new[at] for at in places] for places in drawn]
    for part, name in zip(parts, NAMES, strict=True):
        part += [example for example in pool if of_group.get(_group_of(example, data)) == name]
    seen = {label for example in parts[0] for label in example.all_labels}
    missing = [name for label, name in enumerate(data.classes) if label not in seen]
    if missing or (shares[0] and not parts[1]):
        if of_group:  # the groups that there were do not allow it any more
            return _carve_groups(data, pool, shares, seed, {})
        what = f"no image of the class {missing[0]!r} is left to train on" if missing else "none are left to choose by"
        raise DataError(
            f"{len(set(groups))} groups of {data.name} cannot be shared out: {what}; add groups, or define the split"
        )
    return parts[0], parts[1], parts[2]


def _group_of(example: Example, data: LoadedData) -> str:
    return data.groups.get(example.path, str(example.path))


def draw_groups(
    labels: Sequence[int], groups: Sequence[str], shares: tuple[float, float], seed: int
) -> tuple[list[int], list[int], list[int]]:
    """Which images are for training, validation and test: whole groups, about the shares of each label."""
    rest = np.arange(len(labels))
    label_of, group_of = np.array(labels), np.array(groups)
    val_share, test_share = shares
    test, rest = _hold_out(rest, label_of, group_of, test_share, seed)
    val, rest = _hold_out(rest, label_of, group_of, val_share / (1 - test_share), seed)
    return rest.tolist(), val.tolist(), test.tolist()


def _hold_out(
    places: NDArray[np.int64], label_of: NDArray[Any], group_of: NDArray[Any], share: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    num_groups = len(set(group_of[places].tolist()))
    if not share or num_groups < 2:
        return places[:0], places
    from sklearn.model_selection import StratifiedGroupKFold

    folds = min(max(2, round(1 / share)), num_groups)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed % 2**32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes with fewer images than there are folds
        drawn = list(splitter.split(places, label_of[places], group_of[places]))
    rest, held = min(drawn, key=lambda fold: abs(len(fold[1]) - share * len(places)))
    return places[held], places[rest]


def _too_few(class_name: str, count: int, shares: tuple[float, float]) -> str:
    return (
        f"the class {class_name!r} has {counted(count, 'image')}: val ({shares[0]:.0%}) and test ({shares[1]:.0%}) "
        "take at least one each and leave none to train on; add images, remove the class, or lower the shares"
    )


def _validate_content(content: dict[str, Any]) -> None:
    if content["schema"] != SCHEMA:
        raise ValueError(f"its schema is {content['schema']}, this version reads {SCHEMA}")
    names = [name for split in NAMES for name in content[split]]
    texts = [content["fingerprint"], content["note"], *content["classes"], *names]
    if not all(isinstance(text, str) for text in texts) or not isinstance(content["seed"], int):
        raise TypeError("a field has the wrong type")
    if len(set(names)) < len(names):
        raise ValueError("an image is in it twice")


def _validate_unchanged(content: dict[str, Any], data: LoadedData, path: Path) -> None:
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


def reduced(
    splits: Splits,
    *,
    train_images: int | None = None,
    train_share: float | None = None,
    shots: int | None = None,
    val_images: int | None = None,
    test_images: int | None = None,
) -> Splits:
    """The same splits with fewer examples; what is None stays unchanged.

    Of the training split a number of images, a share of it (0 to 1), or `shots` images of every class; of the others
    a number. Every class keeps its proportion, and at least one training image. The draw follows from the splits'
    seed, and a smaller draw is part of a larger one. Raises DataError for contradictory or impossible wishes.
    """
    if sum(wish is not None for wish in (train_images, train_share, shots)) > 1:
        raise DataError("train_images, train_share and shots contradict each other: give one of them")
    if train_share is not None:
        if not 0 < train_share <= 1:
            raise DataError(f"train_share is {train_share}; expected a share above 0, up to 1")
        train_images = max(1, round(train_share * len(splits.train)))
    for name, wish in (("train_images", train_images), ("val_images", val_images), ("test_images", test_images)):
        if wish is not None and wish < 1:
            raise DataError(f"{name} is {wish}; expected 1 or more")
    train = _of_each(splits, shots) if shots is not None else _some(splits, splits.train, train_images, at_least=1)
    return replace(
        splits,
        train=train,
        val=_some(splits, splits.val, val_images),
        test=_some(splits, splits.test, test_images),
    )


def _of_each(splits: Splits, shots: int) -> tuple[Example, ...]:
    if shots < 1:
        raise DataError(f"shots is {shots}; expected 1 or more images of every class")
    by_class = _shuffled_by_class(splits, splits.train)
    short = [splits.classes[label] for label, members in enumerate(by_class) if len(members) < shots]
    if short:
        raise DataError(f"the class {short[0]!r} has fewer than {shots} images to train on")
    return tuple(example for members in by_class for example in members[:shots])


def _some(splits: Splits, examples: Sequence[Example], count: int | None, at_least: int = 0) -> tuple[Example, ...]:
    """About `count` of the examples: each class in proportion, rounded, with at least `at_least`."""
    if count is None or count >= len(examples):
        return tuple(examples)
    share = count / len(examples)
    chosen = []
    for members in _shuffled_by_class(splits, examples):
        chosen += members[: min(len(members), max(at_least, round(share * len(members))))]
    return tuple(chosen)


def _shuffled_by_class(splits: Splits, examples: Sequence[Example]) -> list[list[Example]]:
    generator = np.random.default_rng([splits.seed, len(examples)])
    result = []
    for members in by_class(examples, len(splits.classes)):
        members.sort(key=lambda example: example.path.as_posix())
        result.append([members[i] for i in generator.permutation(len(members))])
    return result
