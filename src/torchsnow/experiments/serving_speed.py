"""Images per second when many tasks look at every image: a network each, heads on one source, SNOW on one source."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from torchsnow.data import eval_transform, read_image
from torchsnow.delta import Delta, DeltaSpec
from torchsnow.delta.cost import delta_cost, source_cost
from torchsnow.engines import BACKENDS, Program, Runner
from torchsnow.engines.backends import eager
from torchsnow.experiments.measuring import Progress, Step, Workload, median_times_s, peak_bytes, silent
from torchsnow.methods import PRESETS
from torchsnow.source import Framing, Request, Source

KINDS = {"separate": "separate networks", "heads": "heads on one source", "snow": "SNOW"}
MOST_HELD = 10  # separate networks in memory; their weights leave every cache before the next round as it is
_PHOTO_PIXELS = (500, 375)  # as most of ImageNet
_QUALITY = 90


class MultiplyAdds(NamedTuple):
    """Multiply-adds for one image, at the source's own size."""

    source: int
    head: int
    delta: int

    def limit(self, kind: str, tasks: int) -> float:
        """How many times as fast as separate networks this kind would be if nothing but multiply-adds took time."""
        separate = tasks * (self.source + self.head)
        shared = {"heads": self.source + tasks * self.head, "snow": self.source + tasks * self.delta}
        return separate / shared.get(kind, separate)


class Throughput(NamedTuple):
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


class Heads(nn.Module):
    """One source pass and a linear layer per task: images (B, 3, H, W) -> logits (B, num_classes) of every task.

    With one task it is a network of its own: the fine-tuned one, batch norms folded as in every source pass.
    """

    def __init__(self, source: Source, num_tasks: int, num_classes: int) -> None:
        super().__init__()
        self.source = source
        self.layers = nn.ModuleList(nn.Linear(source.num_features, num_classes) for _ in range(num_tasks))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        last = self.source(images, Request(last=True)).last
        return tuple(layer(last) for layer in self.layers)


def random_deltas(source: Source, spec: DeltaSpec, count: int) -> list[Delta]:
    """Frozen deltas, each of which chose other channels: what a delta costs does not depend on how well it was
    trained, but which channels many of them read together does. torch's global generator is left as it was."""
    deltas = []
    with torch.random.fork_rng(devices=[]):
        for seed in range(count):
            torch.manual_seed(seed)
            delta = Delta(source, spec).eval()
            if (grid := delta.grid_pool) is not None:
                index = torch.randperm(grid.num_chs)[: grid.num_pooled].sort().values
                delta.subscribe(index, torch.ones(grid.num_pooled))
            for pool in delta.named_pools().values():
                nn.init.uniform_(pool.weight, 0.5, 1.5)
            deltas.append(delta.freeze(source))
    return deltas


def shape_of(load: Workload, source: Source) -> DeltaSpec:
    """The shape of all deltas: that of SNOW's default preset on the source."""
    return PRESETS["default"].spec_for(source, load.num_classes)


def multiply_adds(load: Workload, source: Source) -> MultiplyAdds:
    """Counted on shapes alone."""
    delta = delta_cost(source, shape_of(load, source)).multiply_adds
    return MultiplyAdds(source_cost(source).multiply_adds, source.num_features * load.num_classes, delta)


def throughput(
    load: Workload,
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
    source, images, make = load.load_source(), load.images(), BACKENDS[load.backend]
    adds, memory = multiply_adds(load, source), _memory_bytes(load, source)
    say(f"making {max(tasks)} deltas and {min(MOST_HELD, max(tasks))} separate networks")
    deltas = random_deltas(source, shape_of(load, source), max(tasks))
    networks = [  # what full fine-tuning leaves of a task
        make(Heads(load.load_source(), 1, load.num_classes), images) for _ in range(min(MOST_HELD, max(tasks)))
    ]
    transform = eval_transform(source.input_config, Framing(load.image_size))
    rows: list[Throughput] = []
    for count in tasks:
        say(f"measuring {count} task{'s'[: count > 1]}")
        steps: dict[str, Step] = {
            "separate": partial(_one_after_another, networks, count, images),
            "heads": partial(make(Heads(source, count, load.num_classes), images), images),
            "snow": partial(make(Program(source, deltas[:count]), images), images),
            "decoding": partial(_decode, _photos(load.batch_size), transform),
        }
        times = median_times_s(steps, rounds, progress)
        rows += [
            Throughput(
                kind,
                count,
                pass_s=times[kind],
                images_per_s=load.batch_size / times[kind],
                images_per_s_with_decoding=load.batch_size / (times[kind] + times["decoding"]),
                speedup=times["separate"] / times[kind],
                limit=adds.limit(kind, count),
                memory_bytes=memory[kind][0] + count * memory[kind][1],
            )
            for kind in KINDS
        ]
    return rows


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


def _memory_bytes(load: Workload, source: Source) -> dict[str, tuple[int, int]]:
    """By kind, bytes whatever the number of tasks, the peak of a pass among them, and bytes of each task.

    Weights are counted, passes measured in processes of their own. A pass takes no more for more tasks: they come one
    after the other.
    """
    (delta,) = random_deltas(source, shape_of(load, source), 1)
    network, head = _num_bytes(source.model), _num_bytes(nn.Linear(source.num_features, load.num_classes))
    heads, snow = (peak_bytes(load.device, partial(_pass, load, kind), whole=False) for kind in ("heads", "snow"))
    return {
        "separate": (heads, network + head),
        "heads": (network + heads, head),
        "snow": (network + snow, _num_bytes(delta)),
    }


def _pass(load: Workload, kind: str) -> Step:
    """One pass for two tasks, after everything that a first pass leaves behind is there."""
    source, images = load.load_source(), load.images()
    deltas = random_deltas(source, shape_of(load, source), 2) if kind == "snow" else []
    run = eager(Program(source, deltas) if deltas else Heads(source, 2, load.num_classes), images)
    run(images[:1])
    return partial(run, images)


def _num_bytes(module: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in (*module.parameters(), *module.buffers()))
