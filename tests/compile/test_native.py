from __future__ import annotations

import os
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from sample_tasks import sample_task
from torchsnow.compile import EagerEngine, Work
from torchsnow.compile.backends import TOLERANCES
from torchsnow.compile.native import NativeEngine, build
from torchsnow.compile.native.fused import FusedConv2d, fuse
from torchsnow.delta import DeltaSpec
from torchsnow.errors import CompileError, SourceError
from torchsnow.experiments.served import random_deltas
from torchsnow.methods import PRESETS
from torchsnow.source import InputConfig, Source, load_source
from torchsnow.source.plan import FoldedPass, PlanOutput

pytestmark = pytest.mark.skipif(not (os.environ.get("CXX") or shutil.which("g++")), reason="needs a C++ compiler")

SOURCES = (
    "test_resnet",
    "test_efficientnet",
    "mobilenetv3_small_050",
    "tf_efficientnet_lite0",
    "resnet18",
    "test_convnext",
    "regnety_002",
    "densenet121",
    "ghostnet_050",
    "cs3darknet_s",
)


def answers(engine: Any, spec: DeltaSpec, images: Tensor, count: int = 2) -> list[Tensor]:
    """Logits of two deltas, one of which sees a part of the images alone."""
    rows = [tuple(range(len(images))), tuple(range(1, len(images), 2))]
    deltas = random_deltas(engine.source, spec, count)
    return engine.run(images, [Work(engine.prepare(delta), rows[i % 2]) for i, delta in enumerate(deltas)])


@pytest.fixture(scope="module")
def source() -> Source:
    return load_source("test_resnet", "random")


@pytest.mark.parametrize("image_size", [64, 50])
@pytest.mark.parametrize("name", SOURCES)
def test_it_gives_what_pytorch_gives(name: str, image_size: int) -> None:
    source = load_source(name, "random")
    images = torch.randn(3, 3, image_size, image_size)
    for spec in (PRESETS["default"].spec(3), PRESETS["paper"].spec(11)):
        given, expected = (answers(engine(source), spec, images) for engine in (NativeEngine, EagerEngine))
        for own, eagers in zip(given, expected, strict=True):
            torch.testing.assert_close(own, eagers, rtol=1e-4, atol=1e-4 * float(eagers.abs().max()))
        assert expected[0].std(0).max() > 0  # images that changed places would be seen


class Odd(nn.Module):
    """Rectangular kernels, dilation, pools that round up, and activations that no convolution takes over."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 24, (3, 5), stride=(2, 1), padding=(1, 2))
        self.b = nn.Conv2d(24, 40, 3, padding=2, dilation=2)
        self.pool = nn.MaxPool2d(3, 2, 1, ceil_mode=True)
        self.c = nn.Conv2d(40, 40, (1, 3), padding=(0, 1))
        self.mean = nn.AvgPool2d(3, 2, 1, count_include_pad=True, ceil_mode=True)
        self.d = nn.Conv2d(40, 40, 1, stride=2)
        self.acts = nn.ModuleList([nn.SiLU(), nn.GELU(), nn.Hardswish(), nn.Hardsigmoid(), nn.Sigmoid()])
        self.out = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.acts[1](self.b(self.acts[0](self.a(x))))
        x = self.pool(x)
        y = self.acts[2](self.c(x)) * self.acts[3](x)
        y = self.mean(y) + self.acts[4](self.mean(x))
        return self.out(torch.relu(self.d(y))).flatten(1)


def test_odd_shapes_and_activations() -> None:
    torch.manual_seed(0)
    config = InputConfig((3, 33, 47), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), "bilinear", 1.0)
    source = Source(Odd(), "odd", config, "random")
    images = torch.randn(2, 3, 33, 47)
    spec = DeltaSpec(5, width_divisor=2, pool_divisor=3, head_divisor=2)
    for own, eagers in zip(*(answers(e(source), spec, images) for e in (NativeEngine, EagerEngine)), strict=True):
        torch.testing.assert_close(own, eagers, rtol=1e-4, atol=1e-4)


class Parts(nn.Module):
    """Splits with a part named from the end, slices, concatenations, and norms that stand alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 32, 3, 2, 1), nn.BatchNorm2d(32)
        self.a, self.b, self.out = nn.Conv2d(12, 20, 3, padding=1), nn.Conv2d(40, 40, 1), nn.Conv2d(56, 40, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = self.norm(torch.relu(x) + x)
        parts = torch.split(x, [8, 12, 12], 1)
        x = torch.cat([parts[-1], self.a(parts[1]), parts[0]], 1)
        x = self.b(x)
        return self.out(torch.cat((x[:, :24], torch.sigmoid(x[:, 8:])), dim=1)).mean((2, 3))


def test_channels_that_move() -> None:
    torch.manual_seed(0)
    source = Source(Parts(), "parts", InputConfig((3, 32, 32), (0.5,) * 3, (0.2,) * 3, "bilinear", 1.0), "random")
    images = torch.randn(2, 3, 32, 32)
    spec = DeltaSpec(5, width_divisor=2, pool_divisor=2, head_divisor=2)
    for own, eagers in zip(*(answers(e(source), spec, images) for e in (NativeEngine, EagerEngine)), strict=True):
        torch.testing.assert_close(own, eagers, rtol=1e-4, atol=1e-4)


class Broadcasting(nn.Module):
    """Adds one value per channel to a map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gate, self.out = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 24, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        return self.out(x + self.gate(x.mean((2, 3), keepdim=True))).mean((2, 3))


class NormFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.stem, self.out = nn.BatchNorm2d(3), nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 24, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.stem(self.norm(x)))).mean((2, 3))


@pytest.mark.parametrize(
    ("network", "message"), [(Broadcasting, "does not know"), (NormFirst, "by convolutions alone")]
)
def test_what_would_read_beyond_a_map_is_refused(network: type[nn.Module], message: str) -> None:
    source = Source(network(), "odd", InputConfig((3, 32, 32), (0.5,) * 3, (0.2,) * 3, "bilinear", 1.0), "random")
    (delta,) = random_deltas(source, DeltaSpec(3, width_divisor=2, pool_divisor=2), 1)
    with pytest.raises(CompileError, match=message):
        NativeEngine(source).prepare(delta)


def test_what_it_does_not_know_is_named() -> None:
    source = load_source("convnextv2_atto", "random")
    (delta,) = random_deltas(source, PRESETS["default"].spec(3), 1)
    with pytest.raises(CompileError, match=r"'native' does not know \w+ as in '\w+'"):
        NativeEngine(source).prepare(delta)


@pytest.mark.parametrize("image_size", [64, 50])
@pytest.mark.parametrize("name", ["test_efficientnet", "tf_efficientnet_lite0", "resnet18"])
def test_a_source_in_bfloat16_runs_in_it(name: str, image_size: int) -> None:
    full = load_source(name, "random")
    half = Source(full.model, full.name, full.input_config, full.weights, "bf16")
    images = torch.randn(3, 3, image_size, image_size)
    engines = (NativeEngine(half), EagerEngine(half), EagerEngine(full))
    given, expected, exact = (answers(engine, PRESETS["default"].spec(3), images) for engine in engines)
    for own, eagers, exacts in zip(given, expected, exact, strict=True):
        torch.testing.assert_close(own, eagers, rtol=0, atol=TOLERANCES["bf16"] * max(1.0, float(eagers.abs().max())))
        assert not torch.allclose(own, exacts, rtol=1e-6, atol=1e-7)


def test_images_of_another_shape_are_refused(source: Source) -> None:
    with pytest.raises(SourceError, match="cannot take images"):
        answers(NativeEngine(source), PRESETS["default"].spec(3), torch.randn(2, 4, 32, 32))


def test_deltas_of_several_shapes_share_a_pass(source: Source) -> None:
    engine, images = NativeEngine(source), torch.randn(2, 3, 32, 32)
    narrow, wide = DeltaSpec(3, width_divisor=16), DeltaSpec(2, width_divisor=4)
    deltas = [*random_deltas(source, narrow, 2), *random_deltas(source, wide, 1)]
    prepared = [engine.prepare(delta) for delta in deltas]
    together = engine.run(images, [Work(one, (0, 1)) for one in prepared])
    for one, logits in zip(prepared, together, strict=True):
        torch.testing.assert_close(engine.run(images, [Work(one, (0, 1))])[0], logits, rtol=0, atol=0)


@pytest.mark.parametrize("beside", [False, True])
def test_a_head_alone_needs_no_maps(source: Source, beside: bool) -> None:
    alone = sample_task(source, width_divisor=None, head_divisor=4).delta
    deltas = [alone, *random_deltas(source, DeltaSpec(3), int(beside))]
    images = torch.randn(3, 3, 32, 32)
    for num_images in (1, 3):  # shared by the threads, and in parts
        given, expected = (
            engine.run(images[:num_images], [Work(engine.prepare(delta), tuple(range(num_images))) for delta in deltas])
            for engine in (NativeEngine(source), EagerEngine(source))
        )
        for own, eagers in zip(given, expected, strict=True):
            torch.testing.assert_close(own, eagers, rtol=1e-4, atol=1e-4 * float(eagers.abs().max()))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["test_resnet", "tf_efficientnet_lite0"])
def test_threads_that_share_an_image_change_nothing(name: str, precision: Any) -> None:
    """One image is split between threads, row by row, and the deltas' layers add up as they did."""
    source = load_source(name, "random", precision)
    images = torch.randn(1, 3, 50, 50)
    one, three = (answers(NativeEngine(source, n), PRESETS["default"].spec(3), images, count=3) for n in (1, 3))
    tolerance = TOLERANCES[precision] if precision == "bf16" else 1e-5  # oneDNN splits its sums by threads
    for own, expected in zip(three, one, strict=True):
        torch.testing.assert_close(own, expected, rtol=tolerance, atol=tolerance)


def test_memory_follows_the_work(source: Source) -> None:
    """Room for many tasks is given back when few are asked for."""
    engine, images = NativeEngine(source, num_threads=1), torch.randn(1, 3, 32, 32)
    many = [Work(engine.prepare(delta), (0,)) for delta in random_deltas(source, PRESETS["default"].spec(3), 12)]
    held = []
    for work in (many, many, many[:1]):
        engine.run(images, work)
        held.append(sum(room.nbytes for room in engine._memory._free))
    assert held[0] == held[1] > 4 * held[2] > 0


def test_threads_do_not_disturb_each_other(source: Source) -> None:
    engine = NativeEngine(source, num_threads=3)
    work = [Work(engine.prepare(delta), (0, 2)) for delta in random_deltas(source, PRESETS["default"].spec(3), 2)]
    inputs = [torch.randn(3, 3, 32, 32) for _ in range(4)]
    expected = [engine.run(images, work) for images in inputs]
    given: list[list[list[Tensor]]] = [[] for _ in inputs]

    def ask(i: int) -> None:
        given[i] = [engine.run(inputs[i], work) for _ in range(5)]

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for own, alone in zip(given, expected, strict=True):
        assert len(own) == 5
        assert all(torch.equal(*pair) for again in own for pair in zip(again, alone, strict=True))


def test_a_fused_source_gives_what_it_gave() -> None:
    model = timm.create_model("resnet18", num_classes=0).eval()
    source = Source(model, "resnet18", InputConfig((3, 64, 64), (0.5,) * 3, (0.2,) * 3, "bilinear", 1.0), "random")
    outputs = (PlanOutput(source.last_node.name),)
    plan = FoldedPass(source.model, source.traced, torch.float32).plan(outputs)
    images = torch.randn(2, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = plan(images)[0]
        fused = fuse(plan)
        torch.testing.assert_close(fused(images)[0], expected, rtol=1e-4, atol=1e-5)
    kinds = [type(module) for module in fused.modules()]
    assert kinds.count(FusedConv2d) == 20
    assert nn.ReLU not in kinds


# the compiler


@pytest.fixture
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "torchsnow" / "kernels"


def test_the_kernel_is_compiled_once(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build.kernel.__wrapped__()
    (made,) = empty_cache.iterdir()
    monkeypatch.setattr(subprocess, "run", None)
    build.kernel.__wrapped__()
    assert list(empty_cache.iterdir()) == [made]


def test_without_a_compiler(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(CompileError, match=r"needs a C\+\+ compiler"):
        build.kernel.__wrapped__()


def test_a_compiler_that_fails_leaves_nothing(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(CompileError, match="false cannot compile the kernel"):
        build.kernel.__wrapped__()
    assert list(empty_cache.iterdir()) == []


def test_a_damaged_kernel_says_what_to_do(empty_cache: Path) -> None:
    empty_cache.mkdir(parents=True)
    (empty_cache / f"kernel-{build._key()}.so").write_bytes(b"damaged")
    with pytest.raises(CompileError, match=r"cannot be loaded.*delete it"):
        build.kernel.__wrapped__()
