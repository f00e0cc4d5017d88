"""The named recipes of SNOW: a delta's shape, and how its pools and its head are started and trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from torchsnow.delta.cost import within_budget, within_size
from torchsnow.delta.spec import DeltaSpec
from torchsnow.errors import TrainingError
from torchsnow.source.source import Source

Start = Literal["probe", "anova", "random", "equal"]


@dataclass(frozen=True)
class PoolTraining:
    """How the pooling weights w are started and trained.

    - `start`, `head_start`: how the channels of the body and the values of the head are ranked at the start. "probe"
      does so by how much a dense linear probe over the averages of all taps relies on each, "anova" by how well each
      tells the classes apart alone (the F statistic of an analysis of variance); "random" at random, and "equal" not at
      all. A grid body keeps the best ones. Otherwise w is spread evenly over 0.5 to 1.5 in that order, "random" draws
      it from Normal(1, 0.1), and "equal" leaves it at 1.
    - `learned`: whether w trains; if not, the choice that it starts with stays.
    - `sigma`: standard deviation of the noise on w, as a share of the present standard deviation of w in its pool.
    - `noise_end`: share of the training after which there is no noise; until then it falls linearly. None keeps it.
    - `probe`: the head starts as the best linear head over what it reads, and its pool gets no noise: the choice that
      the linear head was fitted to is changed by the gradient alone.
    - `head`: "joint" trains the whole head and the body by one loss. With "frozen_probe" the linear head stays the
      probe that it started as, the body learns the task for itself, and the validation split says how much its logits
      count relative to the probe's: a probe that fits its training images leaves a body that trains next to it no error
      to learn from.
    - `pool_lr`, `head_lr`: learning rates of the pooling weights and of the head, as multiples of the others'.
    """

    start: Start = "anova"
    head_start: Start = "probe"
    learned: bool = True
    sigma: float = 0.5
    noise_end: float | None = 0.7
    probe: bool = True
    head: Literal["frozen_probe", "joint"] = "frozen_probe"
    pool_lr: float = 1.0
    head_lr: float = 1.0

    def __post_init__(self) -> None:
        for name in ("start", "head_start"):
            if getattr(self, name) not in get_args(Start):
                raise TrainingError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(get_args(Start))}")
        if self.head not in ("frozen_probe", "joint"):
            raise TrainingError(f"head is {self.head!r}; expected 'frozen_probe' or 'joint'")
        if self.head == "frozen_probe" and self.probe is False:
            raise TrainingError(
                "head is 'frozen_probe', which keeps the probe, and probe is false; set one of them otherwise"
            )
        for name in ("learned", "probe"):
            if not isinstance(getattr(self, name), bool):
                raise TrainingError(f"{name} is {getattr(self, name)!r}; expected true or false")
        end = self.noise_end
        if end is not None and not (isinstance(end, int | float) and 0 < end <= 1):
            raise TrainingError(f"noise_end is {end!r}; expected None or a share above 0, up to 1")
        for name in ("sigma", "pool_lr", "head_lr"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 <= value < float("inf"):
                raise TrainingError(f"{name} is {value!r}; expected a number of 0 or more")

    def sigma_at(self, progress: float) -> float:
        """The noise at `progress` (0 to 1), as a share of the standard deviation of w."""
        return self.sigma if self.noise_end is None else self.sigma * max(0.0, 1 - progress / self.noise_end)


@dataclass(frozen=True)
class Preset:
    """A named way to make and train a delta: settings of its DeltaSpec besides `num_classes`, and of its pools.

    `budget` is the most that a grid body may cost, as a share of the source's multiply-adds: it is as wide as that
    allows, up to the width in `shape`. `size_budget` is the most that the whole delta may take, as a share of the
    source's bytes: where classes are many, the head's weights have 4 bits, and it reads fewer values.
    """

    shape: Mapping[str, Any]
    pools: PoolTraining
    budget: float | None = None
    size_budget: float | None = None

    def spec(self, num_classes: int) -> DeltaSpec:
        """The shape of a delta for so many classes."""
        return DeltaSpec(num_classes, **self.shape)

    def spec_for(self, source: Source, num_classes: int) -> DeltaSpec:
        """The same, as wide as the budget allows on a source, and with as large a head."""
        spec = self.spec(num_classes)
        if self.budget is not None and spec.grid_width is not None:
            spec = within_budget(source, spec, self.budget)
        return spec if self.size_budget is None else within_size(source, spec, self.size_budget)

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
        # Who names a width, or how much the head reads, means it.
        return Preset(
            {**self.shape, **of_shape},
            replace(self.pools, **of_pools),
            None if "grid_width" in of_shape else self.budget,
            None if {"head_divisor", "head_bits"} & set(of_shape) else self.size_budget,
        )


_SHAPE = {"width_divisor": None, "grid_width": 96, "global_pool": "catavgmax", "head_std": True, "head_divisor": 8}
_FIXED = PoolTraining(learned=False, sigma=0.0)
# As published, in the strongest literal reading: chosen channels in the order of their numbers, and little noise. The
# noise never ends, and nothing tells w where to start.
_PUBLISHED = {"head_taps": (), "head_divisor": 8}
_NOISY = PoolTraining(start="random", head_start="random", sigma=0.03, noise_end=None, probe=False, head="joint")

PRESETS: Mapping[str, Preset] = {
    "default": Preset(_SHAPE, _FIXED, 0.04, 0.05),
    "small": Preset({**_SHAPE, "pool_divisor": 16, "grid_blocks": 2}, _FIXED, 0.01, 0.05),
    "large": Preset({**_SHAPE, "pool_divisor": 4, "grid_width": 192, "grid_blocks": 4}, _FIXED, 0.1, 0.15),
    "paper": Preset({**_PUBLISHED, "slots": "ascending"}, _NOISY),
    # The other reading: the j-th strongest channel meets the j-th column of the layer behind, so a channel changes
    # columns whenever the noise changes the order.
    "paper-rank": Preset({**_PUBLISHED, "slots": "rank"}, replace(_NOISY, sigma=0.5)),
}
