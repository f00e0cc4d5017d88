"""torchsnow: many small image-classification tasks on one frozen CNN, by channel pooling (SNOW)."""

from torchsnow.data import eval_transform, load_data, make_splits, read_image
from torchsnow.delta import Delta, DeltaSpec
from torchsnow.errors import TorchsnowError
from torchsnow.hub import Hub
from torchsnow.methods import make_method
from torchsnow.model import SnowModel
from torchsnow.pooling import ChannelPooling
from torchsnow.source import Source, load_source
from torchsnow.task_file import Task, load_task, make_task, save_task
from torchsnow.train import RunFolder, TrainSettings, fit

__all__ = [
    "ChannelPooling",
    "Delta",
    "DeltaSpec",
    "Hub",
    "RunFolder",
    "SnowModel",
    "Source",
    "Task",
    "TorchsnowError",
    "TrainSettings",
    "eval_transform",
    "fit",
    "load_data",
    "load_source",
    "load_task",
    "make_method",
    "make_splits",
    "make_task",
    "read_image",
    "save_task",
]
