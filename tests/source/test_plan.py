from __future__ import annotations

import pytest
import torch
from networks import TINY, image, lively_source, timm_model
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from torchsnow.source import InputConfig, Source
from torchsnow.source.plan import FoldedPass, PlanOutput


def plan_of(source: Source, *outputs: PlanOutput) -> torch.fx.GraphModule:
    return FoldedPass(source.model, source.traced, torch.float32).plan(outputs)


def test_batch_norms_are_folded_and_the_result_is_the_same() -> None:
    source = lively_source("resnet18")
    plan = plan_of(source, PlanOutput(source.last_node.name))
    assert any(isinstance(module, nn.BatchNorm2d) for module in source.modules())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in plan.modules())
    with torch.no_grad():
        expected = timm_model("resnet18")(image())
    torch.testing.assert_close(plan(image())[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_making_and_running_a_plan_leaves_the_model_as_it_was(name: str, dtype: torch.dtype) -> None:
    source = lively_source(name)
    before = {key: tensor.clone() for key, tensor in source.model.state_dict().items()}
    expected = source.model(image())
    plan = FoldedPass(source.model, source.traced, dtype).plan([PlanOutput(source.last_node.name)])
    plan(image().to(dtype))
    for key, tensor in source.model.state_dict().items():
        assert torch.equal(tensor, before[key]), key
        assert tensor.dtype == before[key].dtype
    assert torch.equal(source.model(image()), expected)
    assert not any(parameter.requires_grad for parameter in plan.parameters())


@pytest.mark.parametrize("name", TINY)
def test_no_layer_of_a_plan_works_in_place(name: str) -> None:
    source = lively_source(name)
    plan = plan_of(source, PlanOutput(source.last_node.name))
    assert not any(getattr(module, "inplace", False) for module in plan.modules())


@pytest.mark.parametrize("name", TINY)
def test_each_tap_alone_equals_the_same_tap_of_the_whole_pass(name: str) -> None:
    """An operation after a tap that changed it in place would show here."""
    source = lively_source(name)
    together = source(image())
    for tap in list(source.taps.values())[::5]:
        (alone,) = plan_of(source, PlanOutput(tap.node))(image())
        torch.testing.assert_close(alone, together.taps[tap.name], rtol=1e-5, atol=1e-5)


def test_a_plan_ends_with_the_last_thing_that_is_wanted() -> None:
    source = lively_source("resnet18")
    plan = plan_of(source, PlanOutput(source.taps["layer1.1.conv2"].node))
    run = [str(node.target) for node in plan.graph.nodes if node.op == "call_module"]
    assert "layer1.1.conv1" in run
    assert not any(target.startswith(("layer1.1.conv2", "layer2", "layer3", "layer4")) for target in run)
    assert not hasattr(plan, "layer4")


def test_channels_of_a_value() -> None:
    source = lively_source("test_convnext")
    for tap in list(source.taps.values())[::4]:
        idx = torch.tensor([3, 0, 5])
        outputs = (PlanOutput(tap.node, kind, tap.dim) for kind in ("whole", "channels"))
        whole, chosen = plan_of(source, *outputs)(image(), idx)
        assert torch.equal(chosen, whole.index_select(tap.dim, idx))


class Repeating(nn.Module):
    """Uses the same convolution and norm twice, which folding in place would apply twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.norm = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        nn.init.uniform_(self.norm.running_mean)  # type: ignore[arg-type]
        nn.init.uniform_(self.norm.running_var, 0.5, 2)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(2):
            x = self.norm(self.conv(x))
        return x.mean((2, 3))


class RepeatingTheConvolution(Repeating):
    """Uses the same convolution before two norms."""

    def __init__(self) -> None:
        super().__init__()
        self.other_norm = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(self.stem(x)))
        return self.other_norm(self.conv(x)).mean((2, 3))


class RepeatingTheNorm(Repeating):
    """Uses the same norm, with its activation, after two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.other_conv = nn.Conv2d(8, 8, 3)
        self.norm_act = BatchNormAct2d(8)
        self.norm_act.load_state_dict(self.norm.state_dict())

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm_act(self.conv(self.stem(x)))
        return self.norm_act(self.other_conv(x)).mean((2, 3))


class ReadBeforeTheNorm(Repeating):
    """Reads a convolution's raw output as well as its norm's."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.stem(x))
        return (x + self.norm(x)).mean((2, 3))


@pytest.mark.parametrize("kind", [Repeating, RepeatingTheConvolution, RepeatingTheNorm, ReadBeforeTheNorm])
def test_norms_that_cannot_be_folded_stay(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    config = InputConfig((3, 16, 16), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bilinear", 1.0)
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = model(x)
    torch.testing.assert_close(Source(model, "toy", config, "random")(x).last, expected)
