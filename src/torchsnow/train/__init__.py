"""Training one task: settings, the contract of a method, the loop, its run folder, and evaluation."""

from torchsnow.train.auto import AUTO
from torchsnow.train.contract import Method
from torchsnow.train.evaluate import ClassMetrics, Metrics, Mistake, evaluate
from torchsnow.train.fit import Stopped, fit, fit_tasks
from torchsnow.train.loop import FitResult, TaskRun
from torchsnow.train.run_folder import RunFolder
from torchsnow.train.settings import TrainSettings, torch_device

__all__ = [
    "AUTO",
    "ClassMetrics",
    "FitResult",
    "Method",
    "Metrics",
    "Mistake",
    "RunFolder",
    "Stopped",
    "TaskRun",
    "TrainSettings",
    "evaluate",
    "fit",
    "fit_tasks",
    "torch_device",
]
