"""Where a logit comes from: the source's channels against the delta's own, tap by tap.

A subscribed layer computes `local(x) + conv(tap[:, idx], columns * w)`, so what it returns is a sum over channels of x
and of the tap. Each channel is given its value times the gradient of the logit at this place, summed over positions:
the first-order share of the channel in the logit. A grid body reads nothing but the source's channels, whose shares
are summed over the cells of the grid. The head is linear, and its shares are exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from torchsnow.delta import Delta
from torchsnow.delta.grid import GridBody
from torchsnow.delta.head import Head, by_channel, split_by_tap
from torchsnow.delta.layers import Columns, Entry, SubscribedConv2d
from torchsnow.explain.subscriptions import grid_by_tap
from torchsnow.pooling import Picked
from torchsnow.source import Source
from torchsnow.task_file.labels import Thresholds, probabilities


@dataclass(frozen=True, eq=False)
class TapShare:
    """Shares in a logit, of what the layers behind one tap read: `local` (own channels,; none for a grid body) and
    `source` (M,), which are the channels `index` (M,) of the tap, ascending."""

    tap: str
    index: Tensor
    local: Tensor
    source: Tensor

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        names = ("index", "local", "source")
        return {"tap": self.tap} | {name: getattr(self, name).tolist() for name in names}


class HeadShares(NamedTuple):
    """The exact parts of a logit: `own` (features,) of the delta, `parts` by tap (index, shares), and the bias.

    Their sum is the logit.
    """

    own: Tensor
    parts: dict[str, tuple[Tensor, Tensor]]
    bias: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        parts = {name: {"index": index.tolist(), "source": x.tolist()} for name, (index, x) in self.parts.items()}
        return {"own": self.own.tolist(), "bias": self.bias, "parts": parts}


class Attribution(NamedTuple):
    """The shares in the logit of the class `label`, an index; `probability` is what the task gives it."""

    label: int
    logit: float
    probability: float
    taps: tuple[TapShare, ...]
    head: HeadShares

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "logit": self.logit,
            "probability": self.probability,
            "layers": [share.to_dict() for share in self.taps],
            "head": self.head.to_dict(),
        }


def attribute(source: Source, delta: Delta, image: Tensor, thresholds: Thresholds = None) -> Attribution:
    """Take apart the logit of the class that a frozen delta predicts for a normalised image (1, 3, S, S)."""
    choice = delta.choose()
    features = source(image, delta.request(choice))
    inputs: dict[str, tuple[Tensor, Tensor]] = {}
    heads: list[Tensor | None] = []
    with torch.enable_grad(), _listening(delta, inputs, heads):
        logits = delta(features, choice)[0]
        label = int(logits.argmax())
        flat = [tensor for pair in inputs.values() for tensor in pair]
        gradients = iter(torch.autograd.grad(logits[label], flat, allow_unused=True)) if flat else iter(())
        shares = {
            name: tuple(_per_channel(delta, name, tensor, next(gradients)) for tensor in pair)
            for name, pair in inputs.items()
        }
    with torch.no_grad():
        return Attribution(
            label=label,
            logit=float(logits[label]),
            probability=float(probabilities(logits, thresholds)[label]),
            taps=tuple(_tap_shares(source, delta, choice, shares)),
            head=_head_shares(source, delta.head, heads, label),
        )


@contextmanager
def _listening(delta: Delta, inputs: dict[str, tuple[Tensor, Tensor]], heads: list[Tensor | None]) -> Iterator[None]:
    """Keep what every subscribed layer reads, as tensors that no other layer reads, and what the head reads."""

    def keep(name: str) -> Any:
        def hook(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
            *own, picked = given  # an entry has no input of its own
            x = own[0].clone() if own else picked.x.new_zeros(len(picked.x), 0)
            inputs[name] = x.requires_grad_(), picked.x.clone().requires_grad_()
            return (*inputs[name][: len(own)], picked._replace(x=inputs[name][1]))

        return hook

    def keep_grid(module: nn.Module, given: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        maps, weight = given
        inputs[""] = maps.new_zeros(len(maps), 0).requires_grad_(), maps.clone().requires_grad_()
        return inputs[""][1], weight

    def keep_linear(module: nn.Module, given: tuple[Any, ...]) -> None:
        heads.extend(part.x if isinstance(part, Picked) else part for part in given)

    linear = delta.head.fc if isinstance(delta.head, Head) else delta.head
    hooks = [linear.register_forward_pre_hook(keep_linear)]
    for name, layer in delta.body.named_modules() if delta.body else ():
        if isinstance(layer, Columns):
            hooks.append(layer.register_forward_pre_hook(keep(name)))
        elif isinstance(layer, GridBody):
            hooks.append(layer.register_forward_pre_hook(keep_grid))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _per_channel(delta: Delta, consumer: str, x: Tensor, gradient: Tensor | None) -> Tensor:
    """Value times gradient, (channels,); zero where the logit does not depend on the layer."""
    assert delta.body is not None
    dim = 1 if isinstance(delta.body.get_submodule(consumer), SubscribedConv2d | Entry | GridBody) else x.ndim - 1
    if gradient is None:
        return x.new_zeros(x.shape[dim])
    return (x.detach() * gradient).sum([other for other in range(x.ndim) if other != dim])


def _tap_shares(
    source: Source, delta: Delta, choice: dict[str, Tensor], shares: dict[str, tuple[Tensor, ...]]
) -> Iterator[TapShare]:
    if (pool := delta.grid_pool) is None:
        yield from (_tap_share(name, delta, tap.consumers, choice[name], shares) for name, tap in delta.taps.items())
        return
    local, of_grid = (part.cpu() for part in shares[""])
    for tap, (index, at) in grid_by_tap(source, pool).items():
        yield TapShare(tap, index, local, of_grid[at])


def _tap_share(
    name: str, delta: Delta, consumers: tuple[str, ...], index: Tensor, shares: dict[str, tuple[Tensor, ...]]
) -> TapShare:
    """The sum over all layers that read the tap: these read the same tensor of the delta too."""
    locals_, sources = zip(*(shares[consumer] for consumer in consumers), strict=True)
    widest = max(locals_, key=len)
    local = sum((part for part in locals_ if len(part)), torch.zeros_like(widest)).cpu()
    source = torch.stack(sources).sum(0).cpu()
    order = index.argsort().cpu()
    return TapShare(name, index.cpu()[order], local, source[order])


def _head_shares(source: Source, head: nn.Module, given: list[Tensor | None], label: int) -> HeadShares:
    """`given` are the delta's own features (1, own_chs), None for a head alone, and what a Head reads (1, num_read)."""
    linear = head.fc.local if isinstance(head, Head) else head
    assert isinstance(linear, nn.Linear)
    features, *read = given
    weight = linear.weight.detach()[label]
    own = (weight if features is None else weight * features[0]).cpu()
    parts: dict[str, tuple[Tensor, Tensor]] = {}
    if isinstance(head, Head):
        assert read[0] is not None
        columns = head.fc.columns[label] * head.pool.weight
        values = (columns * read[0][0]).cpu()
        for name, _, index, at in split_by_tap(source, head):
            channels, summed = by_channel(index, values[at])
            parts[name] = channels, summed
    return HeadShares(own, parts, float(linear.bias[label]))
