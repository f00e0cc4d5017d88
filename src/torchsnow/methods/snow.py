"""SNOW: a small delta that subscribes to channels of a frozen source by channel pooling."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from torchsnow.delta.cost import delta_cost, source_cost
from torchsnow.delta.delta import GRID, Delta
from torchsnow.delta.derive import key_of
from torchsnow.delta.head import Head
from torchsnow.delta.spec import DeltaSpec
from torchsnow.errors import TrainingError
from torchsnow.methods.feature_statistics import FeatureStatistics
from torchsnow.methods.presets import PRESETS, PoolTraining
from torchsnow.methods.probe import fit_probe, lasso_importance, select_features
from torchsnow.methods.stored import StoredDelta, SubscribedValues
from torchsnow.model import SnowModel
from torchsnow.pooling import ChannelPooling, Subscription, num_pooled
from torchsnow.source.source import Source
from torchsnow.train.contract import Batches, MixingWeights, TaskCost
from torchsnow.train.targets import are_right, losses

_SHARES = (0, 0.125, 0.25, 0.5, 1, 2, 4, 8)  # of the body's logits, relative to the probe's
_TEMPERATURES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0)  # at which sums are compared
_FEWER = (1, 4)  # times fewer values for the head than the spec allows, if cross-validation says so
_DRAWS = 16  # of noise, to see how many channels would still change


class Snow:
    """The method of this package, behind the contract of `torchsnow.train.Method`.

    The delta's first weights depend on `seed` alone; torch's global generator is left as it was. `name` tells apart
    the methods that differ from it in nothing but the spec and the pools. Once a grid body has started, `ranking` has
    all channels, the best first, (C,).
    """

    def __init__(self, source: Source, spec: DeltaSpec, pools: PoolTraining, seed: int = 0, name: str = "snow") -> None:
        self.name = name
        self.source, self.spec, self.pools, self.seed = source, spec, pools, seed
        self.input_config = source.input_config
        self.ranking = torch.arange(0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.delta = Delta(source, spec)
            for pool_name, pool in self.delta.named_pools().items():
                if self._start_of(pool_name) == "random":
                    nn.init.normal_(pool.weight, mean=1.0, std=0.1)
        for pool in self.delta.named_pools().values():
            pool.weight.requires_grad_(pools.learned)
        if pools.head == "frozen_probe":
            self._head().freeze_probe()
        self.model = SnowModel(source, self.delta)

    def config(self) -> dict[str, Any]:
        """The delta's shape, how its pools train, and which source it is for."""
        made = {"spec": self.spec.to_dict(), "pools": asdict(self.pools), "seed": self.seed}
        return {"name": self.name, "source": self.source.identity(), **made}

    def start(self, images: Batches, device: torch.device) -> None:
        """One source pass over the training images: the choice of channels, the head's standardisation and start."""
        stats = self.statistics(device)
        if not stats.request.is_empty:  # otherwise the delta reads nothing of the source
            for batch, labels in images:
                stats.add(self.source(batch.to(device), stats.request), labels.to(device))
        self.init_from_stats(stats)

    def statistics(self, device: torch.device) -> FeatureStatistics:
        """To be shown what the source makes of all training images: whatever has a pool or may be read by the head."""
        head = self.delta.head
        taps = self.delta.taps if self.delta.grid_pool is None else self.source.taps
        pooled = self.source.channels_of(list(taps))
        averaged = head.channels.cpu() if isinstance(head, Head) else pooled[:0]
        last = self.source.num_features if isinstance(head, Head) and head.last else 0
        keep = self.pools.probe or "probe" in self._starts
        channels = torch.unique(torch.cat([pooled, averaged]))
        return FeatureStatistics(
            channels, last, self.spec.num_classes, self.delta.reduction, self.spec.head_std, device, keep
        )

    def init_from_stats(self, stats: FeatureStatistics) -> None:
        """Start with the statistics of all training images; the rest of `start`."""
        head, head_places = self.delta.head, None
        if isinstance(head, Head):
            num_last = self.source.num_features if head.last else 0
            head_places = stats.places(head.channels, num_last, self.spec.head_std)
            head.center.copy_(stats.sums.mean[head_places])
            head.spread.copy_(stats.sums.std[head_places])
        scorings = {"probe": stats.importance, "anova": stats.sums.f_statistic}
        scores = {start: scoring() for start, scoring in scorings.items() if start in self._starts}
        places = {name: stats.places(self.source.channels_of([name])) for name in self.delta.taps}
        if head_places is not None:
            places["head"] = head_places
        for name, pool in self.delta.named_pools().items():
            if self._start_of(name) in scores:
                init_by_scores(pool, scores[self._start_of(name)].cpu()[places[name].cpu()])
        self._subscribe(stats, scores)
        if self.pools.probe and isinstance(head, Head) and head_places is not None:
            ranked = self.pools.head_start == "probe"
            importance = scores["probe"][head_places.cpu()] if ranked else None
            self._start_head(head, stats.standardised(head_places), stats.labels, importance)

    def _subscribe(self, stats: FeatureStatistics, scores: Mapping[str, Tensor]) -> None:
        """Choose the channels of a grid body, of all taps together: those with the highest scores, or at random."""
        pool = self.delta.grid_pool
        if pool is None:
            return
        if self.pools.start in scores:
            of_all = scores[self.pools.start].cpu()[: pool.num_chs]
        else:
            of_all = torch.rand(pool.num_chs, generator=torch.Generator().manual_seed(self.seed))
        self.ranking = of_all.argsort(descending=True, stable=True)
        index = self.ranking[: pool.num_pooled].sort().values
        self.delta.subscribe(index.to(pool.index.device), stats.cell_std[index.to(stats.channels.device)])

    def _start_head(self, head: Head, values: Tensor, labels: Tensor, importance: Tensor | None) -> None:
        """As a probe; which, where it knows how important the values are, says too how many are worth reading, and
        whether they and their penalty go by their importance."""
        penalty = None
        if importance is not None and self.spec.slots == "channel":
            most = num_pooled(head.pool.num_chs, self.spec.head_divisor)
            selection = select_features(values, labels, self.spec.num_classes, [max(1, most // few) for few in _FEWER])
            head.select_k(selection.num_read)
            penalty = selection.inverse_penalty
            if not selection.by_importance:
                assert isinstance(head.pool, ChannelPooling)
                init_by_scores(head.pool, lasso_importance(values, labels, self.spec.num_classes))
                importance = None
        start_as_probe(head, values, labels, penalty, importance)

    def _start_of(self, pool: str) -> str:
        return self.pools.head_start if pool == "head" else self.pools.start

    @property
    def _starts(self) -> set[str]:
        """How the pools of this delta start."""
        return {self._start_of(name) for name in self.delta.pools} | {
            self._start_of(name) for name in self.delta.named_pools()
        }

    def _head(self) -> Head:
        head = self.delta.head
        if not isinstance(head, Head):
            raise TrainingError(
                "head is 'frozen_probe', and this delta's head reads nothing of the source; use 'joint'"
            )
        return head

    def tune(self, model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device) -> float | None:
        """With a frozen probe: how much the probe and the body count, by the cross-entropy on the validation images.

        Returns the body's own accuracy; None with the head together, where it cannot be told.
        """
        if self.pools.head != "frozen_probe":
            return None
        head = self._head()
        logits: tuple[list[Tensor], list[Tensor]] = ([], [])
        labels: list[Tensor] = []
        model.eval()
        with torch.no_grad():
            for batch, of_batch in batches:
                labels.append(of_batch)
                for part, weights in zip(logits, ((1.0, 0.0), (0.0, 1.0)), strict=True):
                    head.mix(*weights)
                    part.append(model(batch.to(device)).float().cpu())
        probe, body, truth = torch.cat(logits[0]), torch.cat(logits[1]), torch.cat(labels)
        head.mix(*best_mixing_weights(probe, body, truth))
        return float(are_right(body, truth).float().mean())

    @property
    def starts_as_probe(self) -> bool:
        """Whether its head starts as one."""
        return self.pools.probe and isinstance(self.delta.head, Head)

    def frozen_part(self, image_size: int) -> tuple[SubscribedValues, nn.Module] | None:
        """For a grid body: what the source gives of an image of so many pixels, and the delta on that. None for a
        narrow copy, which reads the images, and where the choice may be another in every step."""
        if self.delta.grid_pool is None or self._choice_may_change:
            return None
        return SubscribedValues(self.source, self.delta), StoredDelta(self.delta, image_size)

    @property
    def _choice_may_change(self) -> bool:
        """Whether what an open pool chooses depends on the step."""
        pools = [] if self.pools.head == "frozen_probe" else list(self.delta.named_pools().values())
        return bool(pools) and (self.pools.learned or self.pools.sigma > 0)

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
        """Set every pool's noise in proportion to the present standard deviation of its weights."""
        share = self.pools.sigma_at(fraction)
        pools = [pool for name, pool in self.delta.named_pools().items() if not (name == "head" and self.pools.probe)]
        spreads = torch.stack([_spread(pool) for pool in pools]).tolist() if share and pools else [0.0] * len(pools)
        for pool, spread in zip(pools, spreads, strict=True):
            pool.sigma = share * spread

    def record(self) -> list[dict[str, Any]]:
        """Per learned pool: how many channels it chooses of how many, has ever chosen, and would still change; the
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
            for name, pool in (self.delta.named_pools() if self.pools.learned else {}).items()
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
            self.delta.head.select_k(int(self.delta.head.num_read))

    def subscription(self) -> dict[str, Any]:
        """{tap: {"channels": N, "index": the chosen ones in ascending order, "weight": theirs}}."""
        return chosen_channels(self.delta.freeze(self.source))

    def shipped_state(self) -> dict[str, Tensor]:
        """The delta with its choice of channels frozen."""
        return dict(self.delta.freeze(self.source).state_dict())

    def mixing_weights(self) -> MixingWeights:
        """Those of the head; a delta that is its body or its head alone has nothing of the other."""
        head, has_body = self.delta.head, self.delta.body is not None
        if not isinstance(head, Head):
            return MixingWeights(body=1.0)
        return MixingWeights(float(head.read_share), float(head.share) if has_body else None)

    def multiply_adds(self) -> TaskCost:
        """One source pass, and what ships of the delta for each task; a delta that reads nothing of the source needs no
        pass."""
        own = delta_cost(self.source, self.delta.shipped_spec()).multiply_adds
        reads = bool(self.delta.pools) or isinstance(self.delta.head, Head)
        return TaskCost(reads * source_cost(self.source).multiply_adds + own, own)

    def finish(self) -> SnowModel:
        """The source and the delta with its choice of channels frozen."""
        return self.model.freeze().eval()


def make_snow(
    source: Source, num_classes: int, preset: str = "default", seed: int = 0, changes: Mapping[str, Any] | None = None
) -> Snow:
    """SNOW as a preset says, with `changes` to its settings. Raises TrainingError for what does not exist."""
    if preset not in PRESETS:
        raise TrainingError(f"there is no preset {preset!r}; expected one of {', '.join(PRESETS)}")
    chosen = PRESETS[preset].changed(changes or {})
    return Snow(source, chosen.spec_for(source, num_classes), chosen.pools, seed)


def init_by_scores(pool: ChannelPooling, scores: Tensor) -> None:
    """Set w to 0.5 for the lowest of the scores (N,), 1.5 for the highest, and evenly between; 1 where N is 1."""
    ranks = scores.argsort(stable=True).argsort().double()
    with torch.no_grad():
        pool.weight.copy_(0.5 + ranks / (len(ranks) - 1) if len(ranks) > 1 else torch.ones_like(ranks))


def start_as_probe(
    head: Head,
    values: Tensor,
    labels: Tensor,
    inverse_penalty: float | None = None,
    importance: Tensor | None = None,
) -> None:
    """Make a head's logits those of the best linear head over those of the values (n, num_values) that it chooses; see
    `fit_probe` for the penalty and the values' importance (num_values,)."""
    idx = head.pool.choose().cpu()
    of_chosen = None if importance is None else importance.cpu()[idx]
    weight, bias = fit_probe(values[:, idx], labels, head.fc.columns.shape[0], inverse_penalty, of_chosen)
    places = idx if head.fc.slots == "channel" else torch.arange(len(idx))
    with torch.no_grad():
        columns = torch.zeros_like(head.fc.columns)
        columns[:, places] = weight.to(columns.device) / (head.scale * head.pool.weight[idx])
        head.fc.columns.copy_(columns)
        head.fc.local.weight.zero_()
        head.fc.local.bias.copy_(bias)


def best_mixing_weights(probe: Tensor, body: Tensor, labels: Tensor) -> tuple[float, float]:
    """How much a probe and a body count, (a, s), in the logits `a * probe + s * body`, (n, num_classes) each.

    They count alike, as networks that were trained apart do in an ensemble (Hansen and Salamon, "Neural Network
    Ensembles", IEEE TPAMI 1990), unless another share of the body, or none, or the body alone has a cross-entropy that
    is clearly lower: which share is best, a few dozen images cannot tell. Of these the body alone counts, unless the
    best sum is clearly better: a task without a probe reads less of the source, and is smaller. Where the probe's
    losses sum to less than 1, there is nothing to gain, and it stays alone: a body costs every pass.

    Each is taken at the temperature that suits it best, since over-confidence is no reason for or against, and the
    logits count at that temperature (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017).
    """

    def at_best(own: float, share: float) -> tuple[Tensor, tuple[float, float]]:
        """The losses (n,) at the temperature with the lowest, and what the logits count there."""
        tried = [(losses((own * probe + share * body) / heat, labels), heat) for heat in _TEMPERATURES]
        lowest, heat = min(tried, key=lambda one: float(one[0].mean()))
        return lowest, (own / heat, share / heat)

    sums = {share: at_best(1, share) for share in _SHARES}
    if float(sums[0][0].sum()) < 1:
        return 1.0, 0.0
    best = min(sums, key=lambda share: float(sums[share][0].mean()))
    of_body = at_best(0, 1)
    other, weights = sums[best] if clearly_better(sums[best][0], of_body[0]) else of_body
    if not clearly_better(other, sums[1][0]):
        return sums[1][1]
    return (1.0, 0.0) if weights[1] == 0 else weights


def clearly_better(losses: Tensor, others: Tensor) -> bool:
    """Whether losses (n,) are below others by more than the standard error of the difference (Breiman et al.,
    "Classification and Regression Trees", 1984), and in sum by more than 1: the price of a number that is chosen
    (Akaike, "A new look at the statistical model identification", 1974)."""
    gain = others - losses
    error = float(gain.std()) / len(gain) ** 0.5 if len(gain) > 1 else math.inf
    return float(gain.mean()) > error and float(gain.sum()) > 1


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


def chosen_channels(frozen: Delta) -> dict[str, Any]:
    """The choice of a frozen delta: {tap: {"channels": N, "index": in ascending order, "weight": theirs}}.

    The head's own is named "head".
    """
    pools: dict[str, nn.Module] = {name: frozen.pools[key_of(name)] for name in frozen.taps}
    if frozen.grid_pool is not None:
        pools[GRID] = frozen.grid_pool
    if isinstance(frozen.head, Head):
        pools["head"] = frozen.head.pool
    return {name: _chosen(pool) for name, pool in pools.items() if isinstance(pool, Subscription)}


def _chosen(pool: Subscription) -> dict[str, Any]:
    order = pool.index.argsort()
    index, weight = pool.index[order].tolist(), pool.weight.detach()[order].tolist()
    return {"channels": pool.num_chs, "index": index, "weight": weight}
