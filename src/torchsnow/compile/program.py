"""A source and deltas as one module without anything that only training needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from torchsnow.compile.engine import Engine, Work
from torchsnow.delta import Delta
from torchsnow.delta.fold import fold
from torchsnow.source import Request, Source


class Program(nn.Module):
    """One source pass and settled deltas: images (B, 3, H, W) -> logits (B, num_classes) of every delta.

    Pooling weights and batch norms are folded into the layers that they act on, and the source stops after the last
    tap that a delta reads. The deltas given are left as they are. Raises DeltaError for one that is not settled.
    """

    def __init__(self, source: Source, deltas: Sequence[Delta]) -> None:
        super().__init__()
        self.source = source
        self.deltas = nn.ModuleList(fold(delta) for delta in deltas)
        self.request = Request.together(delta.request(delta.choose()) for delta in self._folded())
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        features = self.source(images, self.request)
        return tuple(delta(features) for delta in self._folded())

    def on(self, engine: Engine) -> Callable[[Tensor], list[Tensor]]:
        """The same by an engine, for every image through every delta."""
        prepared = [engine.prepare(delta) for delta in self._folded()]
        return lambda images: engine.run(images, [Work(delta, tuple(range(len(images)))) for delta in prepared])

    def _folded(self) -> list[Delta]:
        return [delta for delta in self.deltas if isinstance(delta, Delta)]
