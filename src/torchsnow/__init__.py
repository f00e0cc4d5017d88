"""torchsnow: many small image-classification tasks on one frozen CNN, by channel pooling (SNOW)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchsnow.classifier import Classifier
    from torchsnow.data import eval_transform, load_data, make_splits, read_image
    from torchsnow.delta import Delta, DeltaSpec
    from torchsnow.errors import TorchsnowError
    from torchsnow.hub import Hub
    from torchsnow.methods import make_method
    from torchsnow.model import SnowModel
    from torchsnow.pooling import ChannelPooling
    from torchsnow.source import Framing, Source, load_source
    from torchsnow.task_file import Task, load_task, make_task, save_task
    from torchsnow.train import RunFolder, TrainSettings, fit

_HOMES = {
    "Classifier": "torchsnow.classifier",
    "eval_transform": "torchsnow.data",
    "load_data": "torchsnow.data",
    "make_splits": "torchsnow.data",
    "read_image": "torchsnow.data",
    "Delta": "torchsnow.delta",
    "DeltaSpec": "torchsnow.delta",
    "TorchsnowError": "torchsnow.errors",
    "Hub": "torchsnow.hub",
    "make_method": "torchsnow.methods",
    "SnowModel": "torchsnow.model",
    "ChannelPooling": "torchsnow.pooling",
    "Framing": "torchsnow.source",
    "Source": "torchsnow.source",
    "load_source": "torchsnow.source",
    "Task": "torchsnow.task_file",
    "load_task": "torchsnow.task_file",
    "make_task": "torchsnow.task_file",
    "save_task": "torchsnow.task_file",
    "RunFolder": "torchsnow.train",
    "TrainSettings": "torchsnow.train",
    "fit": "torchsnow.train",
}

__all__ = [
    "ChannelPooling",
    "Classifier",
    "Delta",
    "DeltaSpec",
    "Framing",
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


def __getattr__(name: str) -> Any:
    # Loaded at first use: `torchsnow --help` need not wait for torch.
    if name not in _HOMES:
        raise AttributeError(f"torchsnow has no {name!r}")
    return getattr(import_module(_HOMES[name]), name)
