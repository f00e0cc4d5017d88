"""Time and memory of one training step: full fine-tuning, last layer only, and SNOW, side by side.

    python benchmarks/training_step.py --model resnet50 --image-size 224 --batch-size 16 --rounds 9

Times are taken in one process, method by method within each round, and quoted as ratios of medians. Peak memory is
the resident memory of a process of its own per method, above what it held before the networks were made. On CUDA
it is the allocator's peak. Random weights: neither depends on the numbers.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import resource
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import timm
import torch
from torch import nn
from torch.nn import functional as F

from torchsnow.delta import Delta
from torchsnow.methods import PRESETS
from torchsnow.model import SnowModel
from torchsnow.source import load_source

NUM_CLASSES = 10
METHODS = ("full", "head", "snow-fp32", "snow-bf16")
Step = Callable[[], None]


def make_step(method: str, model_name: str, image_size: int, batch_size: int, device: str) -> Step:
    """One optimiser step of a method on a fixed random batch."""
    model = make_model(method, model_name).to(device)
    model.train()
    if method == "head":
        model.eval()  # its frozen batch norms keep their statistics
    images = torch.randn(batch_size, 3, image_size, image_size, device=device)
    labels = torch.randint(0, NUM_CLASSES, (batch_size,), device=device)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-4, fused=True)

    def step() -> None:
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()

    return step


def make_model(method: str, model_name: str) -> nn.Module:
    """The network of a method, with random weights."""
    if method.startswith("snow"):
        source = load_source(model_name, "random", "bf16" if method.endswith("bf16") else "fp32")
        return SnowModel(source, Delta(source, PRESETS["default"].spec(NUM_CLASSES)))
    model: nn.Module = timm.create_model(model_name, num_classes=NUM_CLASSES)
    if method == "head":
        model.requires_grad_(False)
        model.get_classifier().requires_grad_(True)  # type: ignore[operator]
    return model


def median_times_s(args: argparse.Namespace) -> dict[str, float]:
    """Median seconds of a step per method; the first round is not counted."""
    steps = {method: make_step(method, args.model, args.image_size, args.batch_size, args.device) for method in METHODS}
    times: dict[str, list[float]] = {method: [] for method in METHODS}
    for round_number in range(args.rounds + 1):
        for method, step in steps.items():
            start = time.perf_counter()
            step()
            if round_number:
                times[method].append(time.perf_counter() - start)
    return {method: statistics.median(values) for method, values in times.items()}


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _measure_memory(method: str, args: argparse.Namespace) -> int:
    before = _resident_bytes()
    step = make_step(method, args.model, args.image_size, args.batch_size, args.device)
    for _ in range(3):
        step()
    if args.device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def peak_bytes(args: argparse.Namespace) -> dict[str, int]:
    """Peak memory of training per method, each in a process of its own."""
    result = {}
    for method in METHODS:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
            result[method] = executor.submit(_measure_memory, method, args).result()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    memory = peak_bytes(args)
    times = median_times_s(args)
    rows = {
        method: {
            "step_s": round(times[method], 4),
            "full_time_over_this": round(times["full"] / times[method], 2),
            "time_over_head": round(times[method] / times["head"], 2),
            "peak_mib": round(memory[method] / 2**20),
            "memory_over_full": round(memory[method] / memory["full"], 3),
        }
        for method in METHODS
    }
    settings = {key: value for key, value in vars(args).items() if key != "out"}
    versions = {"torch": torch.__version__, "timm": timm.__version__, "machine": platform.machine()}
    report = {**settings, **versions, "threads": torch.get_num_threads(), "methods": rows}
    name = f"training_step_{args.model}_{args.image_size}_{args.device}.json"
    out = args.out or Path(__file__).parent / "results" / name
    out.write_text(json.dumps(report, indent=1) + "\n")
    print(f"{'method':12s} {'step, s':>8s} {'full / this':>12s} {'this / head':>12s} {'peak, MiB':>10s} {'/ full':>7s}")
    for method, row in rows.items():
        print("{:12s} {:8.3f} {:12.2f} {:12.2f} {:10d} {:7.3f}".format(method, *row.values()))


if __name__ == "__main__":
    main()
