"""Images and labels: load a data set, split it, transform it, feed it."""

from torchsnow.data.catalogue import DATASETS, NamedData
from torchsnow.data.datasets import ImageSet
from torchsnow.data.images import image_problem, read_image, shorter_side
from torchsnow.data.listing import Skipped
from torchsnow.data.loading import Example, LoadedData, load_data
from torchsnow.data.splits import Splits, make_splits
from torchsnow.data.task_tables import TaskTable, load_task_table, split_table
from torchsnow.data.transforms import AUGMENTATIONS, eval_transform, prepare, train_transform

__all__ = [
    "AUGMENTATIONS",
    "DATASETS",
    "Example",
    "ImageSet",
    "LoadedData",
    "NamedData",
    "Skipped",
    "Splits",
    "TaskTable",
    "eval_transform",
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
