"""Images and labels: load a data set, split it, transform it, feed it."""

from torchsnow.data.catalogue import DATASETS, NamedData
from torchsnow.data.datasets import ImageSet
from torchsnow.data.images import image_problem, read_image, shorter_side
from torchsnow.data.listing import Skipped
from torchsnow.data.loading import Example, LoadedData, load_data
from torchsnow.data.splits import Splits, make_splits
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
    "eval_transform",
    "image_problem",
    "load_data",
    "make_splits",
    "prepare",
    "read_image",
    "shorter_side",
    "train_transform",
]
