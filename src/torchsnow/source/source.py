"""The source: a pretrained CNN, frozen for good, that gives taps in one pass."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any, Literal, Self

import torch
from torch import Tensor, fx, nn

from torchsnow.errors import SourceError
from torchsnow.source.config import InputConfig
from torchsnow.source.features import FeatureMaps, Request
from torchsnow.source.graph import VALUE, trace
from torchsnow.source.plan import FoldedPass, PlanOutput
from torchsnow.source.taps import Tap, find_taps

Precision = Literal["fp32", "bf16"]
Wanted = Tensor | tuple[Tensor, slice]
"""Which channels of a tap a pass shall return; with a slice, of which images of the batch."""
_DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
_PIXELS_AT_A_TIME = 8 * 224 * 224
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
    runs this network faster. Raises SourceError when there are no taps.
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
        self.taps: dict[str, Tap] = find_taps(self.traced)
        if not self.taps:
            raise SourceError(f"{name} has no dense convolution to subscribe to: it is not a convolutional network")
        self.num_features = int(self.last_node.meta[VALUE].shape[1])
        self.prefers_channels_last = _has_depthwise(model)
        self._folded: FoldedPass | None = None
        self._plans: dict[tuple[PlanOutput, ...], fx.GraphModule] = {}

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

    def differentiable(self, images: Tensor, request: Request | None = None) -> FeatureMaps:
        """The same pass, through which gradients flow to `images`: to find what a channel answers to, not to train.

        Raises what a call raises.
        """
        request = request or Request(taps=tuple(self.taps), last=True)
        outputs = self._outputs(request)
        values = iter(self._run(outputs, images, tuple(request.channels.values()), whole=bool(request.taps)))
        return FeatureMaps(
            images,
            self._dims,
            taps={name: next(values) for name in request.taps},
            gathered={name: (idx, next(values)) for name, idx in request.channels.items()},
            averages={name: next(values) for name in request.averages},
            last=next(values).float() if request.last else None,
        )

    def shared(self, images: Tensor, parts: Sequence[tuple[Request, slice]]) -> list[FeatureMaps]:
        """One pass, without gradients, for several deltas: to each what it requests, of its own images of the batch.

        `parts` are requests and the images that they are about, `slice(start, stop)`. Each delta's channels are
        gathered for itself, as in a pass of its own: a delta reads few of a tap's channels, so that is less than
        keeping the tap, or all channels that any of them reads, and gathering from that again. Raises what a call
        raises, and SourceError for a request of whole taps.
        """
        if any(request.taps for request, _ in parts):
            raise SourceError("a shared pass returns no whole taps; ask for channels of them")
        joint = Request.together(Request(averages=request.averages, last=request.last) for request, _ in parts)
        wanted = [(name, (idx, rows)) for request, rows in parts for name, idx in request.channels.items()]
        gathers = tuple(
            PlanOutput(node.node, "part", node.dim) for node in self._outputs(Request(tuple(n for n, _ in wanted)))
        )
        with torch.no_grad():
            values = iter(self._run((*gathers, *self._outputs(joint)), images, [part for _, part in wanted]))
        gathered = [{name: (idx, next(values)) for name, idx in request.channels.items()} for request, _ in parts]
        averages = {name: next(values) for name in joint.averages}
        last = next(values).float() if joint.last else None
        return [
            FeatureMaps(
                images[rows],
                self._dims,
                gathered=own,
                averages={name: averages[name][rows] for name in request.averages},
                last=last[rows] if request.last and last is not None else None,
            )
            for (request, rows), own in zip(parts, gathered, strict=True)
        ]

    @property
    def _dims(self) -> dict[str, int]:
        return {name: tap.dim for name, tap in self.taps.items()}

    def _run(
        self, outputs: tuple[PlanOutput, ...], images: Tensor, wanted: Sequence[Wanted], whole: bool = False
    ) -> list[Tensor]:
        """The outputs; `wanted` are the plan's extra inputs, and `whole` says that whole taps are among the outputs."""
        plan = self._plan(outputs)
        try:
            with torch.autocast(images.device.type, enabled=False):
                return self._run_plan(plan, images, wanted, whole)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise SourceError(f"{self.name} cannot take images of shape {tuple(images.shape)}: {error}") from error

    def _run_plan(self, plan: fx.GraphModule, images: Tensor, wanted: Sequence[Wanted], whole: bool) -> list[Tensor]:
        images = images.to(_DTYPES[self.precision])
        parts: Sequence[Tensor] = [images]
        if images.device.type == "cpu" and not whole:
            # Little is kept, so a few images at a time need less memory; and what is kept is gathered at once, so the
            # layout may be the one in which this network is fastest.
            layout = torch.channels_last if self.prefers_channels_last else torch.contiguous_format
            images = images.contiguous(memory_format=layout)
            parts = torch.split(images, max(1, _PIXELS_AT_A_TIME // (images.shape[2] * images.shape[3])))
        if len(parts) == 1:
            results: list[Tensor] = plan(images, *wanted)
            return results
        starts = accumulate((len(part) for part in parts), initial=0)
        several = [plan(part, *_of_part(wanted, at, len(part))) for part, at in zip(parts, starts, strict=False)]
        return [torch.cat([value for value in values if len(value)]) for values in zip(*several, strict=True)]

    def _outputs(self, request: Request) -> tuple[PlanOutput, ...]:
        tap = self.taps
        for name in (*request.taps, *request.channels, *request.averages):
            if name not in tap:
                raise SourceError(f"{self.name} has no tap {name!r}; its taps are named like {next(iter(tap))!r}")
        return (
            *(PlanOutput(tap[name].node) for name in request.taps),
            *(PlanOutput(tap[name].node, "channels", tap[name].dim) for name in request.channels),
            *(PlanOutput(tap[name].node, "average", tap[name].dim) for name in request.averages),
            *([PlanOutput(self.last_node.name)] if request.last else []),
        )

    def plan(self, request: Request) -> fx.GraphModule:
        """What a pass for this request runs: images, then the indices of `request.channels`, to a tuple of taps,
        channels, averages and last features, those that are asked for."""
        return self._plan(self._outputs(request))

    def _plan(self, outputs: tuple[PlanOutput, ...]) -> fx.GraphModule:
        with _PLANNING:
            if self._folded is None:
                self._folded = FoldedPass(self.model, self.traced, _DTYPES[self.precision])
            if outputs not in self._plans:
                if len(self._plans) >= _MAX_PLANS:
                    self._plans.pop(next(iter(self._plans)))
                self._plans[outputs] = self._folded.plan(outputs)
            return self._plans[outputs]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hex, over the name, the input config, and every weight and buffer of the source."""
        digest = hashlib.sha256(json.dumps([self.name, self.input_config.to_dict()], allow_nan=False).encode())
        for key, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @cached_property
    def trial(self) -> FeatureMaps:
        """What a small picture of noise gives, all taps and last features: enough to try deltas on, without a pass."""
        sides = self.input_config.input_size[1:]
        try:
            return self._of_noise(*(min(side, _TRIED_PIXELS) for side in sides))
        except SourceError:  # some networks take no picture that is smaller than their own size
            return self._of_noise(*sides)

    def _of_noise(self, height: int, width: int) -> FeatureMaps:
        noise = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
        features: FeatureMaps = self(noise.to(next(self.parameters()).device))
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
        self._folded = None
        self.__dict__.pop("trial", None)
        super()._apply(keep_dtype, recurse)  # type: ignore[no-untyped-call]
        return self

    def extra_repr(self) -> str:
        return f"{self.name}, {len(self.taps)} taps, {self.precision}"

    def __deepcopy__(self, memo: dict[int, Any]) -> Source:
        """A source is immutable, so copies of what holds it share it."""
        return self


def _of_part(wanted: Sequence[Wanted], start: int, size: int) -> list[Wanted]:
    """The extra inputs of a plan for `size` images of a batch, from image `start` on."""

    def within(rows: slice) -> slice:
        low, high = (min(max(at - start, 0), size) for at in (rows.start, rows.stop))
        return slice(low, high)

    return [(one[0], within(one[1])) if isinstance(one, tuple) else one for one in wanted]


def _has_depthwise(model: nn.Module) -> bool:
    """Whether a network has depthwise convolutions, which CPUs run faster with channels last."""
    return any(isinstance(part, nn.Conv2d) and part.groups == part.in_channels > 1 for part in model.modules())
