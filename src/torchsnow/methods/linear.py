"""A linear layer over fixed values of the source: nothing but the layer trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from torchsnow.delta.cost import source_cost
from torchsnow.methods.plain import PlainMethod, decayed_groups, load_living
from torchsnow.methods.probe import MAX_IMAGES, fit_probe
from torchsnow.methods.statistics import ClassSums
from torchsnow.source.features import FeatureMaps, Request
from torchsnow.source.grid import ONE_CELL
from torchsnow.source.source import Source
from torchsnow.train.contract import Batches, TaskCost


class Choice(Protocol):
    """Chooses columns of standardised values (n, N) of images with labels (n,): indices (num_read,)."""

    def __call__(self, values: Tensor, labels: Tensor, num_classes: int, /) -> Tensor: ...


class FixedValues(nn.Module):
    """Images (B, 3, H, W) -> standardised values of the source (B, num_read), some of averages and last features.

    They are divided by the root of their number, as in a delta's head.
    """

    channels: Tensor
    index: Tensor
    center: Tensor
    spread: Tensor

    def __init__(self, source: Source, taps: tuple[str, ...], num_read: int | None) -> None:
        super().__init__()
        self.source, self.taps = source, taps
        self.register_buffer("channels", source.channels_of(taps), persistent=False)
        self.num_values = len(self.channels) + source.num_features
        num_read = self.num_values if num_read is None else num_read
        self.scale: float = num_read**-0.5
        self.register_buffer("index", torch.arange(num_read))
        self.register_buffer("center", torch.zeros(num_read))
        self.register_buffer("spread", torch.ones(num_read))

    def all_values(self, images: Tensor) -> Tensor:
        """The averages of the taps and the last features, as they are, (B, N)."""
        features: FeatureMaps = self.source(images, self.request())
        return features.values(self.channels, last=True)

    def request(self) -> Request:
        """What a source pass must return for `read`."""
        return Request(grids={ONE_CELL: self.channels} if len(self.channels) else {}, last=True)

    def read(self, features: FeatureMaps) -> Tensor:
        """The standardised values, from a pass over the images, (B, num_read)."""
        return self._standardised(features.values(self.channels, last=True))

    def chosen(self) -> dict[str, Tensor]:
        """Which values these are, and how they are standardised."""
        return {"index": self.index, "center": self.center, "spread": self.spread}

    def forward(self, images: Tensor) -> Tensor:
        return self._standardised(self.all_values(images))

    def _standardised(self, values: Tensor) -> Tensor:
        return self.scale * (values.index_select(1, self.index) - self.center) / self.spread


class LinearClassifier(nn.Module):
    """Images (B, 3, H, W) -> logits (B, num_classes)."""

    def __init__(self, values: FixedValues, num_classes: int) -> None:
        super().__init__()
        self.values = values
        with torch.random.fork_rng(devices=[]):  # it starts at zero, and making it draws numbers all the same
            self.layer = nn.Linear(len(values.index), num_classes)
        nn.init.zeros_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layer(self.values(images))
        return logits


class LinearMethod(PlainMethod):
    """A linear layer over `num_read` of the source's values, behind `torchsnow.train.Method`.

    The values are the source's last features and the averages of `taps`, standardised by the training images; with
    `choose` some of them are chosen by the training images. With `probe` the layer starts as the logistic regression
    over the values, otherwise at zero; a choice needs it.
    """

    def __init__(
        self,
        name: str,
        source: Source,
        num_classes: int,
        taps: tuple[str, ...] = (),
        num_read: int | None = None,
        choose: Choice | None = None,
        probe: bool = False,
    ) -> None:
        self.name, self.source, self.num_classes = name, source, num_classes
        self.input_config = source.input_config
        self.choose, self.probe = choose, probe
        self.values = FixedValues(source, taps, num_read)
        self.model = LinearClassifier(self.values, num_classes)

    def config(self) -> dict[str, Any]:
        """The source, and how many of its values are read."""
        read = {"taps": list(self.values.taps), "num_read": len(self.values.index), "probe": self.probe}
        return {"name": self.name, "source": self.source.identity(), **read}

    def start(self, images: Batches, device: torch.device) -> None:
        """One source pass: the values' mean and standard deviation, and where wanted which of them are read, and a
        start."""
        sums = ClassSums(self.values.num_values, self.num_classes, device)
        kept: list[tuple[Tensor, Tensor]] = []
        for batch, labels in images:
            values = self.values.all_values(batch.to(device))
            sums.add(values, labels.to(device))
            if self.probe and sum(len(other) for other, _ in kept) < MAX_IMAGES:
                kept.append((values.cpu(), labels))
        mean, std = sums.mean.float(), sums.std.float()
        if kept:
            values, labels = (torch.cat(parts) for parts in zip(*kept, strict=True))
            self._fit((values - mean.cpu()) / std.cpu(), labels)
        self.values.center, self.values.spread = mean[self.values.index], std[self.values.index]

    def _fit(self, values: Tensor, labels: Tensor) -> None:
        if self.choose is not None:
            index = self.choose(values, labels, self.num_classes)
            self.values.index.copy_(index)
            values = values[:, index]
        if self.probe:
            weight, bias = fit_probe(values, labels, self.num_classes)
            with torch.no_grad():
                self.model.layer.weight.copy_(weight / self.values.scale)
                self.model.layer.bias.copy_(bias)

    @property
    def starts_as_probe(self) -> bool:
        """Whether it was told to."""
        return self.probe

    def frozen_part(self, image_size: int) -> tuple[FixedValues, nn.Module]:
        """The values, which never change once chosen, and the layer."""
        return self.values, self.model.layer

    def parameter_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """The layer's weights and biases."""
        return decayed_groups(self.model.layer, lr, weight_decay)

    def trainable_state(self) -> dict[str, Tensor]:
        """The layer, and which values it reads, standardised how."""
        return {name: tensor for name, tensor in self.model.state_dict().items() if ".source." not in name}

    def load_trainable_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `trainable_state` gave. Raises TrainingError when it is of another layer."""
        load_living(self.model, self.trainable_state(), state)

    def multiply_adds(self) -> TaskCost:
        """The source once, and the layer for each task."""
        own = self.model.layer.weight.numel()
        return TaskCost(source_cost(self.source).multiply_adds + own, own)

    def finish(self) -> nn.Module:
        """The source and the layer in eval mode."""
        return self.model.eval()
