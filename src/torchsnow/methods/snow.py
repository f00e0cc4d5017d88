"""SNOW: a small delta that subscribes to channels of a frozen source by channel pooling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchsnow.delta.cost import delta_cost, source_cost
from torchsnow.delta.delta import Delta
from torchsnow.delta.derive import key_of
from torchsnow.delta.head import Head
from torchsnow.delta.spec import DeltaSpec
from torchsnow.errors import TrainingError
from torchsnow.methods.presets import PRESETS, PoolTraining
from torchsnow.methods.probe import choose_reading, fit_probe
from torchsnow.methods.seen import LAST, SeenValues
from torchsnow.model import SnowModel
from torchsnow.pooling import ChannelPooling, Subscription, num_pooled
from torchsnow.source.features import FeatureMaps, unique
from torchsnow.source.source import Source
from torchsnow.train.contract import Batches, TaskCost

_SHARES = (0.0, 0.125, 0.25, 0.5, 1.0, 2.0)  # of the body's logits beside the probe's
_TEMPERATURES = (
    0.125,
    0.25,
    0.5,
    1.0,
    2.0,
    4.0,
)  # at which the sums are compared: over-confidence is no reason for or against
_FEWER = (1, 2, 4, 8)  # times fewer values for the head than the spec allows, if cross-validation says so
_DRAWS = 16  # of noise, to see how many channels would still change


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
            for pool_name, pool in self.delta.named_pools().items():
                if self._start_of(pool_name) == "random":
                    nn.init.normal_(pool.weight, mean=1.0, std=0.1)
        for pool in self.delta.named_pools().values():
            pool.weight.requires_grad_(pools.learned)
        if pools.head == "apart":
            self._head().train_apart()
        self.model = SnowModel(source, self.delta)

    def config(self) -> dict[str, Any]:
        """The delta's shape, how its pools train, and which source it is for."""
        made = {"spec": self.spec.to_dict(), "pools": asdict(self.pools), "seed": self.seed}
        return {"name": self.name, "source": self.source.identity(), **made}

    def start(self, images: Batches, device: torch.device) -> None:
        """One source pass over the training images: the head's standardisation and start, and informed pools."""
        seen = self.looking(device)
        if seen.request.averages or seen.request.last:  # otherwise the delta reads nothing of the source
            for batch, labels in images:
                seen.add(self.source(batch.to(device), seen.request), labels.to(device))
        self.start_from(seen)

    def start_from(self, seen: SeenValues) -> None:
        """Start with what was seen of all training images; the rest of `start`."""
        head = self.delta.head
        if isinstance(head, Head):
            head.center.copy_(torch.cat([seen.sums[name].center for name in self._head_names]))
            head.spread.copy_(torch.cat([seen.sums[name].spread for name in self._head_names]))
        scorings = {"probe": seen.strengths, "informed": seen.f_statistics}
        scores = {start: scoring() for start, scoring in scorings.items() if start in self._starts}
        for name, pool in self.delta.named_pools().items():
            if self._start_of(name) in scores:
                of_pool = scores[self._start_of(name)]
                inform(pool, torch.cat([of_pool[part] for part in (self._head_names if name == "head" else (name,))]))
        if self.pools.probe and isinstance(head, Head):
            ranked = self.pools.head_start == "probe"
            strengths = torch.cat([scores["probe"][part] for part in self._head_names]) if ranked else None
            self._start_head(head, seen.standardised(self._head_names), seen.labels, strengths)

    def _start_head(self, head: Head, values: Tensor, labels: Tensor, strengths: Tensor | None) -> None:
        """As a probe; which, where it knows how strong the values are, says too how many are worth reading, and whether
        their penalty goes by their strength."""
        penalty = None
        if strengths is not None and self.spec.slots == "channel":
            nums = [num_pooled(head.pool.num_chs, self.spec.head_divisor * fewer) for fewer in _FEWER]
            reading = choose_reading(values, labels, self.spec.num_classes, nums)
            head.read_fewer(reading.num_read)
            strengths, penalty = strengths if reading.by_strength else None, reading.inverse_penalty
        start_as_probe(head, values, labels, penalty, strengths)

    def _start_of(self, pool: str) -> str:
        return self.pools.head_start if pool == "head" else self.pools.start

    @property
    def _starts(self) -> set[str]:
        """How the pools of this delta start."""
        return {self._start_of(name) for name in self.delta.named_pools()}

    def _head(self) -> Head:
        head = self.delta.head
        if not isinstance(head, Head):
            raise TrainingError("head is 'apart', and this delta's head reads nothing of the source; use 'together'")
        return head

    @property
    def _head_names(self) -> tuple[str, ...]:
        """Where the values come from that the head may read, in their order."""
        head = self._head()
        return (*head.taps, LAST) if head.last else head.taps

    def looking(self, device: torch.device) -> SeenValues:
        """To be shown the averages of every tap that has a pool or that the head reads, and the last features."""
        head = self.delta.head
        head_taps, last = (head.taps, head.last) if isinstance(head, Head) else ((), False)
        taps = unique((*self.delta.taps, *head_taps))
        sizes = {name: self.source.taps[name].num_chs for name in taps}
        if last:
            sizes[LAST] = self.source.num_features
        return SeenValues(sizes, self.spec.num_classes, device, keep=self.pools.probe or "probe" in self._starts)

    def tune(self, images: Batches, device: torch.device) -> None:
        """With the head apart: the body's share by the cross-entropy on the validation images, at the best temperature
        of a few."""
        if not self.tunes:
            return
        seen = []
        self.model.eval()
        with torch.no_grad():
            for batch, labels in images:
                choice = self.delta.choose()
                features = self.source(batch.to(device), self.delta.request(choice))
                seen.append((*self.probe_and_whole(features, choice), labels.to(device)))
        self.tune_by(*(torch.cat(parts) for parts in zip(*seen, strict=True)))

    @property
    def tunes(self) -> bool:
        """Whether `tune` has anything to set."""
        return self.pools.head == "apart"

    def probe_and_whole(self, features: FeatureMaps, choice: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Logits (B, num_classes) of the head alone and with the whole of the body's; the body's share is lost."""
        head, logits = self._head(), []
        for share in (0.0, 1.0):
            head.share.fill_(share)
            logits.append(self.delta(features, choice))
        return logits[0], logits[1]

    def tune_by(self, probe: Tensor, whole: Tensor, labels: Tensor) -> None:
        """Set the body's share by what `probe_and_whole` gave for all validation images, with labels (n,)."""
        self._head().share.fill_(best_share(probe, whole - probe, labels))

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
        """Per pool: how many channels it chooses of how many, has ever chosen in training, and would still change; the
        spread of its weights, and the norm of their gradient in the last step."""
        return [
            {
                "tap": name,
                "channels": pool.num_chs,
                "chosen": pool.num_pooled,
                "ever_chosen": int((pool.times_chosen > 0).sum()),
                "still_changing": still_changing(pool),
                "weight_spread": float(_spread(pool)),
                "gradient": 0.0 if pool.weight.grad is None else float(pool.weight.grad.norm()),
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
        if isinstance(self.delta.head, Head):
            self.delta.head.read_fewer(int(self.delta.head.num_read))

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


def start_as_probe(
    head: Head,
    values: Tensor,
    labels: Tensor,
    inverse_penalty: float | None = None,
    strengths: Tensor | None = None,
) -> None:
    """Make a head's logits those of the best linear head over those of the values (n, num_values) that it chooses; see
    `fit_probe` for the penalty and the values' strengths (num_values,)."""
    idx = head.pool.choose().cpu()
    of_chosen = None if strengths is None else strengths.cpu()[idx]
    weight, bias = fit_probe(values[:, idx], labels, head.fc.columns.shape[0], inverse_penalty, of_chosen)
    places = idx if head.fc.slots == "channel" else torch.arange(len(idx))
    with torch.no_grad():
        columns = torch.zeros_like(head.fc.columns)
        columns[:, places] = weight.to(columns.device) / (head.scale * head.pool.weight[idx])
        head.fc.columns.copy_(columns)
        head.fc.local.weight.zero_()
        head.fc.local.bias.copy_(bias)


def best_share(probe: Tensor, body: Tensor, labels: Tensor) -> float:
    """The share s for which `probe + s * body`, logits (n, num_classes) each, has the lowest cross-entropy; 0 unless
    that is below the probe's own by more than twice the standard error of the difference, and in sum by more than 1:
    the price of a number that is chosen (Akaike, "A new look at the statistical model identification", 1974).

    Each sum is taken at the temperature that suits it best, and of equal shares the smallest.
    """

    def losses(share: float) -> Tensor:
        logits = probe + share * body
        tried = [F.cross_entropy(logits / temperature, labels, reduction="none") for temperature in _TEMPERATURES]
        return min(tried, key=lambda loss: float(loss.mean()))

    own = losses(0.0)
    share = min(_SHARES, key=lambda share: float(losses(share).mean()))
    gains = own - losses(share)
    error = float(gains.std(correction=0)) / len(labels) ** 0.5
    return share if float(gains.mean()) > max(2 * error, 1 / len(labels)) else 0.0


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
