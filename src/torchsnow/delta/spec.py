"""What a delta is made of: the settings that, with a source, determine its shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from torchsnow.errors import DeltaError

Slots = Literal["channel", "ascending", "rank"]
GlobalPool = Literal["avg", "catavgmax"]
_WHOLE = (
    "width_divisor", "pool_divisor", "grid_width", "grid_blocks", "grid_reduction", "entry_reduction", "head_divisor"
)  # fmt: skip
_OPTIONAL = ("width_divisor", "grid_width")


@dataclass(frozen=True)
class DeltaSpec:
    """The shape of one task's delta: a grid body, a narrow copy of the source, or its head alone.

    - `grid_width`: channels of a grid body; None is a delta without one. It has `grid_blocks` blocks, on a grid with
      one cell per `grid_reduction` pixels of the image each way. Its features are their means over the cells
      (`global_pool="avg"`), or the means and then the largest ("catavgmax", as timm calls it).
    - `width_divisor` (K in the paper): a source layer of N channels has max(1, round(N / K)) in a narrow copy; None is
      a delta without one.
    - `pool_divisor` (M in the paper): a grid body reads max(1, round(N / M)) of the N channels of all taps together; a
      layer of a narrow copy so many of its own tap.
    - `entry_reduction`: the delta enters the source's pass at the first tap whose consumers return maps of at most
      1/entry_reduction of the image's height, and its layers leave earlier taps alone; with 1, and where the source has
      no such tap, it begins at the image.
    - `slots`: "channel" gives every channel of a tap a weight column of its own. With "ascending" and "rank" there are
      as many as chosen channels, which meet them by their numbers, or the strongest first.
    - `taps`: the taps that the layers subscribe to; None means all from the entry on.
    - `head_last`, `head_taps`: the head reads the source's last features, and the averages of these taps (None: all);
      with `head_std` also their channels' standard deviations over the cells of the grid.
    - `head_divisor`: the head reads max(1, round(N / head_divisor)) of those N values; 1 reads all.
    - `head_bits`: what a file takes for each of the head's weights over them in a grid delta, 8 or 4.
    """

    num_classes: int
    width_divisor: int | None = 8
    pool_divisor: int = 8
    grid_width: int | None = None
    grid_blocks: int = 3
    grid_reduction: int = 32
    global_pool: GlobalPool = "avg"
    entry_reduction: int = 1
    slots: Slots = "channel"
    taps: tuple[str, ...] | None = None
    head_last: bool = True
    head_taps: tuple[str, ...] | None = None
    head_std: bool = False
    head_divisor: int = 1
    head_bits: int = 8

    def __post_init__(self) -> None:
        if not isinstance(self.num_classes, int) or self.num_classes < 2:
            raise DeltaError(f"a task needs at least 2 classes; {self.num_classes!r} given")
        for name in _WHOLE:
            value = getattr(self, name)
            if name in _OPTIONAL and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise DeltaError(f"{name} is {value!r}; expected a whole number of 1 or more")
        if self.grid_width is not None and self.width_divisor is not None:
            raise DeltaError(
                "grid_width and width_divisor are given; a delta has a grid body or a narrow copy, not both"
            )
        if self.slots not in get_args(Slots):
            raise DeltaError(f"slots is {self.slots!r}; expected one of {', '.join(get_args(Slots))}")
        if self.global_pool not in get_args(GlobalPool):
            raise DeltaError(f"global_pool is {self.global_pool!r}; expected one of {', '.join(get_args(GlobalPool))}")
        if self.head_bits not in (4, 8):
            raise DeltaError(f"head_bits is {self.head_bits!r}; expected 8 or 4")
        for name in ("head_last", "head_std"):
            if not isinstance(getattr(self, name), bool):
                raise DeltaError(f"{name} is {getattr(self, name)!r}; expected true or false")
        for name in ("taps", "head_taps"):
            taps = getattr(self, name)
            if taps is not None and not (isinstance(taps, tuple) and all(isinstance(tap, str) for tap in taps)):
                raise DeltaError(f"{name} is {taps!r}; expected names of taps, or none at all for every tap")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DeltaSpec:
        """From JSON values; raises DeltaError for missing or unknown settings or values of another type."""
        expected = {field.name for field in fields(cls)}
        if set(values) != expected:
            unknown = sorted(set(values) ^ expected)
            raise DeltaError(f"the delta's settings differ from the expected ones in: {', '.join(unknown)}")
        given: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**given)
