"""Image classification data sets of the Hugging Face Hub."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torchsnow.data.listing import Listing
from torchsnow.data.names import ALL, splits_named
from torchsnow.data.prepared import Picture, data_folder, prepared_once
from torchsnow.errors import DataError

REPOSITORY = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)


def list_hf(repository: str) -> Listing:
    """The data set `org/name`, written once as image files into a folder of its own in the data folder.

    The splits train, validation and test are used, others are left out; a data set with no other than train is one
    without splits. Rows without an image or a class are left out too. Raises DataError.
    """
    if not REPOSITORY.fullmatch(repository):
        raise DataError(f"{repository!r} cannot be a data set's name: expected hf:ORGANISATION/NAME")
    name = repository.replace("/", "--")
    folder = data_folder() / f"hf--{name}"
    return prepared_once(folder, name, lambda: _pictures(repository, _load(repository, folder)))


def _load(repository: str, folder: Path) -> Any:
    """{split: rows}, from the Hub or from the cache of the library."""
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"hf:{repository} needs the library datasets: pip install 'torchsnow[hf]'") from error
    for logger in ("huggingface_hub", "datasets"):
        logging.getLogger(logger).setLevel(logging.ERROR)  # their retries are many lines; ours is one sentence
    try:
        return datasets.load_dataset(repository)
    # Its errors come from the Hub, the network, the disk and the parsers of many formats.
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"cannot load hf:{repository} ({reason}): check its name and the connection, or put folders train/CLASS "
            f"and test/CLASS of images into {folder}"
        ) from error


def _pictures(repository: str, splits: Mapping[str, Any]) -> Iterator[Picture]:
    import datasets

    known = {split: splits[name] for name, split in splits_named(sorted(splits)).items()}
    if set(known) == {"train"}:
        known = {ALL: known["train"]}
    for split, rows in known.items():
        image = _column(repository, rows.features, datasets.Image, "image")
        label = _column(repository, rows.features, datasets.ClassLabel, "label")
        names = rows.features[label].names
        # Undecoded, so that the files hold the original bytes.
        for row in rows.select_columns([image, label]).cast_column(image, datasets.Image(decode=False)):
            # ClassLabel writes an unknown class, as in a test split without answers, as -1.
            if row[image] is not None and row[label] is not None and row[label] >= 0:
                content = row[image]["bytes"] or Path(row[image]["path"]).read_bytes()
                yield Picture.of_file(split, names[row[label]], content)


def _column(repository: str, features: Mapping[str, Any], kind: type, usual_name: str) -> str:
    """The column of this kind; of several, the one with the usual name."""
    names = [name for name, feature in features.items() if isinstance(feature, kind)]
    if len(names) == 1:
        return names[0]
    if usual_name in names:
        return usual_name
    columns = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in features.items())
    raise DataError(
        f"hf:{repository} has {len(names) or 'no'} columns of the type {kind.__name__}; expected one, or one with the "
        f"name {usual_name!r}, among its columns {columns}"
    )
