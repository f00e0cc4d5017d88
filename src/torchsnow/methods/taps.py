"""Head2Toe: a linear layer over the averages of all taps, of which a group lasso chooses.

Evci, Dumoulin, Larochelle, Mozer, "Head2Toe: Utilizing Intermediate Representations for Better Transfer Learning",
ICML 2022: a linear layer with a penalty on the norm of each value's weights is fitted first, and the values whose
weights are the largest are kept.
"""

from __future__ import annotations

from torch import Tensor

from torchsnow.methods.lasso import group_lasso
from torchsnow.methods.linear import LinearMethod
from torchsnow.source.source import Source

KEPT_SHARE = 0.25  # of all values


def make_taps(source: Source, num_classes: int) -> LinearMethod:
    """A linear layer over a quarter of the averages of all taps and of the last features.

    It starts as the logistic regression over the values that the group lasso has chosen.
    """
    taps = tuple(source.taps)
    num_values = sum(tap.num_chs for tap in source.taps.values()) + source.num_features
    num_read = max(1, round(KEPT_SHARE * num_values))

    def choose(values: Tensor, labels: Tensor, num_classes: int) -> Tensor:
        importance = group_lasso(values, labels, num_classes).norm(dim=1)
        chosen: Tensor = importance.argsort(descending=True, stable=True)[:num_read]
        return chosen.sort().values

    return LinearMethod("taps", source, num_classes, taps, num_read, choose, probe=True)
