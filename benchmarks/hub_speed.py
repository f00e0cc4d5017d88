"""What tasks cost next to their source: source alone, 1, 8 and 32 tasks, and images that each name their own task.

python benchmarks/hub_speed.py --source resnet50 --image-size 224 --batch-size 8 --rounds 9 --out FILE.json

Everything is run side by side in one process, one after the other within each round; figures are medians, and the
first round is not counted. Weights are random: speed does not depend on the numbers. With "-bf16" behind its name, a
backend gets the source in bfloat16.
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

from torchsnow.engines import BACKENDS, DeltaRequest, Engine, Program
from torchsnow.experiments.serving_speed import Heads, random_deltas
from torchsnow.methods import PRESETS
from torchsnow.source import Source, load_source

TASKS = (1, 8, 32)
Step = Callable[[], object]


def engine_steps(name: str, source: Source, alone: Step, deltas: list, images: Tensor) -> dict[str, Step]:
    """The source alone, tasks on all images, and 32 tasks of which each image names one (or more, in turn)."""
    engine = Engine(source)
    prepared = [engine.prepare(delta) for delta in deltas]
    rows = tuple(range(len(images)))

    def fan_out(count: int) -> Step:
        work = [DeltaRequest(delta, rows) for delta in prepared[:count]]
        return lambda: engine.run(images, work)

    steps = {f"{name} source": alone, **{f"{name} {count}": fan_out(count) for count in TASKS}}
    many = images.repeat(32 // len(images), 1, 1, 1)
    routed = [DeltaRequest(delta, (i,)) for i, delta in enumerate(prepared)]
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
    parser.add_argument("--backends", default="eager,eager-bf16,openvino")
    args = parser.parse_args()
    sources = {precision: load_source(args.source, "random", precision) for precision in ("fp32", "bf16")}
    spec = PRESETS["default"].spec_for(sources["fp32"], 10)
    deltas = random_deltas(sources["fp32"], spec, max(TASKS))
    images = torch.randn(args.batch_size, 3, args.image_size, args.image_size)
    steps = dict[str, Step]()
    for name in args.backends.split(","):
        backend, _, precision = name.partition("-")
        source = sources[precision or "fp32"]
        one = Heads(source, 1, 10)
        if backend == "eager":
            alone = BACKENDS[backend](one, images)
            steps |= engine_steps(name, source, lambda alone=alone: alone(images), deltas, images)
        else:
            for what, network in (("source", one), ("8", Program(source, deltas[:8]))):
                run = BACKENDS[backend](network, images)
                steps[f"{name} {what}"] = lambda run=run: run(images)
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
    if "eager 8" in per_image:
        eights = {k: v for k, v in per_image.items() if k.endswith(" 8")}
        result["times_as_fast_as_eager_with_8"] = {k: per_image["eager 8"] / v for k, v in eights.items()}
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    for name, value in over.items():
        print(f"{name:20} {per_image[name] * 1e3:8.2f} ms/image, {value:.3f} of the source alone")


if __name__ == "__main__":
    main()
