"""The source: a pretrained CNN, frozen for good, that gives taps in one pass."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import Any, Self

import torch
from torch import Tensor, fx, nn

from torchsnow.errors import SourceError
from torchsnow.source.config import InputConfig, Precision
from torchsnow.source.features import FeatureMaps, Request
from torchsnow.source.fused import FusedConvs, can_fuse, fuse
from torchsnow.source.graph import VALUE, trace
from torchsnow.source.grid import ChannelsByTap, Grid, GridWanted, grid_size, join_images
from torchsnow.source.plan import FoldedPass, GridOutput, Output, PlanOutput
from torchsnow.source.taps import Tap, find_taps

Wanted = Tensor | GridWanted
"""Which channels of a tap a pass shall return; with a slice, of which images of the batch."""
_DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
_PIXELS_AT_A_TIME = 4 * 224 * 224  # of one thread: fewer fetch the weights more often, more leave the cache
_TRIED_PIXELS = 96  # wide and high, at most: every operation is in a small picture too
_MAX_PLANS = 32  # ready for requests seen lately; they share their weights
_PLANNING = threading.Lock()  # several threads may run one source


class Source(nn.Module):
    """A frozen CNN: images (B, 3, H, W), normalised as `input_config` says, to FeatureMaps.

    `model` maps images to pooled features (B, num_features): a timm model made with `num_classes=0`. `name` and
    `weights` say where it came from, for `load_source`. Its parameters
    and buffers never change: it stays in eval mode, passes run without gradients, and conversions of the
    floating-point type are ignored (choose `precision` instead).
    `taps` are the tensors that a delta may subscribe to, by name. `prefers_channels_last` says in which layout a CPU
    runs this network faster, `has_fixed_size` whether it takes images of its own size alone, as most transformers do.
    Raises SourceError when there are no taps.
    """

    def __init__(
        self, model: nn.Module, name: str, input_config: InputConfig, weights: str, precision: Precision = "fp32"
    ) -> None:
        super().__init__()
        if precision not in _DTYPES:
            raise SourceError(f"unknown precision {precision!r}; expected one of {', '.join(_DTYPES)}")
        self.model = model.requires_grad_(False)
        self.eval()
        self.name, self.weights = name, weights
        self.input_config = input_config
        self.precision = precision
        self._unregistered = {"traced": trace(model, input_config.input_size)}  # shapes are no part of the state
        self.taps: dict[str, Tap] = find_taps(self.traced, getattr(model, "num_prefix_tokens", 0))
        if not self.taps:
            raise SourceError(f"{name} has no dense convolution, and no linear layer over positions, to subscribe to")
        self.num_features = int(self.last_node.meta[VALUE].shape[1])
        self.prefers_channels_last = _has_depthwise(model)
        self.has_fixed_size = bool((getattr(model, "pretrained_cfg", None) or {}).get("fixed_input_size"))
        self._folded: FoldedPass | None = None
        self._plans: dict[tuple[Output | bool, ...], fx.GraphModule] = {}
        self._fused_convs: FusedConvs = {}
        self._trials: dict[int, FeatureMaps] = {}

    @property
    def traced(self) -> fx.GraphModule:
        """The source's graph over a copy of its modules without numbers."""
        return self._unregistered["traced"]

    @property
    def last_node(self) -> fx.Node:
        """The graph node of the pooled features."""
        (output,) = self.traced.graph.find_nodes(op="output")
        node = output.args[0]
        assert isinstance(node, fx.Node)
        return node

    def forward(self, images: Tensor, request: Request | None = None) -> FeatureMaps:
        """Run one pass, without gradients, and return what is asked for (by default all taps and the last features).

        Raises SourceError for an unknown tap or images of a size that the network cannot take.
        """
        with torch.no_grad():
            return self.differentiable(images, request)

    def differentiable(
        self, images: Tensor, request: Request | None = None, parts: Mapping[int, ChannelsByTap] | None = None
    ) -> FeatureMaps:
        """The same pass, through which gradients flow to `images`: to find what a channel answers to, not to train.

        `parts` are what `by_tap` gives of the channels of each grid, where that is known: with them nothing that the
        pass does depends on numbers, so that it can be traced. Raises what a call raises.
        """
        request = request or Request(taps=tuple(self.taps), last=True)
        grids = self.grid_inputs(request, images.shape[2:], parts)
        outputs = self._outputs(request, grids)
        wanted: list[Wanted] = [*request.channels.values(), *grids]
        values = iter(self._run(outputs, images, wanted))
        return FeatureMaps(
            images,
            self._dims,
            taps={name: next(values) for name in request.taps},
            gathered={name: (idx, next(values)) for name, idx in request.channels.items()},
            grids={reduction: Grid(idx, *next(values)) for reduction, idx in request.grids.items()},
            last=next(values).float() if request.last else None,
        )

    def channels_of(self, taps: Sequence[str]) -> Tensor:
        """The numbers of all channels of some taps, counted through all taps in the order of the pass: (C,) int64."""
        spans = (range(*self._spans[name]) for name in self.taps if name in taps)
        return torch.tensor([number for span in spans for number in span], dtype=torch.int64, device="cpu")

    @cached_property
    def num_chs(self) -> int:
        """How many channels all taps have."""
        return sum(tap.num_chs for tap in self.taps.values())

    def tap_of(self, channel: int) -> tuple[str, int]:
        """The tap of a channel of `channels_of`, and its number there."""
        name = next(name for name, (_, end) in self._spans.items() if channel < end)
        return name, channel - self._spans[name][0]

    @cached_property
    def _spans(self) -> dict[str, tuple[int, int]]:
        """The first channel of each tap, and the first behind it."""
        ends = list(accumulate(tap.num_chs for tap in self.taps.values()))
        return dict(zip(self.taps, zip([0, *ends[:-1]], ends, strict=True), strict=True))

    def grid_inputs(
        self, request: Request, image_size: Sequence[int], parts: Mapping[int, ChannelsByTap] | None = None
    ) -> list[GridWanted]:
        """The inputs of a plan for a request's grids, of images of so many pixels; `parts` as in `differentiable`.

        Raises SourceError for channels that there are not, and for images smaller than a cell.
        """
        height, width = image_size
        inputs: list[GridWanted] = []
        for reduction, index in request.grids.items():
            of_taps = self.by_tap(index) if parts is None else parts[reduction]
            inputs.append((of_taps, grid_size(height, width, reduction)))
        return inputs

    def by_tap(self, index: Tensor) -> ChannelsByTap:
        """Channels of `channels_of`, ascending, as those of each tap: (M,) each, None for all that it has.

        Raises SourceError for channels that there are not.
        """
        outside = index[(index < 0) | (index >= self.num_chs)]
        if len(outside):
            raise SourceError(f"a grid is asked for channel {int(outside[0])}; {self.name} has {self.num_chs}")
        firsts = torch.tensor([first for first, _ in self._spans.values()]).to(index)
        parts = index.tensor_split(torch.searchsorted(index, firsts).tolist())[1:]
        return [
            None if len(own) == end - first else own - first
            for (first, end), own in zip(self._spans.values(), parts, strict=True)
        ]

    @property
    def _dims(self) -> dict[str, int]:
        return {name: tap.dim for name, tap in self.taps.items()}

    def _run(self, outputs: tuple[Output, ...], images: Tensor, wanted: Sequence[Wanted]) -> list[Any]:
        """The outputs; `wanted` are the plan's extra inputs."""
        self.validate_size(images.shape[2:])
        gradients = torch.is_grad_enabled() and images.requires_grad
        plan = self._plan(outputs, fused=self._fuses and not gradients)
        try:
            with torch.autocast(images.device.type, enabled=False):
                return self._run_plan(plan, outputs, images, wanted)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, AssertionError) as error:  # timm asserts the size of a transformer's images
            raise SourceError(f"{self.name} cannot take images of shape {tuple(images.shape)}: {error}") from error

    def _run_plan(
        self, plan: fx.GraphModule, outputs: Sequence[Output], images: Tensor, wanted: Sequence[Wanted]
    ) -> list[Any]:
        images = images.to(_DTYPES[self.precision])
        values = [one.node for one in outputs if isinstance(one, PlanOutput) and one.kind == "whole"]
        whole = any(node != self.last_node.name for node in values)
        if images.device.type != "cpu" or whole or _is_traced():
            results: list[Any] = plan(images, *wanted)
            return results
        # Little is kept, so a few images at a time need less memory, and the layout may be the fastest one. Every
        # thread takes parts of its own, so that threads never wait for each other within the pass.
        images = images.contiguous(memory_format=self._layout)
        pixels, threads = images.shape[2] * images.shape[3], torch.get_num_threads()
        size = max(1, min(_PIXELS_AT_A_TIME // pixels, -(-len(images) // threads)))
        parts = torch.split(images, size)
        several = _in_threads(plan, [(part, *wanted) for part in parts], threads)
        return [
            join_images(values) if isinstance(output, GridOutput) else torch.cat(values)
            for output, values in zip(outputs, zip(*several, strict=True), strict=True)
        ]

    def validate_size(self, image_size: Sequence[int]) -> None:
        """Raise SourceError for another height and width than those that a network of fixed size takes."""
        own = self.input_config.input_size[1:]
        if self.has_fixed_size and tuple(image_size) != own:
            given, expected = (" x ".join(map(str, size)) for size in (image_size, own))
            raise SourceError(
                f"{self.name} takes images of {expected} pixels alone, not {given}: positions are learned for that size"
            )

    @property
    def _layout(self) -> torch.memory_format:
        """In which a CPU runs the pass fastest."""
        return torch.channels_last if self._fuses or self.prefers_channels_last else torch.contiguous_format

    @property
    def _fuses(self) -> bool:
        """Whether convolutions do what follows them, in steps of oneDNN, which no other runtime could take over."""
        on_cpu = next(self.parameters()).device.type == "cpu"
        return on_cpu and not _is_traced() and can_fuse(_DTYPES[self.precision])

    def _tap(self, name: str) -> Tap:
        if name not in self.taps:
            raise SourceError(f"{self.name} has no tap {name!r}; its taps are named like {next(iter(self.taps))!r}")
        return self.taps[name]

    def _outputs(self, request: Request, grids: Sequence[GridWanted]) -> tuple[Output, ...]:
        return (
            *(PlanOutput(self._tap(name).node) for name in request.taps),
            *(PlanOutput(self._tap(name).node, "channels", self._tap(name).dim) for name in request.channels),
            *(
                self._grid_output(of_taps, reduction in request.stds)
                for reduction, (of_taps, _) in zip(request.grids, grids, strict=True)
            ),
            *([PlanOutput(self.last_node.name)] if request.last else []),
        )

    def _grid_output(self, of_taps: ChannelsByTap, with_std: bool) -> GridOutput:
        """A grid over the taps up to the last one of which anything is wanted."""
        read = (at for at, own in enumerate(of_taps) if own is None or len(own))
        taps = list(self.taps.values())[: max(read, default=0) + 1]
        return GridOutput(tuple((tap.node, tap.dim, tap.num_prefix) for tap in taps), with_std)

    def plan(self, request: Request) -> fx.GraphModule:
        """What a pass for this request runs: images, then the indices of `request.channels` and `grid_inputs`, to a
        tuple of taps, channels, grids (each as maps, means and deviations), and last features: what is asked for."""
        return self._plan(self._outputs(request, self.grid_inputs(request, self.input_config.input_size[1:])))

    def _plan(self, outputs: tuple[Output, ...], fused: bool = False) -> fx.GraphModule:
        key = (*outputs, fused)
        with _PLANNING:
            if self._folded is None:
                self._folded = FoldedPass(self.model, self.traced, _DTYPES[self.precision])
            if key not in self._plans:
                if len(self._plans) >= _MAX_PLANS:
                    self._plans.pop(next(iter(self._plans)))
                plan = self._folded.plan(outputs)
                self._plans[key] = fuse(plan, self._fused_convs) if fused else plan
            return self._plans[key]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hex, over the name, the input config, and every weight and buffer of the source."""
        digest = hashlib.sha256(json.dumps([self.name, self.input_config.to_dict()], allow_nan=False).encode())
        for key, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def trial(self, reduction: int) -> FeatureMaps:
        """What a small picture of noise gives, all taps, a grid of all channels and last features: enough to try deltas
        on, without a pass for each."""
        if reduction not in self._trials:
            height, width = self.input_config.input_size[1:]
            try:
                small = max(_TRIED_PIXELS, reduction)
                self._trials[reduction] = self._of_noise(min(height, small), min(width, small), reduction)
            except SourceError:  # some networks take no picture that is smaller than their own size
                self._trials[reduction] = self._of_noise(height, width, reduction)
        return self._trials[reduction]

    def _of_noise(self, height: int, width: int, reduction: int) -> FeatureMaps:
        device = next(self.parameters()).device
        noise = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
        grids = {reduction: torch.arange(self.num_chs, device=device)}
        request = Request(taps=tuple(self.taps), grids=grids, stds=frozenset(grids), last=True)
        features: FeatureMaps = self(noise.to(device), request)
        return features

    def identity(self) -> dict[str, str]:
        """Which source this is, in JSON values."""
        return {"name": self.name, "weights": self.weights, "fingerprint": self.fingerprint}

    def train(self, mode: bool = True) -> Self:
        """Does nothing but keep eval mode: batch norms of a source must never see a task's statistics."""
        return super().train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def keep_dtype(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        self._plans.clear()
        self._fused_convs.clear()
        self._folded = None
        self._trials.clear()
        super()._apply(keep_dtype, recurse)  # type: ignore[no-untyped-call]
        return self

    def __repr__(self) -> str:
        return f"Source({self.name}, {len(self.taps)} taps, {self.precision})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Source:
        """A source is immutable, so copies of what holds it share it."""
        return self


def _is_traced() -> bool:
    """Whether the pass is being written down for another runtime."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling()  # type: ignore[no-untyped-call,attr-defined]


def _in_threads(plan: fx.GraphModule, inputs: Sequence[tuple[Any, ...]], threads: int) -> list[list[Any]]:
    """What a plan makes of each of the inputs: side by side, one thread each, where there are enough of them."""
    if threads == 1 or len(inputs) < threads or torch.is_grad_enabled():
        return [plan(*own) for own in inputs]

    def run(own: tuple[Any, ...]) -> list[Any]:
        with torch.no_grad():  # of this thread
            result: list[Any] = plan(*own)
        return result

    return list(_pool(threads).map(run, inputs))


@lru_cache(1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "source", initializer=torch.set_num_threads, initargs=(1,))


def _has_depthwise(model: nn.Module) -> bool:
    """Whether a network has depthwise convolutions, which CPUs run faster with channels last."""
    return any(isinstance(part, nn.Conv2d) and part.groups == part.in_channels > 1 for part in model.modules())
