"""All methods by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torchsnow.errors import TrainingError
from torchsnow.methods.bn import make_bn
from torchsnow.methods.features import make_features
from torchsnow.methods.full import make_full
from torchsnow.methods.head import make_head
from torchsnow.methods.lora import make_lora
from torchsnow.methods.presets import PRESETS
from torchsnow.methods.random_choice import make_random
from torchsnow.methods.scratch import make_scratch
from torchsnow.methods.side import make_side
from torchsnow.methods.snow import make_snow
from torchsnow.methods.taps import make_taps
from torchsnow.source.source import Source
from torchsnow.train.contract import Method

FINE_TUNING = ("default", "frozen-bn", "probe")
Make = Callable[[Source, int, int, str, Mapping[str, Any]], Method]


@dataclass(frozen=True)
class Kind:
    """One method by its name.

    `about` says what trains; `make` is (source, num_classes, seed, preset, changes) -> method; `lr` is the learning
    rate that it wants by default, with AdamW. `is_delta`: what it trains is a delta, which a hub can hold.
    """

    about: str
    make: Make
    lr: float
    is_delta: bool = False
    presets: tuple[str, ...] = ("default",)


def _plain(make: Callable[[Source, int, int], Method]) -> Make:
    """A method without presets or settings of its own; `make_method` has refused them."""
    return lambda source, num_classes, seed, preset, changes: make(source, num_classes, seed)


def _delta(make: Callable[[Source, int, int, Mapping[str, Any]], Method]) -> Make:
    return lambda source, num_classes, seed, preset, changes: make(source, num_classes, seed, changes)


METHODS: Mapping[str, Kind] = {
    "full": Kind(
        "every weight of the network, and a new last layer (FT)",
        lambda source, num_classes, seed, preset, changes: make_full(source, num_classes, seed, preset),
        5e-4,
        presets=FINE_TUNING,
    ),
    "features": Kind(
        "the last stage of the network; those before are frozen (FE)",
        lambda source, num_classes, seed, preset, changes: make_features(source, num_classes, seed, preset),
        1e-3,
        presets=FINE_TUNING,
    ),
    "head": Kind(
        "the last linear layer alone (FO)",
        lambda source, num_classes, seed, preset, changes: make_head(source, num_classes, preset == "probe"),
        1e-2,
        presets=("default", "probe"),
    ),
    "snow": Kind(
        "a delta that subscribes to the source",
        lambda source, num_classes, seed, preset, changes: make_snow(source, num_classes, preset, seed, changes),
        3e-3,
        is_delta=True,
        presets=tuple(PRESETS),
    ),
    "scratch": Kind("the delta without any subscription", _delta(make_scratch), 5e-3, is_delta=True),
    "random": Kind("SNOW with a random, fixed subscription", _delta(make_random), 3e-3, is_delta=True),
    "lora": Kind("low-rank updates of the dense layers (LoRA, by PEFT)", _plain(make_lora), 2e-3),
    "taps": Kind(
        "a linear layer over averages of all taps, chosen by a group lasso (Head2Toe)",
        lambda source, num_classes, seed, preset, changes: make_taps(source, num_classes),
        5e-3,
    ),
    "side": Kind("a delta next to the source's last features (side-tuning)", _delta(make_side), 5e-3, is_delta=True),
    "bn": Kind("batch norms and the last layer (model patch)", _plain(make_bn), 2e-3),
}


def make_method(
    name: str,
    source: Source,
    num_classes: int,
    preset: str = "default",
    seed: int = 0,
    changes: Mapping[str, Any] | None = None,
) -> Method:
    """A method by name, ready for `torchsnow.train.fit`.

    `changes` are settings of a delta and its pools (fields of DeltaSpec and PoolTraining) that differ from the
    preset. Raises TrainingError for an unknown name, preset or setting, and when the source cannot take the method.
    """
    kind = kind_of(name, preset)
    if changes and not kind.is_delta:
        raise TrainingError(f"the method {name!r} makes no delta, so it has no setting {next(iter(changes))!r}")
    return kind.make(source, num_classes, seed, preset, changes or {})


def kind_of(name: str, preset: str = "default") -> Kind:
    """The entry of a method. Raises TrainingError for an unknown name, or a preset that it does not have."""
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=1)
        hint = f"did you mean {near[0]!r}" if near else "expected one of " + ", ".join(METHODS)
        raise TrainingError(f"there is no method {name!r}; {hint}")
    if preset not in METHODS[name].presets:
        raise TrainingError(
            f"the method {name!r} has no preset {preset!r}; expected one of {', '.join(METHODS[name].presets)}"
        )
    return METHODS[name]


def split_name(text: str) -> tuple[str, str]:
    """ "METHOD" or "METHOD:PRESET" -> (method, preset). Raises TrainingError when there is no such method or preset."""
    name, _, preset = text.partition(":")
    kind_of(name, preset or "default")
    return name, preset or "default"
