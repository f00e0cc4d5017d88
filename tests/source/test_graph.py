from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchsnow.errors import SourceError
from torchsnow.source.graph import VALUE, to_meta, trace
from torchsnow.source.plan import FoldedPass, PlanOutput

SIZE = (3, 16, 16)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.register_buffer("ramp", torch.arange(8.0).view(1, 8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x)).mean((2, 3))


def run(model: nn.Module, x: Tensor) -> Tensor:
    """The traced graph with the model's numbers."""
    traced = trace(model, SIZE)
    (output,) = traced.graph.find_nodes(op="output")
    (y,) = FoldedPass(model, traced, torch.float32).plan([PlanOutput(output.args[0].name)])(x)
    return y


def test_every_value_has_its_shape_for_a_batch_of_two() -> None:
    traced = trace(timm.create_model("test_resnet", num_classes=0), (3, 64, 64))
    values = {node.name: node.meta[VALUE] for node in traced.graph.nodes if node.op != "output"}
    assert all(value.is_meta for value in values.values() if isinstance(value, Tensor))
    (image,) = (node.name for node in traced.graph.nodes if node.op == "placeholder")
    assert values[image].shape == (2, 3, 64, 64)
    assert values["layer1_0_conv1"].shape[0] == 2
    assert values["layer1_0_conv1"].shape[2:] == (16, 16)


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(Net(), nn.ReLU(inplace=True)).train()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    trace(model, SIZE)
    assert model.training
    assert isinstance(model[1], nn.ReLU)
    assert model[1].inplace
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


def test_a_meta_copy_has_shapes_only_and_keeps_what_is_shared() -> None:
    model = Net()
    model.b.weight = nn.Parameter(torch.zeros(8, 8, 3, 3))
    model.c = nn.Conv2d(8, 8, 3)
    model.c.weight = model.b.weight
    copied = to_meta(model)
    assert all(tensor.is_meta for tensor in copied.state_dict().values())
    assert copied.c.weight is copied.b.weight
    assert not model.b.weight.is_meta


class ByShape(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        if x.shape[-1] > 8:  # plain fx cannot decide this
            x = F.max_pool2d(x, 2)
        assert x.shape[1] == 8
        return self.b(x).mean((2, 3))


def test_control_flow_on_shapes_is_decided_at_the_traced_size() -> None:
    traced = trace(ByShape(), SIZE)
    assert "max_pool2d" in [node.name for node in traced.graph.nodes]
    assert "max_pool2d" not in [node.name for node in trace(ByShape(), (3, 8, 8)).graph.nodes]


class InPlaceMethod(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        early = self.b(y)  # reads what stood here before the change
        y.relu_()
        return (early + self.b(y)).mean((2, 3))


class InPlaceChain(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        early = self.b(y)
        return (early + y.mul_(0.5).add_(1.0).clamp_(0.0, 1.0)).mean((2, 3))


class InPlaceOperator(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        early = self.b(y)
        y += early
        y *= 2
        y -= 1
        y /= 3
        return (self.b(y) + early).mean((2, 3))


class InPlaceFunction(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        early = self.b(y)
        return (early + F.relu(y, inplace=True)).mean((2, 3))


class InPlaceLayer(Net):
    """A layer of its own kind that works in place: fx looks into it."""

    class Rectifier(nn.Module):
        inplace = True

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(x, self.inplace)

    def __init__(self) -> None:
        super().__init__()
        self.act = self.Rectifier()

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        early = self.b(y)
        return (early + self.act(y)).mean((2, 3))


class BufferInFunction(Net):
    def forward(self, x: Tensor) -> Tensor:
        return (self.a(x) * self.ramp + torch.add(self.b(self.a(x)), self.ramp)).mean((2, 3))


@pytest.mark.parametrize(
    "kind", [InPlaceMethod, InPlaceChain, InPlaceOperator, InPlaceFunction, InPlaceLayer, BufferInFunction, ByShape]
)
def test_the_graph_computes_what_the_model_does(kind: type[Net]) -> None:
    torch.manual_seed(0)
    model, x = kind(), torch.randn(2, *SIZE)
    with torch.no_grad():
        torch.testing.assert_close(run(model, x), model(x))


@pytest.mark.parametrize("kind", [InPlaceMethod, InPlaceChain, InPlaceOperator, InPlaceFunction, InPlaceLayer])
def test_no_operation_of_the_graph_changes_its_input(kind: type[Net]) -> None:
    for node in trace(kind(), SIZE).graph.nodes:
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        assert name not in ("iadd", "isub", "imul", "itruediv")
        assert node.op != "call_method" or not name.endswith("_")
        assert node.kwargs.get("inplace") in (None, False)


class Unused(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.b(self.a(x)).square()
        return self.a(x).mean((2, 3))


def test_dead_code_is_dropped() -> None:
    assert "b" not in [node.target for node in trace(Unused(), SIZE).graph.nodes]


class ByValue(Net):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            x = -x
        return super().forward(x)


@pytest.mark.parametrize(
    ("model", "size", "named"), [(ByValue(), SIZE, "ByValue"), (Net(), (4, 16, 16), "Net.*4, 16, 16")]
)
def test_what_cannot_be_traced_is_refused_by_name(model: nn.Module, size: tuple[int, int, int], named: str) -> None:
    with pytest.raises(SourceError, match=f"cannot trace {named}"):
        trace(model, size)
