from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import torchsnow as ts
from scripts import load_script

EXAMPLE = Path(__file__).parents[2] / "examples" / "avalanche_hub.py"


def test_it_compiles() -> None:
    compile(EXAMPLE.read_text(encoding="utf-8"), EXAMPLE.name, "exec")


@pytest.mark.filterwarnings("ignore")  # Avalanche's own
def test_a_tiny_benchmark_is_learned_without_forgetting(tmp_path: Path) -> None:
    """Where Avalanche is installed: three experiences of two classes that differ in one colour."""
    benchmarks: Any = pytest.importorskip("avalanche.benchmarks", exc_type=ImportError)
    module = load_script(EXAMPLE)
    source = ts.load_source("test_resnet", "random")
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(96) % 6
    images = 0.3 * torch.randn(96, 3, 32, 32, generator=generator)
    images[torch.arange(96), targets % 3] += targets.sub(2.5).sign()[:, None, None]
    train, test = (module.labelled(images[part], targets[part]) for part in (slice(72), slice(72, 96)))
    benchmark = benchmarks.nc_benchmark(train, test, 3, task_labels=True, fixed_class_order=[0, 3, 1, 4, 2, 5])
    hub = ts.Hub.create(tmp_path / "hub", source)
    *_, last = module.run(benchmark, hub, epochs=3)
    assert hub.names() == ["experience-00", "experience-01", "experience-02"]
    assert hub.task("experience-01").classes == ("1", "4")
    assert hub.verify() == []
    assert last["StreamForgetting/eval_phase/test_stream"] == 0.0
    assert module.average_accuracy(last) > 0.9
