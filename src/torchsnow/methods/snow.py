"""SNOW: a small delta that subscribes to channels of a frozen source by channel pooling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from torchsnow.delta.cost import delta_cost, source_cost
from torchsnow.delta.delta import Delta
from torchsnow.delta.derive import key_of
from torchsnow.delta.head import Head
from torchsnow.delta.spec import DeltaSpec
from torchsnow.errors import TrainingError
from torchsnow.methods.probe import MAX_IMAGES, fit_probe
from torchsnow.methods.statistics import ClassSums
from torchsnow.model import SnowModel
from torchsnow.pooling import ChannelPooling, Subscription
from torchsnow.source.features import Request, unique
from torchsnow.source.source import Source
from torchsnow.train.contract import Batches, TaskCost

_LAST = "last"  # beside tap names: the source's last features
_DRAWS = 16  # of noise, to see how many channels would still change


@dataclass(frozen=True)
class PoolTraining:
    """How the pooling weights w are started and trained.

    - `start`: "informed" ranks a pool's channels by how well their averages tell the classes apart and spreads w
      evenly over 0.5 to 1.5 in that order; "random" draws w from Normal(1, 0.1); "equal" leaves it at 1.
    - `learned`: whether w trains; if not, the choice that it starts with stays.
    - `sigma`: standard deviation of the noise on w, as a share of the present standard deviation of w in its pool.
    - `quiet_from`: share of the training after which there is no noise; until then it falls linearly. None keeps it.
    - `probe`: the head starts as the best linear head over what it reads, and its pool gets no noise: the choice that
      the linear head was fitted to is changed by the gradient alone.
    - `pool_lr`, `head_lr`: learning rates of the pooling weights and of the head, as multiples of the others'.
    """

    start: Literal["informed", "random", "equal"] = "informed"
    learned: bool = True
    sigma: float = 0.5
    quiet_from: float | None = 0.7
    probe: bool = True
    pool_lr: float = 1.0
    head_lr: float = 1.0

    def __post_init__(self) -> None:
        if self.start not in ("informed", "random", "equal"):
            raise TrainingError(f"start is {self.start!r}; expected 'informed', 'random' or 'equal'")
        for name in ("learned", "probe"):
            if not isinstance(getattr(self, name), bool):
                raise TrainingError(f"{name} is {getattr(self, name)!r}; expected true or false")
        quiet = self.quiet_from
        if quiet is not None and not (isinstance(quiet, int | float) and 0 < quiet <= 1):
            raise TrainingError(f"quiet_from is {quiet!r}; expected None or a share above 0, up to 1")
        for name in ("sigma", "pool_lr", "head_lr"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 <= value < float("inf"):
                raise TrainingError(f"{name} is {value!r}; expected a number of 0 or more")

    def sigma_at(self, progress: float) -> float:
        """The noise at `progress` (0 to 1), as a share of the standard deviation of w."""
        return self.sigma if self.quiet_from is None else self.sigma * max(0.0, 1 - progress / self.quiet_from)


@dataclass(frozen=True)
class Preset:
    """A named way to make and train a delta: settings of its DeltaSpec beside `num_classes`, and of its pools."""

    shape: Mapping[str, Any]
    pools: PoolTraining

    def spec(self, num_classes: int) -> DeltaSpec:
        """The shape of a delta for so many classes."""
        return DeltaSpec(num_classes, **self.shape)

    def changed(self, changes: Mapping[str, Any]) -> Preset:
        """The same with other settings of the DeltaSpec or of the pools. Raises TrainingError for an unknown one."""
        shape = {field.name for field in fields(DeltaSpec)} - {"num_classes"}
        pools = {field.name for field in fields(PoolTraining)}
        unknown = sorted(set(changes) - shape - pools)
        if unknown:
            raise TrainingError(
                f"a delta has no setting {unknown[0]!r}; expected one of {', '.join(sorted(shape | pools))}"
            )
        of_pools = {name: value for name, value in changes.items() if name in pools}
        of_shape = {
            name: tuple(value) if isinstance(value, list) else value for name, value in changes.items() if name in shape
        }
        return Preset({**self.shape, **of_shape}, replace(self.pools, **of_pools))


PRESETS: Mapping[str, Preset] = {
    "default": Preset({"head_divisor": 4}, PoolTraining()),
    # As published and reproduced, with its warts: the j-th strongest channel meets the j-th column of the layer
    # behind, so a channel changes columns whenever the noise changes the order; the noise never ends, so the choice
    # that evaluation makes, by w itself, is not the one that was trained with; and nothing tells w where to start.
    "paper": Preset(
        {"slots": "rank", "head_taps": (), "head_divisor": 8},
        PoolTraining(start="random", quiet_from=None, probe=False),
    ),
}


class Snow:
    """The method of this package, behind the contract of `torchsnow.train.Method`.

    The delta's first weights depend on `seed` alone; torch's global generator is left as it was. `name` tells apart
    the methods that differ from it in nothing but the spec and the pools.
    """

    def __init__(self, source: Source, spec: DeltaSpec, pools: PoolTraining, seed: int = 0, name: str = "snow") -> None:
        self.name = name
        self.source, self.spec, self.pools, self.seed = source, spec, pools, seed
        self.input_config = source.input_config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.delta = Delta(source, spec)
            if pools.start == "random":
                for pool in self.delta.named_pools().values():
                    nn.init.normal_(pool.weight, mean=1.0, std=0.1)
        for pool in self.delta.named_pools().values():
            pool.weight.requires_grad_(pools.learned)
        self.model = SnowModel(source, self.delta)

    def config(self) -> dict[str, Any]:
        """The delta's shape, how its pools train, and which source it is for."""
        made = {"spec": self.spec.to_dict(), "pools": asdict(self.pools), "seed": self.seed}
        return {"name": self.name, "source": self.source.identity(), **made}

    def start(self, images: Batches, device: torch.device) -> None:
        """One source pass over the training images: the head's standardisation, and informed pooling weights."""
        sums = self._look(images, device)
        if isinstance(self.delta.head, Head):
            self.delta.head.center.copy_(torch.cat([sums[name].center for name in self._head_names]))
            self.delta.head.spread.copy_(torch.cat([sums[name].spread for name in self._head_names]))
        if self.pools.start == "informed":
            for name, pool in self.delta.named_pools().items():
                read = self._head_names if name == "head" else (name,)
                inform(pool, torch.cat([sums[part].f_statistic() for part in read]))
        if self.pools.probe and isinstance(self.delta.head, Head):
            start_as_probe(self.delta.head, *self._head_values(self.delta.head, images, device))

    def _head_values(self, head: Head, images: Batches, device: torch.device) -> tuple[Tensor, Tensor]:
        """What the head reads of the training images, standardised, (n, num_read), and their labels (n,)."""
        values, labels = [], []
        request = self.delta.request({})
        for batch, batch_labels in images:
            picked, _ = head.read(self.source(batch.to(device), request))
            values.append(picked.detach().cpu())
            labels.append(batch_labels)
            if sum(map(len, labels)) >= MAX_IMAGES:
                break
        return torch.cat(values), torch.cat(labels)

    @property
    def _head_names(self) -> tuple[str, ...]:
        """Where the values come from that the head may read, in their order."""
        head = self.delta.head
        assert isinstance(head, Head)
        return (*head.taps, _LAST) if head.last else head.taps

    def _look(self, images: Batches, device: torch.device) -> dict[str, ClassSums]:
        """Sums of the averages of every tap that has a pool or that the head reads, and of the last features."""
        wanted = self.delta.request({})
        taps = unique((*self.delta.taps, *wanted.averages))
        sizes = {name: self.source.taps[name].num_chs for name in taps}
        if wanted.last:
            sizes[_LAST] = self.source.num_features
        if not sizes:  # a delta that reads nothing of the source
            return {}
        sums = {name: ClassSums(size, self.spec.num_classes, device) for name, size in sizes.items()}
        for batch, labels in images:
            features = self.source(batch.to(device), Request(averages=taps, last=wanted.last))
            for name, own in sums.items():
                own.add(features.last if name == _LAST else features.average(name), labels.to(device))
        return sums

    def frozen_part(self) -> None:
        """None: a delta reads the images, and another choice of channels in every step."""

    def parameter_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """The delta's parameters; norms, biases and pooling weights without weight decay."""
        pooling = {id(pool.weight) for pool in self.delta.named_pools().values()}
        head = {id(parameter) for parameter in self.delta.head.parameters()}
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for parameter in self.delta.parameters():
            if not parameter.requires_grad:
                continue
            is_pool, is_head = id(parameter) in pooling, id(parameter) in head
            factor = self.pools.pool_lr if is_pool else self.pools.head_lr if is_head else 1.0
            decay = 0.0 if is_pool or parameter.ndim < 2 else weight_decay
            groups.setdefault((lr * factor, decay), []).append(parameter)
        return [{"params": group, "lr": rate, "weight_decay": decay} for (rate, decay), group in groups.items()]

    def set_progress(self, fraction: float) -> None:
        """Set every pool's noise in proportion to the present spread of its weights."""
        share = self.pools.sigma_at(fraction)
        pools = [pool for name, pool in self.delta.named_pools().items() if not (name == "head" and self.pools.probe)]
        spreads = torch.stack([_spread(pool) for pool in pools]).tolist() if share and pools else [0.0] * len(pools)
        for pool, spread in zip(pools, spreads, strict=True):
            pool.sigma = share * spread

    def record(self) -> list[dict[str, Any]]:
        """Per pool: how many channels it chooses of how many, has ever chosen in training, and would still change."""
        return [
            {
                "tap": name,
                "channels": pool.num_chs,
                "chosen": pool.num_pooled,
                "ever_chosen": int((pool.times_chosen > 0).sum()),
                "still_changing": still_changing(pool),
                "weight_spread": float(_spread(pool)),
                "sigma": pool.sigma,
            }
            for name, pool in self.delta.named_pools().items()
        ]

    def trainable_state(self) -> dict[str, Tensor]:
        """The delta's parameters and buffers."""
        return dict(self.delta.state_dict())

    def load_trainable_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `trainable_state` gave. Raises TrainingError when it is of another delta."""
        try:
            self.delta.load_state_dict(dict(state))
        except RuntimeError as error:
            raise TrainingError(f"the saved state does not fit this delta: {error}") from error

    def subscription(self) -> dict[str, Any]:
        """{tap: {"channels": N, "index": the chosen ones in ascending order, "weight": theirs}}."""
        return chosen_channels(self.delta.settle(self.source))

    def shipped_state(self) -> dict[str, Tensor]:
        """The delta with its choice of channels fixed."""
        return dict(self.delta.settle(self.source).state_dict())

    def multiply_adds(self) -> TaskCost:
        """One source pass, and a delta for each task; a delta that reads nothing of the source needs no pass."""
        own = delta_cost(self.source, self.spec).multiply_adds
        reads = bool(self.delta.taps) or isinstance(self.delta.head, Head)
        return TaskCost(reads * source_cost(self.source).multiply_adds + own, own)

    def finish(self) -> SnowModel:
        """The source and the delta with its choice of channels fixed."""
        return self.model.settle().eval()


def make_snow(
    source: Source, num_classes: int, preset: str = "default", seed: int = 0, changes: Mapping[str, Any] | None = None
) -> Snow:
    """SNOW as a preset says, with `changes` to its settings. Raises TrainingError for what does not exist."""
    if preset not in PRESETS:
        raise TrainingError(f"there is no preset {preset!r}; expected one of {', '.join(PRESETS)}")
    chosen = PRESETS[preset].changed(changes or {})
    return Snow(source, chosen.spec(num_classes), chosen.pools, seed)


def inform(pool: ChannelPooling, scores: Tensor) -> None:
    """Set w to 0.5 for the lowest of the scores (N,), 1.5 for the highest, and evenly between; 1 where N is 1."""
    ranks = scores.argsort(stable=True).argsort().double()
    with torch.no_grad():
        pool.weight.copy_(0.5 + ranks / (len(ranks) - 1) if len(ranks) > 1 else torch.ones_like(ranks))


def start_as_probe(head: Head, values: Tensor, labels: Tensor) -> None:
    """Make a head's logits those of the best linear head over the values (n, num_read) that it reads now."""
    weight, bias = fit_probe(values, labels, head.fc.columns.shape[0])
    idx = head.pool.choose()
    with torch.no_grad():
        columns = torch.zeros_like(head.fc.columns)
        columns[:, idx] = weight.to(columns.device) / (head.scale * head.pool.weight[idx])
        head.fc.columns.copy_(columns)
        head.fc.local.weight.zero_()
        head.fc.local.bias.copy_(bias)


def still_changing(pool: ChannelPooling) -> float:
    """How many of the M chosen channels another draw of the present noise would replace, on average."""
    weight = pool.weight.detach().float().cpu()
    if pool.sigma == 0:
        return 0.0
    noise = torch.randn(_DRAWS, len(weight), generator=torch.Generator().manual_seed(0))
    tried = (weight + pool.sigma * noise).topk(pool.num_pooled).indices
    chosen = torch.zeros(len(weight), dtype=torch.bool)
    chosen[weight.topk(pool.num_pooled).indices] = True
    return float((~chosen[tried]).sum()) / _DRAWS


def _spread(pool: ChannelPooling) -> Tensor:
    return pool.weight.detach().std(correction=0)


def chosen_channels(settled: Delta) -> dict[str, Any]:
    """The choice of a settled delta: {tap: {"channels": N, "index": in ascending order, "weight": theirs}}.

    The head's own is named "head".
    """
    pools = {name: settled.pools[key_of(name)] for name in settled.taps}
    if isinstance(settled.head, Head):
        pools["head"] = settled.head.pool
    return {name: _chosen(pool) for name, pool in pools.items() if isinstance(pool, Subscription)}


def _chosen(pool: Subscription) -> dict[str, Any]:
    order = pool.index.argsort()
    index, weight = pool.index[order].tolist(), pool.weight.detach()[order].tolist()
    return {"channels": pool.num_chs, "index": index, "weight": weight}
