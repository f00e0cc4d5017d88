"""Images per second when many tasks look at every image: a network each, heads on one source, SNOW on one source."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from torchsnow.data import eval_transform, read_image
from torchsnow.delta import DeltaSpec
from torchsnow.delta.cost import delta_cost, source_cost
from torchsnow.engines import BACKENDS, Program, Runner, check_backend
from torchsnow.engines.backends import eager
from torchsnow.errors import ExperimentError
from torchsnow.experiments.measuring import Progress, Step, median_times_s, peak_bytes, silent
from torchsnow.experiments.served import Heads, random_deltas
from torchsnow.methods import PRESETS
from torchsnow.source import Framing, Source, load_source
from torchsnow.source.config import MAX_IMAGE_SIZE

KINDS = ("separate", "heads", "snow")
MOST_HELD = 10  # separate networks in memory; their weights leave every cache before the next round as it is
_PHOTO_PIXELS = (500, 375)  # as most of ImageNet
_QUALITY = 90


@dataclass(frozen=True)
class MultiplyAdds:
    """Multiply-adds for one image, at the source's own size."""

    source: int
    head: int
    delta: int

    def limit(self, kind: str, tasks: int) -> float:
        """How many times as fast as separate networks this kind would be if nothing but multiply-adds took time."""
        separate = tasks * (self.source + self.head)
        shared = {
            "separate": separate,
            "heads": self.source + tasks * self.head,
            "snow": self.source + tasks * self.delta,
        }
        return separate / shared[kind]


@dataclass(frozen=True)
class Throughput:
    """One kind of serving with so many tasks.

    `pass_s` are seconds for one batch through all tasks, `images_per_s` what that makes, and
    `images_per_s_with_decoding` the same when the batch is decoded from JPEG first, one image after the other.
    `speedup` is over separate networks in the same run; `limit` what it would be by multiply-adds. `memory_bytes` are
    the weights of all tasks and the peak of one pass, both in plain PyTorch.
    """

    kind: str
    tasks: int
    pass_s: float
    images_per_s: float
    images_per_s_with_decoding: float
    speedup: float
    limit: float
    memory_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Serving:
    """What is served, and how; picklable.

    `backend` is a name in `BACKENDS`, `device` "cpu" or "cuda"; images are square, of `image_size` pixels. Raises
    CompileError for a backend that cannot be had, ExperimentError for a size out of range.
    """

    source_name: str
    weights: str
    image_size: int
    batch_size: int
    backend: str
    device: str
    num_classes: int = 10

    def __post_init__(self) -> None:
        check_backend(self.backend, self.device)
        for name in ("image_size", "batch_size"):
            if getattr(self, name) < 1:
                raise ExperimentError(f"{name} is {getattr(self, name)}; expected a whole number of 1 or more")
        if self.image_size > MAX_IMAGE_SIZE:
            raise ExperimentError(f"image_size is {self.image_size}; expected {MAX_IMAGE_SIZE} pixels or fewer")

    def spec(self, source: Source) -> DeltaSpec:
        """The shape of all deltas: that of SNOW's default preset on the source."""
        return PRESETS["default"].spec_for(source, self.num_classes)

    def source(self) -> Source:
        """A source of its own at every call, on the CPU."""
        return load_source(self.source_name, self.weights)

    def images(self) -> Tensor:
        """A random batch, on the device."""
        return torch.randn(self.batch_size, 3, self.image_size, self.image_size, device=self.device)


def multiply_adds(serving: Serving, source: Source) -> MultiplyAdds:
    """Counted on shapes alone."""
    head = source.num_features * serving.num_classes
    return MultiplyAdds(source_cost(source).multiply_adds, head, delta_cost(source, serving.spec(source)).multiply_adds)


def throughput(
    serving: Serving,
    tasks: Sequence[int],
    rounds: int,
    say: Callable[[str], None] = lambda line: None,
    progress: Progress = silent,
) -> list[Throughput]:
    """Every kind with every number of tasks, ascending.

    For each number all kinds run side by side, kind by kind within each of the rounds; times are medians, and a round
    before the first is not counted. Of separate networks at most ten are held, and passed over again for more tasks.
    Every delta has its own random choice of channels. `say` is told what is being made, `progress` is called after
    every step: four per round, one more round than given, and number of tasks. Raises TorchsnowError for what
    cannot be measured.
    """
    source, images, make = serving.source(), serving.images(), BACKENDS[serving.backend]
    adds, memory = multiply_adds(serving, source), _Memory.measure(serving, source)
    say(f"making {max(tasks)} deltas and {min(MOST_HELD, max(tasks))} separate networks")
    deltas = random_deltas(source, serving.spec(source), max(tasks))
    networks = [make(_one_network(serving), images) for _ in range(min(MOST_HELD, max(tasks)))]
    decoding = partial(
        _decode, _photos(serving.batch_size), eval_transform(source.input_config, Framing(serving.image_size))
    )
    rows: list[Throughput] = []
    for count in tasks:
        say(f"measuring {count} task{'s'[: count > 1]}")
        steps: dict[str, Step] = {
            "separate": partial(_one_after_another, networks, count, images),
            "heads": partial(make(Heads(source, count, serving.num_classes), images), images),
            "snow": partial(make(Program(source, deltas[:count]), images), images),
            "decoding": decoding,
        }
        times = median_times_s(steps, rounds, progress)
        rows += [_row(kind, count, times, serving.batch_size, adds, memory) for kind in KINDS]
    return rows


def _row(
    kind: str, tasks: int, times: dict[str, float], batch_size: int, adds: MultiplyAdds, memory: _Memory
) -> Throughput:
    return Throughput(
        kind,
        tasks,
        pass_s=times[kind],
        images_per_s=batch_size / times[kind],
        images_per_s_with_decoding=batch_size / (times[kind] + times["decoding"]),
        speedup=times["separate"] / times[kind],
        limit=adds.limit(kind, tasks),
        memory_bytes=memory.of(kind, tasks),
    )


def _one_network(serving: Serving) -> Heads:
    """What full fine-tuning leaves of one task."""
    return Heads(serving.source(), 1, serving.num_classes)


def _one_after_another(networks: Sequence[Runner], count: int, images: Tensor) -> None:
    for k in range(count):
        networks[k % len(networks)](images)


def _photos(count: int) -> list[bytes]:
    """JPEG files of smooth random pictures, about as large as a photograph's."""
    noise = np.random.default_rng(0).integers(0, 256, (count, 47, 63, 3), dtype=np.uint8)
    files = [io.BytesIO() for _ in range(count)]
    for file, picture in zip(files, noise, strict=True):
        Image.fromarray(picture).resize(_PHOTO_PIXELS, Image.Resampling.BICUBIC).save(file, "JPEG", quality=_QUALITY)
    return [file.getvalue() for file in files]


def _decode(photos: Sequence[bytes], transform: Callable[[Image.Image], Tensor]) -> Tensor:
    return torch.stack([transform(read_image(io.BytesIO(photo))) for photo in photos])


@dataclass(frozen=True)
class _Memory:
    """Bytes of the weights of a network, a head and a delta, and of one pass of every kind beside its weights.

    A pass takes no more for more tasks: they come one after the other.
    """

    network: int
    head: int
    delta: int
    passes: dict[str, int]

    @classmethod
    def measure(cls, serving: Serving, source: Source) -> _Memory:
        """Weights are counted, passes measured in processes of their own."""
        head = nn.Linear(source.num_features, serving.num_classes)
        (delta,) = random_deltas(source, serving.spec(source), 1)
        passes = {kind: peak_bytes(serving.device, partial(_pass, serving, kind), whole=False) for kind in KINDS[1:]}
        passes["separate"] = passes["heads"]
        return cls(_num_bytes(source.model), _num_bytes(head), _num_bytes(delta), passes)

    def of(self, kind: str, tasks: int) -> int:
        weights = {
            "separate": tasks * (self.network + self.head),
            "heads": self.network + tasks * self.head,
            "snow": self.network + tasks * self.delta,
        }
        return weights[kind] + self.passes[kind]


def _pass(serving: Serving, kind: str) -> Step:
    """One pass for two tasks, after everything that a first pass leaves behind is there."""
    source, images = serving.source(), serving.images()
    deltas = random_deltas(source, serving.spec(source), 2) if kind == "snow" else []
    run = eager(Program(source, deltas) if deltas else Heads(source, 2, serving.num_classes), images)
    run(images[:1])
    return partial(run, images)


def _num_bytes(module: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in (*module.parameters(), *module.buffers()))
