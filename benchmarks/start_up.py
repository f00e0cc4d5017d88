"""CPU seconds that a verb takes before it works, each in a fresh process, next to those of torch and timm alone.

    python benchmarks/start_up.py

A hub without tasks is made in a temporary folder; no image is read. The lowest of several runs counts: others on the
machine only add to a time.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from torchsnow.hub import Hub
from torchsnow.source import load_source

RUNS = 3
READY = "from torchsnow.workflows.{0} import {1}; from torchsnow.source import load_source; load_source()"


def cpu_seconds(*words: str) -> float:
    """User and system time of one process, whatever its exit code."""
    before = os.times()
    subprocess.run([sys.executable, *words], capture_output=True, check=False)
    after = os.times()
    return after.children_user - before.children_user + after.children_system - before.children_system


def main() -> None:
    """Print a table."""
    with tempfile.TemporaryDirectory() as folder:
        hub = str(Hub.create(Path(folder) / "hub", load_source("test_resnet", "random")).folder.path)
        verb = ("-m", "torchsnow")
        rows = {
            "import torch": ("-c", "import torch"),
            "import torch, torchvision, timm": ("-c", "import torch, torchvision, timm"),
            "torchsnow --help": (*verb, "--help"),
            "torchsnow hub list": (*verb, "hub", "list", "--hub", hub),
            "torchsnow hub gc": (*verb, "hub", "gc", "--hub", hub),
            "train refuses --epochs 0": (*verb, "train", folder, "--epochs", "0"),
            "train refuses missing data": (*verb, "train", f"{folder}/nowhere"),
            "predict refuses a missing hub": (*verb, "predict", "x.jpg", "--hub", f"{folder}/nowhere"),
            "predict, with its source loaded": ("-c", READY.format("predictions", "predict_images")),
            "train, with its source loaded": ("-c", READY.format("training", "train_task")),
        }
        print("| | CPU seconds |\n|---|---|")
        for what, words in rows.items():
            print(f"| {what} | {min(cpu_seconds(*words) for _ in range(RUNS)):.2f} |", flush=True)


if __name__ == "__main__":
    main()
