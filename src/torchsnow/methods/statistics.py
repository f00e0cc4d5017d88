"""Streaming statistics of many values over labelled images: mean, standard deviation, and how well each tells classes
apart."""

from __future__ import annotations

import torch
from torch import Tensor

from torchsnow.train.targets import members

FLOOR_SHARE = 0.01


class ClassSums:
    """Sums of N values per class, in float64: what is kept does not grow with the number of images."""

    def __init__(self, num_values: int, num_classes: int, device: torch.device) -> None:
        # one more than there are classes: of images without any label
        self._counts = torch.zeros(num_classes + 1, dtype=torch.float64, device=device)
        self._sums = torch.zeros(num_classes + 1, num_values, dtype=torch.float64, device=device)
        self._squares = torch.zeros(num_values, dtype=torch.float64, device=device)

    def add(self, values: Tensor, labels: Tensor) -> None:
        """Values (B, N) of images with targets, see `train.targets`: one of several labels counts in part for each."""
        values = values.double()
        belongs = members(labels, len(self._counts) - 1).double()  # sums by matmul are deterministic on CUDA too
        belongs = torch.cat([belongs, belongs.sum(1, keepdim=True) == 0], 1)
        belongs = belongs / belongs.sum(1, keepdim=True)
        self._counts += belongs.sum(0)
        self._sums += belongs.T @ values
        self._squares += values.square().sum(0)

    @property
    def mean(self) -> Tensor:
        """The mean over all images, (N,)."""
        return self._sums.sum(0) / self._counts.sum()

    @property
    def std(self) -> Tensor:
        """The standard deviation over all images, (N,).

        A value that is all but constant gets a hundredth of the average standard deviation: divided by its own, it
        would blow up on the first image that differs.
        """
        std = self._raw_std
        return std.clamp_min(max(FLOOR_SHARE * float(std.mean()), 1e-6))

    @property
    def _raw_std(self) -> Tensor:
        return (self._total / self._counts.sum()).sqrt()

    @property
    def _total(self) -> Tensor:
        """Sum of squared deviations from the mean."""
        return (self._squares - self._counts.sum() * self.mean.square()).clamp_min(0)

    def f_statistic(self) -> Tensor:
        """One-way analysis of variance, (N,): variance between classes over variance within them.

        0 for values that are all but constant, infinite for those that are so within every class.
        """
        num_images, num_classes = float(self._counts.sum()), int((self._counts > 0).sum())
        means = self._sums / self._counts.clamp_min(1)[:, None]
        between = (self._counts[:, None] * (means - self.mean).square()).sum(0)
        within = (self._total - between).clamp_min(0)
        ratio = (between / max(1, num_classes - 1)) / (within / max(1, num_images - num_classes))
        return torch.where(self._raw_std < self.std, 0.0, ratio).nan_to_num(0.0, posinf=torch.inf)
