"""Training one task: settings, the contract of a method, the loop, its run folder, and evaluation."""

from torchsnow.train.auto import AUTO
from torchsnow.train.contract import Method
from torchsnow.train.evaluate import ClassMetrics, Metrics, Mistake, evaluate
from torchsnow.train.fit import fit
from torchsnow.train.loop import FitResult
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
    "TrainSettings",
    "evaluate",
    "fit",
    "torch_device",
]
