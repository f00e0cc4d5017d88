"""What tasks cost beside their source: source alone, 1, 8 and 32 tasks, and images that each name their own task.

python benchmarks/hub_speed.py --source resnet50 --image-size 224 --batch-size 8 --rounds 9 --out FILE.json

Everything is run side by side in one process, one after the other within each round; figures are medians, and the
first round is not counted. Weights are random: speed does not depend on the numbers.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from torchsnow.compile import BACKENDS, EagerEngine, Engine, Program, Work
from torchsnow.compile.native import NativeEngine
from torchsnow.experiments.served import Heads, random_deltas
from torchsnow.methods import PRESETS
from torchsnow.source import load_source

TASKS = (1, 8, 32)
Step = Callable[[], object]


def engine_steps(name: str, engine: Engine, alone: Step, deltas: list, images: Tensor) -> dict[str, Step]:
    """The source alone, tasks on all images, and 32 tasks of which each image names one (or more, in turn)."""
    prepared = [engine.prepare(delta) for delta in deltas]
    rows = tuple(range(len(images)))

    def fan_out(count: int) -> Step:
        work = [Work(delta, rows) for delta in prepared[:count]]
        return lambda: engine.run(images, work)

    steps = {f"{name} source": alone, **{f"{name} {count}": fan_out(count) for count in TASKS}}
    many = images.repeat(32 // len(images), 1, 1, 1)
    routed = [Work(delta, (i,)) for i, delta in enumerate(prepared)]
    steps[f"{name} routed 32"] = lambda: engine.run(many, routed)
    return steps


def measure(steps: dict[str, Step], rounds: int) -> dict[str, float]:
    """Median seconds of each step."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(own[1:]) for name, own in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", default="resnet50")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--backends", default="native,eager,openvino")
    args = parser.parse_args()
    source = load_source(args.source, "random")
    deltas = random_deltas(source, PRESETS["default"].spec(10), max(TASKS))
    images = torch.randn(args.batch_size, 3, args.image_size, args.image_size)
    one, steps = Heads(source, 1, 10), dict[str, Step]()
    for backend in args.backends.split(","):
        if backend in ("native", "eager"):
            engine = NativeEngine(source) if backend == "native" else EagerEngine(source)
            alone = BACKENDS[backend](one, images)
            steps |= engine_steps(backend, engine, lambda alone=alone: alone(images), deltas, images)
        else:
            for name, network in (("source", one), ("8", Program(source, deltas[:8]))):
                run = BACKENDS[backend](network, images)
                steps[f"{backend} {name}"] = lambda run=run: run(images)
    medians = measure(steps, args.rounds)
    per_image = {k: v / (32 if "routed" in k else args.batch_size) for k, v in medians.items()}
    over = {k: v / per_image[f"{k.split()[0]} source"] for k, v in per_image.items()}
    result = {
        "settings": {key: str(value) for key, value in vars(args).items() if key != "out"},
        "threads": torch.get_num_threads(),
        "processor": platform.machine(),
        "torch": torch.__version__,
        "seconds_per_image": per_image,
        "over_source_alone": over,
        "over_8_separate_networks": {k: 8 / v for k, v in over.items() if k.endswith(" 8")},
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    for name, value in over.items():
        print(f"{name:20} {per_image[name] * 1e3:8.2f} ms/image, {value:.3f} of the source alone")


if __name__ == "__main__":
    main()
