"""SNOW on what another one has chosen: trainings that differ in their bodies share one look at the images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torchsnow.delta.spec import DeltaSpec
from torchsnow.errors import TrainingError
from torchsnow.methods.snow import Snow
from torchsnow.methods.stored import SubscribedValues
from torchsnow.pooling import Subscription
from torchsnow.source.grid import grid_size
from torchsnow.train.contract import Batches


class NarrowedSnow(Snow):
    """SNOW with the head that `base` has found, and a body over those of its channels that rank highest: it looks at no
    image, and trains from what is stored for `base`."""

    def __init__(self, base: Snow, spec: DeltaSpec) -> None:
        super().__init__(base.source, spec, base.pools, base.seed)
        self.base = base

    def start(self, images: Batches, device: torch.device) -> None:
        """Take over what `base` started with."""
        head, pool, wider = self._head(), _grid_pool(self), _grid_pool(self.base)
        found = {key: one for key, one in self.base.delta.head.state_dict().items() if key != "fc.local.weight"}
        best = torch.isin(wider.index, self.base.ranking[: pool.num_pooled].to(wider.index.device))
        with torch.no_grad():
            head.load_state_dict({"fc.local.weight": torch.zeros_like(head.fc.local.weight), **found})
            pool.index.copy_(wider.index[best])
            pool.weight.copy_(wider.weight[best])
        head.select_k(int(head.num_read))

    def frozen_part(self, image_size: int) -> tuple[SubscribedValues, nn.Module] | None:
        """What `base` reads, and the delta on its own part of that. Raises TrainingError for one that was begun when
        other channels ranked highest, as sums in another order on an accelerator can have it."""
        of_base, own = self.base.frozen_part(image_size), super().frozen_part(image_size)
        if of_base is None or own is None:
            return None
        rows, columns = grid_size(image_size, image_size, self.spec.grid_reduction)
        of_cell = torch.isin(_grid_pool(self.base).index, _grid_pool(self).index)
        if int(of_cell.sum()) < _grid_pool(self).num_pooled:
            raise TrainingError("an unfinished trial reads channels that are not stored: delete its folder, and resume")
        of_head = of_cell.new_ones(self._head().pool.num_pooled)
        return of_base[0], PartOf(own[1], torch.cat([of_cell.repeat(rows * columns), of_head]).nonzero().flatten())


def _grid_pool(method: Snow) -> Subscription:
    pool = method.delta.grid_pool
    assert pool is not None
    return pool


class PartOf(nn.Module):
    """A delta on some of the values of images: (B, D), of which it takes those at `places` (n,) -> logits."""

    places: Tensor

    def __init__(self, inner: nn.Module, places: Tensor) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("places", places)

    def forward(self, values: Tensor) -> Tensor:
        logits: Tensor = self.inner(values[:, self.places])
        return logits
