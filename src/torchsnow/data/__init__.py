"""Images and labels: load a data set, split it, transform it, feed it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchsnow.data.catalogue import DATASETS, NamedData
    from torchsnow.data.datasets import ImageSet
    from torchsnow.data.images import image_problem, read_image, shorter_side
    from torchsnow.data.listing import Skipped
    from torchsnow.data.loading import Example, LoadedData, load_data
    from torchsnow.data.splits import Splits, make_splits
    from torchsnow.data.tables import Columns
    from torchsnow.data.task_tables import TaskTable, load_task_table, split_table
    from torchsnow.data.transforms import AUGMENTATIONS, eval_transform, prepare, train_transform
    from torchsnow.data.unlabelled import find_images

_HOMES = {
    "AUGMENTATIONS": "transforms",
    "Columns": "tables",
    "DATASETS": "catalogue",
    "Example": "loading",
    "ImageSet": "datasets",
    "LoadedData": "loading",
    "NamedData": "catalogue",
    "Skipped": "listing",
    "Splits": "splits",
    "TaskTable": "task_tables",
    "eval_transform": "transforms",
    "find_images": "unlabelled",
    "image_problem": "images",
    "load_data": "loading",
    "load_task_table": "task_tables",
    "make_splits": "splits",
    "prepare": "transforms",
    "read_image": "images",
    "shorter_side": "images",
    "split_table": "task_tables",
    "train_transform": "transforms",
}

__all__ = [
    "AUGMENTATIONS",
    "DATASETS",
    "Columns",
    "Example",
    "ImageSet",
    "LoadedData",
    "NamedData",
    "Skipped",
    "Splits",
    "TaskTable",
    "eval_transform",
    "find_images",
    "image_problem",
    "load_data",
    "load_task_table",
    "make_splits",
    "prepare",
    "read_image",
    "shorter_side",
    "split_table",
    "train_transform",
]


def __getattr__(name: str) -> Any:
    # Loaded at first use: a process that only reads pictures need not wait for torch, nor find room for it.
    if name not in _HOMES:
        raise AttributeError(f"torchsnow.data has no {name!r}")
    return getattr(import_module(f"torchsnow.data.{_HOMES[name]}"), name)
