"""The delta: the small trainable network of one task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import count

import torch
from torch import Tensor, fx, nn

from torchsnow.delta.derive import PICKED, derive_body, key_of
from torchsnow.delta.grid import GridBody, frozen_state
from torchsnow.delta.head import FoldedHead, Head
from torchsnow.delta.inputs import ENTRY, subscribed_taps, tap_names
from torchsnow.delta.rounding import rounded
from torchsnow.delta.spec import DeltaSpec
from torchsnow.errors import DeltaError
from torchsnow.pooling import ChannelPooling, Subscription, num_pooled
from torchsnow.source.features import FeatureMaps, Request
from torchsnow.source.grid import ONE_CELL
from torchsnow.source.source import Source

GRID = "grid"
"""The name of a grid body's pool."""
HEAD_COLUMNS = "head.fc.columns"
"""In the state of a delta: the head's weights over what it reads of the source."""


class Delta(nn.Module):
    """One task's delta: FeatureMaps of a source pass -> logits (B, num_classes).

    A new delta is open: its pools choose again at every training step, and its layers have a column per channel.
    `freeze` gives the delta that ships, with its choice frozen and only the chosen columns. `body` are its own layers,
    None for a head alone. A grid body subscribes once, before it is trained (`subscribe`): its one pool, named `GRID`,
    is over the channels of all taps together.
    """

    def __init__(self, source: Source, spec: DeltaSpec, frozen: bool = False) -> None:
        super().__init__()
        self.spec, self.frozen = spec, frozen
        self.taps = subscribed_taps(source, spec)
        self.body: fx.GraphModule | GridBody | None = None
        own_chs = 0
        if spec.width_divisor is not None:
            self.body, own_chs = derive_body(source, spec, frozen)
        self.reads_images = self.body is not None and ENTRY not in dict(self.body.named_children())
        pooling = Subscription if frozen else ChannelPooling
        self.pools = nn.ModuleDict(
            {
                key_of(name): pooling(tap.num_chs, num_pooled(tap.num_chs, spec.pool_divisor), tap.dim)
                for name, tap in self.taps.items()
            }
        )
        if spec.grid_width is not None:
            if spec.pool_divisor > source.num_chs:
                raise DeltaError(
                    f"pool_divisor={spec.pool_divisor} leaves no channel: the taps of {source.name} have "
                    f"{source.num_chs} together; use a divisor of at most {source.num_chs}"
                )
            num_chs = num_pooled(source.num_chs, spec.pool_divisor)
            self.body = GridBody(num_chs, spec.grid_width, spec.grid_blocks, spec.global_pool, frozen)
            self.reads_images = False
            own_chs = self.body.num_features
            self.pools[GRID] = Subscription(source.num_chs, num_chs)
            self.pools[GRID].requires_grad_(False)
        self.head: Head | FoldedHead | nn.Linear = _make_head(source, spec, own_chs, frozen)
        for open_pool in self.named_pools().values():
            open_pool.ascending = spec.slots == "ascending"

    @property
    def reduction(self) -> int:
        """The reduction of the grid that it reads, or that its averages may be taken from."""
        needs_cells = self.grid_pool is not None or self.spec.head_std
        return self.spec.grid_reduction if needs_cells else ONE_CELL

    @property
    def grid_pool(self) -> Subscription | None:
        """The pool of a grid body."""
        pool = dict(self.pools).get(GRID)
        assert isinstance(pool, Subscription | None)
        return pool

    def subscribe(self, index: Tensor, std: Tensor) -> None:
        """Let a grid body read the channels `index` (M,), ascending, each over its standard deviation `std` (M,)."""
        pool = self.grid_pool
        assert pool is not None
        with torch.no_grad():
            pool.index.copy_(index)
            pool.weight.copy_(1 / std)

    def choose(self) -> dict[str, Tensor]:
        """The channels that the layers read, by tap: while training, a new draw; otherwise the strongest."""
        return {name: self._pool(name).choose() for name in self.taps}

    def request(self, choice: Mapping[str, Tensor]) -> Request:
        """What a source pass must return for this delta, with its channels chosen."""
        pool = self.grid_pool
        head = Request() if isinstance(self.head, nn.Linear) else self.head.request(self.reduction)
        own = Request() if pool is None else Request(grids={self.reduction: pool.index})
        return replace(Request.together([own, head]), channels=choice)

    def forward(self, features: FeatureMaps, choice: Mapping[str, Tensor] | None = None) -> Tensor:
        """One source pass -> logits (B, num_classes). `choice` is what `choose` returned, if the pass was asked for
        these channels alone; otherwise channels are chosen here."""
        own = self.own_features(features, self.choose() if choice is None else choice)
        logits: Tensor = self.head(own) if isinstance(self.head, nn.Linear) else self.head(own, features)
        return logits

    def with_distance(self, features: FeatureMaps) -> tuple[Tensor, Tensor | None]:
        """Logits, and how far images lie from the training images (B,), see `FoldedHead`; None where the head reads
        nothing of the source, or is not folded."""
        if not isinstance(self.head, FoldedHead):
            return self(features), None
        return self.head.with_distance(self.own_features(features, self.choose()), features)

    def own_features(self, features: FeatureMaps, choice: Mapping[str, Tensor]) -> Tensor | None:
        """What the body makes of a source pass, (B, own_chs); None without a body."""
        if self.body is None:
            return None
        if (pool := self.grid_pool) is not None:
            return self.body_features(features.grid(self.spec.grid_reduction, pool.index))
        picked = {
            PICKED + key_of(name): self._pool(name).take(features.channels(name, idx), idx)
            for name, idx in choice.items()
        }
        own: Tensor = self.body(_as_read(features.images) if self.reads_images else features.images, **picked)
        return own

    def body_features(self, maps: Tensor) -> Tensor:
        """A grid body on the subscribed channels, not yet scaled: (B, M, Gh, Gw) -> (B, own_chs)."""
        assert isinstance(self.body, GridBody)
        assert self.grid_pool is not None
        own: Tensor = self.body(maps, self.grid_pool.weight)
        return own

    def _pool(self, tap: str) -> ChannelPooling | Subscription:
        pool = self.pools[key_of(tap)]
        assert isinstance(pool, ChannelPooling | Subscription)
        return pool

    def named_pools(self) -> dict[str, ChannelPooling]:
        """The open pools by tap name, the head's own last as "head". Empty once frozen."""
        pools: dict[str, nn.Module] = {name: self._pool(name) for name in self.taps}
        if isinstance(self.head, Head):
            pools["head"] = self.head.pool
        return {name: pool for name, pool in pools.items() if isinstance(pool, ChannelPooling)}

    def _counts(self) -> tuple[bool, bool]:
        """Whether the body, and what the head reads of the source, count in the logits."""
        if not isinstance(self.head, Head) or not self.head.probe_frozen:
            return True, True
        return float(self.head.share) != 0, float(self.head.read_share) != 0

    def shipped_spec(self) -> DeltaSpec:
        """The shape of what `freeze` would give: without the parts that count nothing."""
        spec, counts_body, counts_read = self.spec, *self._counts()
        if not counts_body:
            spec = replace(spec, width_divisor=None, grid_width=None)
        if not counts_read:
            return replace(spec, head_last=False, head_taps=(), head_std=False, head_divisor=1)
        if isinstance(self.head, Head):
            spec = replace(spec, head_divisor=_head_divisor(spec, self.head))
        return spec

    def freeze(self, source: Source) -> Delta:
        """The same delta with its choice of channels frozen, for evaluation, storage and further training.

        Its logits equal those of this delta in eval mode. A body whose mixing weight is 0 is left out: the frozen delta
        is its head alone. So is what the head reads of the source if its mixing weight is 0: the body is alone then.
        Raises DeltaError if it is frozen already.
        """
        if self.frozen:
            raise DeltaError("this delta is frozen already")
        counts_body, counts_read = self._counts()
        frozen = Delta(source, self.shipped_spec(), frozen=True).to(next(self.parameters()).device)
        state = _frozen_state(self)
        if not counts_body:
            state = {key: tensor for key, tensor in state.items() if key.startswith("head.")}
            state["head.fc.local.weight"] = state["head.fc.local.weight"][:, :0]
        if not counts_read:
            weight, bias = state["head.fc.local.weight"], torch.zeros_like(state["head.fc.local.bias"])
            state = {key: tensor for key, tensor in state.items() if not key.startswith("head.")}
            state |= {"head.weight": weight, "head.bias": bias}
        if self.grid_pool is not None:
            state = {
                key: rounded(tensor, self.spec.head_bits if key == HEAD_COLUMNS else 8)
                if tensor.is_floating_point() and tensor.ndim > 1
                else tensor
                for key, tensor in state.items()
            }
        frozen.load_state_dict(state)
        return frozen.train(self.training)


def _head_divisor(spec: DeltaSpec, head: Head) -> int:
    """The divisor that stands for the number of values that a head reads, which may be fewer than the spec's."""
    num_chs, num_read = head.pool.num_chs, head.pool.num_pooled
    return next(divisor for divisor in count(spec.head_divisor) if num_pooled(num_chs, divisor) <= num_read)


def _as_read(images: Tensor) -> Tensor:
    """On the CPU channels-last, in which all layers of the body then work; see `gather`."""
    return images.contiguous(memory_format=torch.channels_last) if images.device.type == "cpu" else images


def _make_head(source: Source, spec: DeltaSpec, own_chs: int, frozen: bool) -> Head | nn.Linear:
    channels = source.channels_of(tap_names(source, spec.head_taps))
    num_last = source.num_features if spec.head_last else 0
    num_values = (1 + spec.head_std) * len(channels) + num_last
    if num_values == 0:
        if own_chs == 0:
            raise DeltaError("width_divisor is None, which leaves no layers, and the head reads nothing of the source")
        return nn.Linear(own_chs, spec.num_classes)
    num_read = num_pooled(num_values, spec.head_divisor)
    return Head(own_chs, channels, num_last, num_read, spec, frozen)


def _frozen_state(delta: Delta) -> dict[str, Tensor]:
    training = delta.training
    delta.eval()
    state = {key: tensor for key, tensor in delta.state_dict().items() if not key.endswith(".times_chosen")}
    if isinstance(delta.body, GridBody):
        state = {key: tensor for key, tensor in state.items() if not key.startswith("body.")}
        state |= {f"body.{key}": tensor for key, tensor in frozen_state(delta.body).items()}
    for prefix, pool, consumers in _consumers(delta):
        index = pool.choose()
        if delta.spec.slots == "channel":
            index = index.sort().values
        state[f"{prefix}.index"] = index
        state[f"{prefix}.weight"] = pool.weight.detach()[index]
        for consumer in consumers if delta.spec.slots == "channel" else ():
            state[f"{consumer}.columns"] = state[f"{consumer}.columns"].index_select(1, index)
        if prefix == "head.pool":
            state["head.center"], state["head.spread"] = state["head.center"][index], state["head.spread"][index]
            state["head.fc.local.weight"] = state["head.fc.local.weight"] * state.pop("head.share")
            read_share = state.pop("head.read_share")
            for key in ("head.fc.columns", "head.fc.local.bias"):
                state[key] = state[key] * read_share
            del state["head.num_read"]
    delta.train(training)
    return state


def _consumers(delta: Delta) -> list[tuple[str, ChannelPooling, list[str]]]:
    """Every open pool with the state-dict names of itself and of the layers that read it."""
    result = []
    for name, tap in delta.taps.items():
        pool = delta._pool(name)
        assert isinstance(pool, ChannelPooling)
        result.append((f"pools.{key_of(name)}", pool, [f"body.{consumer}" for consumer in tap.consumers]))
    if isinstance(delta.head, Head):
        assert isinstance(delta.head.pool, ChannelPooling)
        result.append(("head.pool", delta.head.pool, ["head.fc"]))
    return result
