"""Which images are nearly the same, by the source's features."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.nn import functional as F

_SHARE, _HIGHEST = 0.75, 0.98
_ROWS_AT_A_TIME = 1_024


def duplicate_groups(values: Tensor) -> Tensor:
    """The group of every image, (N,): those that are joined by pairs of near-duplicates, by standardised features.

    How similar different images are depends on the data and the source. So a pair counts when its cosine closes three
    quarters of the gap between that of a typical image and its nearest neighbour and 1; 0.98 is always enough, for
    where most images have a double.
    """
    unit = F.normalize(values, dim=1)
    nearest = torch.cat([similar.max(1).values for _, similar in _similarities(unit)])
    typical = float(nearest.median())
    enough = min(_HIGHEST, typical + _SHARE * (1 - typical))
    pairs = [torch.nonzero(similar >= enough) + torch.tensor([first, 0]) for first, similar in _similarities(unit)]
    rows, columns = torch.cat(pairs).T.numpy()
    linked = coo_array((np.ones(len(rows), dtype=bool), (rows, columns)), shape=(len(unit), len(unit)))
    return torch.from_numpy(connected_components(linked, directed=False)[1]).long()


def _similarities(unit: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The first of some images, and their similarities to all others (n, N); -1 to themselves."""
    for first in range(0, len(unit), _ROWS_AT_A_TIME):
        part = unit[first : first + _ROWS_AT_A_TIME]
        rows = torch.arange(len(part))
        similar = part @ unit.T
        similar[rows, first + rows] = -1
        yield first, similar


def of_several(groups: Tensor) -> list[list[int]]:
    """The images of every group of two or more."""
    members: dict[int, list[int]] = defaultdict(list)
    for row, group in enumerate(groups.tolist()):
        members[group].append(row)
    return [rows for rows in members.values() if len(rows) > 1]
