"""Two ways to learn tasks one after another: SNOW into a hub, and one network that goes on being fine-tuned."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from torchsnow.data import ImageSet
from torchsnow.delta.cost import delta_cost
from torchsnow.experiments.lifelong_settings import LifelongSettings
from torchsnow.experiments.lifelong_tasks import SequenceTask
from torchsnow.hub import Hub, is_hub
from torchsnow.methods import make_method
from torchsnow.methods.network import Network
from torchsnow.model import SnowModel
from torchsnow.source import Request, Source
from torchsnow.task_file import make_task
from torchsnow.train import RunFolder, fit
from torchsnow.train.checkpoint import Checkpoint

State = dict[str, Tensor]


class Learner(Protocol):
    """Learns tasks one after another and can be asked about any of them, in eval mode and on the settings' device."""

    @property
    def name(self) -> str: ...

    def learn(self, task: SequenceTask, run: RunFolder, pool: ImageSet) -> None:
        """Train on a task; `pool` keeps decoded images."""

    def restore(self, task: SequenceTask, run: RunFolder) -> None:
        """Take back a task that was learned into `run` before."""

    def keep(self, run: RunFolder) -> None:
        """Delete from a finished run what `restore` does not need."""

    def model(self, task: SequenceTask) -> nn.Module:
        """Images (B, 3, H, W) -> logits (B, num_classes) of a task that was learned, as things are now."""

    def features(self) -> nn.Module:
        """Images (B, 3, H, W) -> what the next task starts from (B, num_features)."""

    def whole_pass(self, images: Tensor) -> object:
        """Do all that it takes to answer every task so far for a batch of images (B, 3, H, W)."""

    def added(self, task: SequenceTask) -> tuple[int, int]:
        """What a learned task added: bytes to be kept, and multiply-adds of one image at the source's own size."""


class SnowLearner:
    """A delta per task in a hub. What is asked about is read from the hub's files."""

    name = "snow"

    def __init__(self, source: Source, settings: LifelongSettings, hub_path: Path) -> None:
        self.settings, self.training = settings, settings.training(self.name)
        self.device = self.training.torch_device()
        self.source = source.to(self.device)
        self.hub = Hub.open(hub_path, source) if is_hub(hub_path) else Hub.create(hub_path, source)
        self.learned: list[str] = []

    def learn(self, task: SequenceTask, run: RunFolder, pool: ImageSet) -> None:
        """Train a delta and add it to the hub, in place of one that an interrupted evaluation left."""
        splits = task.splits
        method = make_method(self.name, self.source, len(splits.classes), seed=self.settings.seed)
        result = fit(method, splits, self.training, run, quiet=True, pool=pool)
        assert isinstance(result.model, SnowModel)
        training = {**self.training.to_dict(), "method": self.name, "data": task.data}
        metrics = {"val": result.metrics.to_dict()}
        delta = result.model.delta
        framing = self.training.framing
        self.hub.add(make_task(self.source, delta, task.name, splits.classes, framing, training, metrics), replace=True)
        self.restore(task, run)

    def restore(self, task: SequenceTask, run: RunFolder) -> None:
        """The hub has it."""
        self.learned.append(task.name)

    def keep(self, run: RunFolder) -> None:
        """The weights are in the hub."""
        run.last.unlink(missing_ok=True)
        run.best.unlink(missing_ok=True)

    def model(self, task: SequenceTask) -> SnowModel:
        """From the task's file."""
        hub = Hub.open(self.hub.folder.path, self.source)  # anew: nothing that is still in memory
        return SnowModel(self.source, hub.task(task.name).delta).to(self.device).eval()

    def features(self) -> nn.Module:
        """The source: deltas do not read each other."""
        return self.source.model

    def whole_pass(self, images: Tensor) -> object:
        """One source pass, and every delta."""
        for name in self.learned:
            self.hub.task(name).delta.to(self.device)
        return self.hub.predict(images, self.learned)

    def added(self, task: SequenceTask) -> tuple[int, int]:
        """A task file, and a delta."""
        info = self.hub.infos()[task.name]
        cost = delta_cost(self.source, self.hub.task(task.name).spec)  # of what shipped, which may be a head alone
        return info.size_bytes, cost.multiply_adds


class SequentialLearner:
    """One network whose body goes on being fine-tuned, with a linear head per task that is left as it was learned."""

    name = "sequential"

    def __init__(self, source: Source, settings: LifelongSettings) -> None:
        self.source, self.settings, self.training = source, settings, settings.training("full")
        self.device = self.training.torch_device()
        self.body: State = {}
        self.heads: dict[str, State] = {}

    def learn(self, task: SequenceTask, run: RunFolder, pool: ImageSet) -> None:
        """Fine-tune the body as the last task left it, with a new head."""
        method = make_method("full", self.source, len(task.splits.classes), seed=self.settings.seed)
        method.load_trainable_state({**method.trainable_state(), **self.body})
        fit(method, task.splits, self.training, run, quiet=True, pool=pool)
        self._take(task, method.trainable_state())

    def restore(self, task: SequenceTask, run: RunFolder) -> None:
        """From the run's best weights."""
        self._take(task, Checkpoint.load(run.best).model)

    def keep(self, run: RunFolder) -> None:
        """The best weights: the body, and the head."""
        run.last.unlink(missing_ok=True)

    def _take(self, task: SequenceTask, state: State) -> None:
        own = {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
        self.body = {name: tensor for name, tensor in own.items() if name.startswith("body.")}
        self.heads[task.name] = {name: tensor for name, tensor in own.items() if name.startswith("fc.")}

    def model(self, task: SequenceTask) -> Network:
        """The present body with the head of the task."""
        return self._network(self.heads[task.name])

    def features(self) -> nn.Module:
        """The present body."""
        return self._network({}).body

    def _network(self, head: State) -> Network:
        num_classes = len(head["fc.bias"]) if head else 2
        method = make_method("full", self.source, num_classes)
        method.load_trainable_state({**method.trainable_state(), **self.body, **head})
        network = method.finish().to(self.device)
        assert isinstance(network, Network)
        return network

    def whole_pass(self, images: Tensor) -> object:
        """One pass of the network, and every head. The source runs in the network's place: it takes as long."""
        with torch.no_grad():
            features = self.source(images, Request(last=True)).last
            assert features is not None
            return [
                nn.functional.linear(features, head["fc.weight"].to(features), head["fc.bias"].to(features))
                for head in self.heads.values()
            ]

    def added(self, task: SequenceTask) -> tuple[int, int]:
        """A head."""
        head = self.heads[task.name]
        return sum(tensor.nbytes for tensor in head.values()), head["fc.weight"].numel()
