"""What a delta may read of the training images: averages of taps and last features, with their statistics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from torchsnow.methods.probe import MAX_IMAGES, probe_strengths
from torchsnow.methods.statistics import ClassSums
from torchsnow.source.features import FeatureMaps, Request

LAST = "last"  # beside tap names: the source's last features


class SeenValues:
    """Values by the name of their tap, or `LAST`: their class sums over all images, and with `keep` the values
    themselves of the first `MAX_IMAGES`."""

    def __init__(self, sizes: Mapping[str, int], num_classes: int, device: torch.device, keep: bool) -> None:
        self.sums = {name: ClassSums(size, num_classes, device) for name, size in sizes.items()}
        self.num_classes, self._keep = num_classes, keep
        self._values: dict[str, list[Tensor]] = {name: [] for name in sizes}
        self._labels: list[Tensor] = []

    @property
    def request(self) -> Request:
        """What a source pass must return for `add`."""
        return Request(averages=tuple(name for name in self.sums if name != LAST), last=LAST in self.sums)

    def add(self, features: FeatureMaps, labels: Tensor) -> None:
        """The values of one batch, with labels (B,)."""
        keep = self._keep and sum(map(len, self._labels)) < MAX_IMAGES
        for name, sums in self.sums.items():
            values = features.average(name) if name != LAST else features.last
            assert values is not None
            sums.add(values, labels)
            if keep:
                self._values[name].append(values.cpu())
        if keep:
            self._labels.append(labels.cpu())

    @property
    def labels(self) -> Tensor:
        """Labels of the kept images, (n,)."""
        return torch.cat(self._labels)

    def standardised(self, names: Iterable[str]) -> Tensor:
        """The kept values of these names, in their order, less their mean and over their spread, (n, N)."""
        parts = []
        for name in names:
            center, spread = self.sums[name].center.float().cpu(), self.sums[name].spread.float().cpu()
            parts.append((torch.cat(self._values[name]) - center) / spread)
        return torch.cat(parts, dim=1)

    def f_statistics(self) -> dict[str, Tensor]:
        """How well each value alone tells the classes apart, by name (see `ClassSums.f_statistic`)."""
        return {name: sums.f_statistic() for name, sums in self.sums.items()}

    def strengths(self) -> dict[str, Tensor]:
        """How much one linear probe over all values relies on each, by name (see `probe_strengths`).

        Where no class has two images, nothing says what a class has in common: how much each value varies, then.
        """
        if not self.sums:
            return {}
        sizes = [len(sums.center) for sums in self.sums.values()]
        if int(self.labels.bincount().max()) < 2:
            spread = torch.cat([sums.spread.float().cpu() for sums in self.sums.values()])
            strengths = spread / spread.square().mean().sqrt()
        else:
            strengths = probe_strengths(self.standardised(self.sums), self.labels, self.num_classes)
        return dict(zip(self.sums, torch.split(strengths, sizes), strict=True))
