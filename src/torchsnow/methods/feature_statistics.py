"""What a delta may read of the training images: averages and deviations of channels, and last features, with their
statistics."""

from __future__ import annotations

import torch
from torch import Tensor

from torchsnow.methods.probe import MAX_IMAGES, probe_importance
from torchsnow.methods.statistics import FLOOR_SHARE, ClassSums
from torchsnow.source.features import FeatureMaps, Request


class FeatureStatistics:
    """Statistics of N values over all training images: the averages of `channels` (C,), ascending (see
    `Source.channels_of`), with `with_std` then their deviations over the cells of a grid of `reduction`, then
    `num_last` last features.

    `cell_std` says how the channels vary over images and cells of a grid of `reduction`. With `keep` the values
    themselves of the first `MAX_IMAGES` are there too.
    """

    def __init__(
        self,
        channels: Tensor,
        num_last: int,
        num_classes: int,
        reduction: int,
        with_std: bool,
        device: torch.device,
        keep: bool,
    ) -> None:
        self.channels, self.num_last, self.num_classes = channels.to(device), num_last, num_classes
        self._reduction, self._std_reduction, self._keep = reduction, reduction if with_std else None, keep
        self._first_last = (1 + with_std) * len(channels)
        self.sums = ClassSums(self._first_last + num_last, num_classes, device)
        self._squares = torch.zeros(len(channels), dtype=torch.float64, device=device)
        self._num_images = 0
        self._values: list[Tensor] = []
        self._labels: list[Tensor] = []

    @property
    def request(self) -> Request:
        """What a source pass must return for `add`."""
        grids = {self._reduction: self.channels} if len(self.channels) else {}
        stds = frozenset(grids) if self._std_reduction is not None else frozenset[int]()
        return Request(grids=grids, stds=stds, last=self.num_last > 0)

    def add(self, features: FeatureMaps, labels: Tensor) -> None:
        """The values of one batch, with labels (B,)."""
        values = features.values(self.channels, self.num_last > 0, self._std_reduction)
        self.sums.add(values, labels)
        if len(self.channels):
            self._squares += features.grid(self._reduction, self.channels).square().mean((2, 3)).double().sum(0)
        if self._keep and self._num_images < MAX_IMAGES:
            self._values.append(values.cpu())
            self._labels.append(labels.cpu())
        self._num_images += len(labels)

    def places(self, channels: Tensor, num_last: int = 0, with_std: bool = False) -> Tensor:
        """Where the averages of some channels (n,), then their deviations, then the last features, stand among the
        values."""
        first = torch.searchsorted(self.channels, channels.to(self.channels))
        stds = [first + len(self.channels)] if with_std else []
        return torch.cat([first, *stds, self._first_last + torch.arange(num_last, device=first.device)])

    @property
    def labels(self) -> Tensor:
        """Labels of the kept images, (n,)."""
        return torch.cat(self._labels)

    @property
    def cell_std(self) -> Tensor:
        """The standard deviation of every channel over images and cells, (C,); see `ClassSums.std` for the floor."""
        count = len(self.channels)
        variance = self._squares / max(1, self._num_images) - self.sums.mean[:count].square()
        std = variance.clamp_min(0).sqrt()
        return std.clamp_min(max(FLOOR_SHARE * float(std.mean()), 1e-6)).float()

    def standardised(self, places: Tensor | None = None) -> Tensor:
        """The kept values, or those at `places` (n,), less their mean and over their deviation: (images, n)."""
        values = torch.cat(self._values)
        mean, std = self.sums.mean.float().cpu(), self.sums.std.float().cpu()
        if places is not None:
            values, mean, std = values[:, places.cpu()], mean[places.cpu()], std[places.cpu()]
        return (values - mean) / std

    def importance(self) -> Tensor:
        """How much one linear probe over all values relies on each, (N,) (see `probe_importance`).

        Where no class has two images, nothing says what a class has in common: how much each value varies, then.
        """
        if int(self.labels.bincount().max()) < 2:
            std = self.sums.std.float().cpu()
            return std / std.square().mean().sqrt()
        return probe_importance(self.standardised(), self.labels, self.num_classes)
