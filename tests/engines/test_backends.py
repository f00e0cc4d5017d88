from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import Tensor, nn

from torchsnow.engines import Program
from torchsnow.engines.backends import BACKENDS, eager, inductor, onnx, openvino, part_size, validate_backend
from torchsnow.errors import CompileError
from torchsnow.experiments.serving_speed import Heads, random_deltas
from torchsnow.methods import PRESETS
from torchsnow.source import load_source

has_openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs torchsnow[openvino]")
has_onnx = pytest.mark.skipif(importlib.util.find_spec("onnxscript") is None, reason="needs torchsnow[onnx]")


@pytest.fixture(scope="module")
def deltas() -> Program:
    source = load_source("test_resnet", "random")
    return Program(source, random_deltas(source, PRESETS["default"].spec(3), 3)).eval()


class Unsteady(nn.Module):
    """Counts its calls, which no compiled graph does."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0.0

    def forward(self, images: Tensor) -> tuple[Tensor]:
        self.calls += 1
        return (images.mean((1, 2, 3)) + self.calls,)


def test_eager_is_the_network_in_eval_mode_without_gradients(deltas: Program) -> None:
    images = torch.randn(2, 3, 32, 32)
    outputs = eager(deltas.train(), images)(images)
    assert not deltas.training
    assert not any(output.requires_grad for output in outputs)
    with torch.no_grad():
        assert all(torch.equal(*pair) for pair in zip(outputs, deltas(images), strict=True))


@has_openvino
@pytest.mark.parametrize("batch_size", [4, 3])
def test_openvino_gives_the_same_in_the_same_order(deltas: Program, batch_size: int) -> None:
    run = openvino(deltas, torch.randn(batch_size, 3, 64, 64))  # of four cells: maps are averaged by pooling layers
    for _ in range(2):
        images = torch.randn(batch_size, 3, 64, 64) * torch.arange(1.0, batch_size + 1).view(-1, 1, 1, 1)
        with torch.no_grad():
            expected = deltas(images)
        torch.testing.assert_close(tuple(run(images)), expected, rtol=1e-4, atol=1e-4)
        assert expected[0].std(0).max() > 1e-3  # images that changed places would be seen


@has_onnx
@pytest.mark.parametrize("batch_size", [pytest.param(4, marks=pytest.mark.slow), 3])
def test_onnx_gives_the_same_for_batches_of_any_size(deltas: Program, batch_size: int) -> None:
    run = onnx(deltas, torch.randn(2, 3, 32, 32))
    images = torch.randn(batch_size, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(tuple(run(images)), deltas(images), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_inductor_gives_the_same(deltas: Program) -> None:
    run = inductor(deltas, torch.randn(2, 3, 32, 32))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(tuple(run(images)), deltas(images), rtol=1e-4, atol=1e-4)


@has_openvino
def test_one_network_in_openvino() -> None:
    network = Heads(load_source("test_efficientnet", "random"), 1, 3)
    images = torch.randn(2, 3, 32, 32)
    (output,) = openvino(network, images)(images)
    with torch.no_grad():
        torch.testing.assert_close(output, network(images)[0], rtol=1e-4, atol=1e-4)


@has_openvino
def test_other_outputs_than_pytorchs_are_never_timed() -> None:
    with pytest.raises(CompileError, match=r"differ from PyTorch's by 1\.0e\+00.*not used"):
        openvino(Unsteady(), torch.randn(2, 3, 8, 8))


def test_a_runtime_that_cannot_be_had_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CompileError, match="no backend 'tvm'; expected one of eager, inductor, onnx, openvino"):
        validate_backend("tvm", "cpu")
    with pytest.raises(CompileError, match="'openvino' works on the CPU"):
        validate_backend("openvino", "cuda")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name in ("openvino", "onnx"):
        with pytest.raises(CompileError, match=rf"pip install 'torchsnow\[{name}\]'"):
            validate_backend(name, "cpu")
    validate_backend("eager", "cuda")
    assert set(BACKENDS) == {"eager", "inductor", "onnx", "openvino"}


@pytest.mark.parametrize(
    ("batch_size", "num_threads", "size"), [(8, 2, 2), (4, 2, 2), (2, 2, 1), (7, 2, 1), (1, 1, 1), (8, 16, 1)]
)
def test_parts_leave_no_thread_idle(batch_size: int, num_threads: int, size: int) -> None:
    assert part_size(batch_size, num_threads) == size
    assert batch_size % size == 0
