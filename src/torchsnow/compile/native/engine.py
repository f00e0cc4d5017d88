"""The engine of the backend "native": a fused source pass, and the kernel for deltas, on parts of the batch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, fx

from torchsnow.compile.engine import Work
from torchsnow.compile.native.build import kernel
from torchsnow.compile.native.fused import fuse
from torchsnow.compile.native.lower import Lowered, lower
from torchsnow.compile.native.part import Ask, Memory, Part, TapLayout, channels_last
from torchsnow.delta import Delta
from torchsnow.delta.fold import fold
from torchsnow.errors import CompileError, SourceError
from torchsnow.source import Source
from torchsnow.source.plan import FoldedPass, PlanOutput

PART_SIZE = (
    4  # images that a thread takes at once: fewer have weights come from memory more often, more leave the cache
)

_MAX_PLANS = 4  # each has the source's weights laid out anew; tasks of one preset need one
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class NativeEngine:
    """The CPU's fastest engine, for sources and deltas of convolutions, norms and common activations.

    Every thread takes a part of the batch through the source pass and all deltas, so that threads never wait for each
    other in between; with fewer images than threads, all threads share every operation instead. A new task is ready
    at once: nothing is compiled for it. The source runs in its own precision, deltas in fp32.

    Raises CompileError for a source on another device, and without a C++ compiler.
    """

    name = "native"

    def __init__(self, source: Source, num_threads: int | None = None) -> None:
        if next(source.parameters()).device.type != "cpu":
            raise CompileError("the backend 'native' takes sources on the CPU; use the backend 'eager'")
        if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
            raise CompileError(
                "the backend 'native' needs a PyTorch that was built with oneDNN; use the backend 'eager'"
            )
        self.source = source
        self._dtype = _DTYPES[source.precision]
        self._kernel, self._memory, self._layout = kernel(), Memory(), TapLayout(source)
        self._folded = FoldedPass(source.model, source.traced, self._dtype)
        self._plans: dict[tuple[PlanOutput, ...], fx.GraphModule] = {}
        self._lock = threading.Lock()
        self._num_threads = num_threads or torch.get_num_threads()
        self._pool = ThreadPoolExecutor(self._num_threads, initializer=lambda: torch.set_num_threads(1))

    def prepare(self, delta: Delta) -> Lowered:
        """See `Engine.prepare`."""
        return lower(fold(delta), self.source)

    def run(self, images: Tensor, work: Sequence[Work]) -> list[Tensor]:
        """See `Engine.run`."""
        results = [torch.empty(len(piece.rows), piece.prepared.head.num_classes) for piece in work]
        asks: list[list[tuple[Lowered, Tensor]]] = [[] for _ in images]
        for piece, logits in zip(work, results, strict=True):
            for place, row in enumerate(piece.rows):
                asks[row].append((piece.prepared, logits[place]))
        deltas: list[Lowered] = [piece.prepared for piece in work if piece.rows]
        taps = frozenset[int]().union(*(delta.taps for delta in deltas))
        plan = self._plan(taps, any(delta.reads_last for delta in deltas))

        def part(first: int, last: int, num_threads: int) -> None:
            own = [Ask(delta, i - first, out) for i in range(first, last) for delta, out in asks[i]]
            self._part(plan, images[first:last], own, num_threads)

        if deltas:
            self._each_part(len(images), part)
        return results

    def last(self, images: Tensor) -> Tensor:
        """The source's last features (B, num_features) alone, for linear heads."""
        plan = self._plan(frozenset(), last=True)
        results = torch.empty(len(images), self.source.num_features)

        def part(first: int, last: int, num_threads: int) -> None:
            with torch.no_grad():
                (features,) = plan(channels_last(images[first:last].to(self._dtype)), None)
            results[first:last] = features

        self._each_part(len(images), part)
        return results

    def _each_part(self, num_images: int, part: Callable[[int, int, int], None]) -> None:
        """Call `part` with the first and last image of every part, and the number of threads that work on it."""
        if num_images < self._num_threads:
            part(0, num_images, self._num_threads)
            return
        size = min(PART_SIZE, -(-num_images // self._num_threads))
        firsts = range(0, num_images, size)
        list(self._pool.map(lambda first: part(first, min(first + size, num_images), 1), firsts))

    def _plan(self, taps: frozenset[int], last: bool) -> fx.GraphModule:
        """From images and a Part to the last features, if wanted; the part sees the taps as they are made."""
        names = list(self.source.taps.values())
        outputs = tuple(PlanOutput(names[number].node) for number in sorted(taps))
        if last:
            outputs += (PlanOutput(self.source.last_node.name),)
        with self._lock:
            if outputs not in self._plans:
                if len(self._plans) >= _MAX_PLANS:
                    self._plans.pop(next(iter(self._plans)))
                self._plans[outputs] = _hand_over(fuse(self._folded.plan(outputs)), sorted(taps))
            return self._plans[outputs]

    def _part(self, plan: fx.GraphModule, images: Tensor, asks: Sequence[Ask], num_threads: int) -> None:
        if not asks:
            return
        images = channels_last(images)
        part = Part(self._kernel, self._memory, self._layout, images, asks, num_threads)
        with torch.no_grad():
            try:
                last = plan(images.to(self._dtype), part)
            except RuntimeError as error:
                raise SourceError(
                    f"{self.source.name} cannot take images of shape {tuple(images.shape)}: {error}"
                ) from error
        part.finish(last[0] if last else None)


def _hand_over(plan: fx.GraphModule, numbers: Sequence[int]) -> fx.GraphModule:
    """Let a plan give its first outputs, the taps of these numbers, to a Part as they are made."""
    (output,) = plan.graph.find_nodes(op="output")
    (images,) = plan.graph.find_nodes(op="placeholder")
    with plan.graph.inserting_after(images):
        part = plan.graph.placeholder("part")
    values = output.args[0]
    for number, value in zip(numbers, values[: len(numbers)], strict=True):
        with plan.graph.inserting_after(value if value is not images else part):
            plan.graph.call_function(_see, (part, number, value))
    output.args = (tuple(values[len(numbers) :]),)
    plan.recompile()
    return plan


def _see(part: Part, number: int, x: Tensor) -> None:
    part.see(number, x)
