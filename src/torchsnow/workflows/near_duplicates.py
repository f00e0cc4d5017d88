"""Which images are nearly the same, by the source's features, and which of these lie in several splits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from math import ceil
from pathlib import Path

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from torchsnow.data import Example, ImageSet, Splits
from torchsnow.data.names import counted, first_few
from torchsnow.data.splits import NAMES
from torchsnow.errors import SourceError, TrainingError
from torchsnow.io.files import write_csv
from torchsnow.source import Request, Source
from torchsnow.train import RunFolder

FILE = "near_duplicates.csv"
COLUMNS = ("image", "split", "like", "like_split", "similarity")
_SHARE, _HIGHEST = 0.75, 0.98
_ROWS_AT_A_TIME = 1_024
_SIDE = 64  # pixels: a small picture tells copies from others, in a fraction of the time
_MOST = 20_000  # images of a split
_BATCH_SIZE = 64


def warn_of_duplicates(
    splits: Sequence[Splits], runs: Sequence[RunFolder], source: Source, pool: ImageSet
) -> list[str]:
    """A sentence on images that were held out and are nearly the same as one of an earlier split, if there are any; all
    of them are written into each of the run folders.

    `splits` are those of the tasks of these runs, on the same images, which `pool` shows and keeps for the training.
    The source's pass is over small pictures; one that takes none of these is not asked.
    """
    part_of = {example.path: part for own in splits for part in range(3) for example in getattr(own, NAMES[part])}
    by_part = [[path for path, own in part_of.items() if own == part] for part in range(3)]
    paths = [path for own in by_part for path in own[:: ceil(len(own) / _MOST) or 1]]
    if source.has_fixed_size or len({part_of[path] for path in paths}) < 2:
        return []
    try:
        features = _features(source, pool, paths)
    except SourceError:
        return []
    parts = torch.tensor([part_of[path] for path in paths])
    found = nearest_before(standardised(features), parts)
    if not found:
        return []
    names = [path.relative_to(splits[0].root).as_posix() for path in paths]
    rows = [
        (names[row], NAMES[part_of[paths[row]]], names[other], NAMES[part_of[paths[other]]], f"{similarity:.4f}")
        for row, other, similarity in found
    ]
    for run in runs:
        write_csv(run.path / FILE, COLUMNS, rows, TrainingError)
    pairs = first_few([f"{row[0]} ~ {row[2]}" for row in rows])
    return [
        f"{counted(len(rows), 'image')} of {int((parts > 0).sum())} held out {'are' if len(rows) > 1 else 'is'} nearly "
        f"the same as one of an earlier split ({pairs}): measured accuracy may be too good. All are in "
        f"{runs[0].path / FILE}; keep such images in one split, for example by a column of groups"
    ]


def _features(source: Source, pool: ImageSet, paths: Sequence[Path]) -> Tensor:
    """The source's last features of small pictures, (N, num_features). Raises SourceError where it takes none."""
    device = next(source.parameters()).device
    shown = pool.with_examples([Example(path, 0) for path in paths], ())
    parts = []
    for images, _ in DataLoader(shown, _BATCH_SIZE, generator=torch.Generator()):
        side = min(_SIDE, images.shape[-1])
        small = F.interpolate(images.to(device), (side, side), mode="bilinear", antialias=True)
        last = source(small, Request(last=True)).last
        assert last is not None
        parts.append(last.float().cpu())
    return torch.cat(parts)


def standardised(features: Tensor) -> Tensor:
    """Features (N, F) with mean 0 and standard deviation 1 over the images; those that never change are 0."""
    spread = features.std(0, unbiased=False)
    return (features - features.mean(0)) / spread.masked_fill(spread < 1e-6, torch.inf)


def nearest_before(values: Tensor, parts: Tensor) -> list[tuple[int, int, float]]:
    """For every image that has a near-duplicate in a part before its own, by standardised features (N, F): its row, the
    row of the nearest one there, and their cosine, the largest first. `parts` (N,) ascend from 0."""
    unit = F.normalize(values, dim=1)
    enough = _enough(unit)
    found: list[tuple[int, int, float]] = []
    for rows, similar in _similarities(unit, (parts > 0).nonzero().flatten()):
        most, others = similar.masked_fill(parts >= parts[rows, None], -1).max(1)
        near = most >= enough
        pairs = zip(*(one[near].tolist() for one in (rows, others, most)), strict=True)
        found += [(row, other, similarity) for row, other, similarity in pairs]
    return sorted(found, key=lambda pair: -pair[2])


def duplicate_groups(values: Tensor) -> Tensor:
    """The group of every image, (N,): those that are joined by pairs of near-duplicates, by standardised features."""
    unit = F.normalize(values, dim=1)
    enough, all_rows = _enough(unit), torch.arange(len(unit))
    pairs = [(similar >= enough).nonzero() for _, similar in _similarities(unit, all_rows)]
    firsts = [rows[pair[:, 0]] for pair, rows in zip(pairs, torch.split(all_rows, _ROWS_AT_A_TIME), strict=True)]
    rows, columns = torch.cat(firsts).numpy(), torch.cat(pairs)[:, 1].numpy()
    linked = coo_array((np.ones(len(rows), dtype=bool), (rows, columns)), shape=(len(unit), len(unit)))
    return torch.from_numpy(connected_components(linked, directed=False)[1]).long()


def _enough(unit: Tensor) -> float:
    """The cosine from which a pair counts, for features (N, F) of length 1.

    How similar different images are depends on the data and the source. So a pair counts when its cosine closes three
    quarters of the gap between that of a typical image and its nearest neighbour and 1; 0.98 is always enough, for
    where most images have a double.
    """
    some = torch.arange(0, len(unit), max(1, len(unit) // _ROWS_AT_A_TIME))
    typical = float(torch.cat([similar.max(1).values for _, similar in _similarities(unit, some)]).median())
    return min(_HIGHEST, typical + _SHARE * (1 - typical))


def _similarities(unit: Tensor, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Some of the rows (n,), and their similarities to all images (n, N); -1 to themselves."""
    for some in torch.split(rows, _ROWS_AT_A_TIME):
        similar = unit[some] @ unit.T
        similar[torch.arange(len(some)), some] = -1
        yield some, similar


def of_several(groups: Tensor) -> list[list[int]]:
    """The images of every group of two or more."""
    members: dict[int, list[int]] = defaultdict(list)
    for row, group in enumerate(groups.tolist()):
        members[group].append(row)
    return [rows for rows in members.values() if len(rows) > 1]
