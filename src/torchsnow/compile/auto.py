"""The fastest engine that gives what PyTorch gives."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchsnow.compile.backends import refuse_other_classes, refuse_other_outputs
from torchsnow.compile.engine import EagerEngine, Engine, Work
from torchsnow.compile.native import NativeEngine
from torchsnow.compile.native.build import cache_folder
from torchsnow.compile.pictures import smooth_images
from torchsnow.delta import Delta
from torchsnow.delta.fold import fold
from torchsnow.errors import CompileError
from torchsnow.files import write_atomically
from torchsnow.source import Source

CHOICES_FILE = "engines.json"
_ROUNDS = 3
_BATCH_SIZE = 4
_CHECKED_PIXELS = 96  # at most: a new task shall answer at once, and every operation is in a small picture too


@dataclass(frozen=True)
class _Prepared:
    engine: Engine
    delta: Any


class AutoEngine:
    """Every delta by the fastest engine that gives what PyTorch gives for it; else by PyTorch.

    Which engine is faster is measured with the first delta, and kept for the next start in `engines.json`, by source,
    precision, machine and number of threads. Every delta is compared with PyTorch before it is used: on a made-up
    picture, or on `images` (B, 3, S, S), normalised, such as a validation set, on which it must also name the same
    classes. `note` says what is used, and why nothing faster.
    """

    name = "auto"

    def __init__(self, source: Source, choices: Path | None = None, images: Tensor | None = None) -> None:
        self.source, self.note = source, ""
        self._images = images
        self._eager = EagerEngine(source)
        self._choices = choices or cache_folder().parent / CHOICES_FILE
        self._engine: Engine | None = None

    def prepare(self, delta: Delta) -> _Prepared:
        """See `Engine.prepare`."""
        if self._engine is None:
            self._engine = self._choose(delta)
        if self._engine is self._eager:
            return _Prepared(self._eager, self._eager.prepare(delta))
        delta = fold(delta)
        try:
            return _Prepared(self._engine, self._checked(self._engine, delta))
        except CompileError as error:
            self.note = f"{error}; this task is run by PyTorch, which is slower"
            return _Prepared(self._eager, self._eager.prepare(delta))

    def run(self, images: Tensor, work: Sequence[Work]) -> list[Tensor]:
        """See `Engine.run`; one source pass for each engine that the work needs, which is one but for odd deltas."""
        results: dict[int, Tensor] = {}
        for engine in dict.fromkeys(piece.prepared.engine for piece in work):
            own = [i for i, piece in enumerate(work) if piece.prepared.engine is engine]
            pieces = [Work(work[i].prepared.delta, work[i].rows) for i in own]
            results |= dict(zip(own, engine.run(images, pieces), strict=True))
        return [results[i] for i in range(len(work))]

    def _choose(self, delta: Delta) -> Engine:
        try:
            native = NativeEngine(self.source)
            native.prepare(delta)
        except CompileError as error:
            self.note = f"{error}; tasks are run by PyTorch, which is slower"
            return self._eager
        engines: dict[str, Engine] = {"native": native, "eager": self._eager}
        key = self._key()
        name = _known(self._choices).get(key)
        if name not in engines:
            times_s = _times_s(engines, delta, _pictures(self.source, _BATCH_SIZE))
            name = min(times_s, key=times_s.__getitem__)
            self._remember(key, name)
        self.note = f"tasks are run by the engine {name!r}"
        return engines[name]

    def _checked(self, engine: Engine, delta: Delta) -> Any:
        """A delta as the engine prepared it. Raises CompileError where its logits are not PyTorch's."""
        images = _pictures(self.source, 1, _CHECKED_PIXELS) if self._images is None else self._images
        prepared, rows, what = engine.prepare(delta), tuple(range(len(images))), f"the {engine.name} engine"
        given = engine.run(images, [Work(prepared, rows)])
        expected = self._eager.run(images, [Work(self._eager.prepare(delta), rows)])
        refuse_other_outputs(what, given, expected, self.source.precision)
        if self._images is not None:
            refuse_other_classes(what, given[0], expected[0])
        return prepared

    def _key(self) -> str:
        source = f"{self.source.fingerprint} {self.source.precision}"
        return f"{source} {platform.node()} {torch.get_num_threads()} {torch.__version__}"

    def _remember(self, key: str, name: str) -> None:
        """Keep a choice for the next start; a disk that refuses costs a measurement then, and nothing else."""
        try:
            self._choices.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(
                self._choices, json.dumps({**_known(self._choices), key: name}, indent=1, allow_nan=False), CompileError
            )
        except (OSError, CompileError):
            return


ENGINES: Mapping[str, Callable[[Source], Engine]] = {"auto": AutoEngine, "eager": EagerEngine, "native": NativeEngine}
"""By name: what makes an engine for a source."""


def _known(choices: Path) -> dict[str, str]:
    try:
        values = json.loads(choices.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(key): str(name) for key, name in values.items()} if isinstance(values, dict) else {}


def _times_s(engines: dict[str, Engine], delta: Delta, images: Tensor) -> dict[str, float]:
    """Median seconds of a batch, side by side, a first round not counted."""
    work = {name: [Work(engine.prepare(delta), tuple(range(len(images))))] for name, engine in engines.items()}
    times: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(_ROUNDS + 1):
        for name, engine in engines.items():
            start = time.perf_counter()
            engine.run(images, work[name])
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(own[1:]) for name, own in times.items()}


def _pictures(source: Source, count: int, most_pixels: int | None = None) -> Tensor:
    """Pictures at the source's own size, or at most so many pixels wide, on its device."""
    size = source.input_config.input_size[1]
    pictures = smooth_images(count, min(size, most_pixels or size), source.input_config)
    return pictures.to(next(source.parameters()).device)
