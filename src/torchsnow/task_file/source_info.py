"""Which source a task or a hub belongs to, as it is written down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from torchsnow.source.config import InputConfig, Precision
from torchsnow.task_file.json_shape import Within, validate_shape

if TYPE_CHECKING:  # a description needs no torch
    from torchsnow.source import Source

_TEXT = Within(str, 1, 1_000)
_SHAPE = {
    "name": _TEXT,
    "weights": Within(str, 1, 10_000),  # it may be a path
    "fingerprint": _TEXT,
    "input_config": {"input_size": [int], "mean": [float], "std": [float], "interpolation": _TEXT, "crop_pct": float},
    "precision": _TEXT,
}


@dataclass(frozen=True)
class SourceInfo:
    """A source without its numbers: enough to load it by name and, by `fingerprint`, to know it is the same one."""

    name: str
    weights: str
    fingerprint: str
    input_config: InputConfig
    precision: Precision

    @classmethod
    def of(cls, source: Source) -> SourceInfo:
        """Describe a source; its fingerprint reads all its weights once."""
        return cls(source.name, source.weights, source.fingerprint, source.input_config, source.precision)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "input_config": self.input_config.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SourceInfo:
        """From JSON values. Raises ValueError unless they are exactly the expected ones."""
        validate_shape(values, _SHAPE, "source")
        if values["precision"] not in ("fp32", "bf16"):
            raise ValueError(f"source.precision is {values['precision']!r}; expected 'fp32' or 'bf16'")
        for key in ("input_size", "mean", "std"):
            if len(values["input_config"][key]) != 3:
                raise ValueError(f"source.input_config.{key} is {values['input_config'][key]}; expected three numbers")
        return cls(**{**values, "input_config": InputConfig.from_mapping(values["input_config"])})

    def difference(self, other: SourceInfo) -> str | None:
        """What tells two sources apart, in words for an error; None when they compute the same."""
        if self.fingerprint == other.fingerprint:
            return None
        parts = {
            "name": self.name != other.name,
            "weights": self.weights != other.weights,
            "preprocessing": self.input_config != other.input_config,
        }
        differing = [part for part, differs in parts.items() if differs] or ["the numbers of the weights"]
        return f"{self} is not {other}; they differ in {', '.join(differing)}"

    def contradicts(self, other: SourceInfo) -> bool:
        """Whether two of one fingerprint differ in what goes into it."""
        return (self.name, self.input_config) != (other.name, other.input_config)

    def __str__(self) -> str:
        return f"{self.name} (weights {self.weights}, fingerprint {self.fingerprint[:12]})"
