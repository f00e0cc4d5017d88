from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchsnow.delta import Delta, DeltaSpec
from torchsnow.model import SnowModel
from torchsnow.pooling import ChannelPooling
from torchsnow.source import Request, Source, load_source, make_source
from torchsnow.source.grid import ONE_CELL


@pytest.fixture(scope="module")
def source() -> Source:
    return load_source("test_resnet", weights="random")


def images(batch: int = 4, size: int = 64) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(3))


def make_model(source: Source, **settings: object) -> SnowModel:
    torch.manual_seed(0)
    return SnowModel(source, Delta(source, DeltaSpec.from_dict({**DeltaSpec(3, 4, 4).to_dict(), **settings})))


def test_images_to_logits(source: Source) -> None:
    model = make_model(source)
    assert model(images()).shape == (4, 3)
    model.eval()
    grids = {ONE_CELL: torch.arange(source.num_chs)}
    everything = source(images(), Request(taps=tuple(source.taps), grids=grids, last=True))
    with torch.no_grad():
        torch.testing.assert_close(model(images()), model.delta(everything), rtol=1e-4, atol=1e-4)


def test_only_the_delta_is_trained(source: Source) -> None:
    model = make_model(source)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert {id(p) for p in trained} == {id(p) for p in model.delta.parameters()}
    assert not any(module.training for module in model.train().source.modules())
    assert all(module.training for module in model.delta.modules())


def test_a_plain_loop_learns_a_task(source: Source) -> None:
    """Dark, middling and bright images; chance is a loss of 1.1."""
    model = make_model(source).train()
    labels = torch.arange(12) % 3
    pictures = 0.3 * images(12, 32) + (labels.float() - 1).view(-1, 1, 1, 1)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(15):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(pictures), labels)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.2
    assert model.eval()(pictures).argmax(1).tolist() == labels.tolist()


def test_freezing_keeps_the_logits_and_the_source(source: Source) -> None:
    model = make_model(source).train()
    with torch.no_grad():
        model(images())
    frozen = model.freeze()
    assert frozen.source is source
    assert frozen.delta.frozen
    torch.testing.assert_close(frozen.eval()(images()), model.eval()(images()), rtol=1e-5, atol=1e-5)


def test_a_bfloat16_source_under_a_float32_delta(source: Source) -> None:
    exact = make_model(source)
    rounded = SnowModel(load_source("test_resnet", weights="random", precision="bf16"), exact.delta)
    exact.train()
    for model in (exact, rounded):
        F.cross_entropy(model(images()), torch.tensor([0, 1, 2, 0])).backward()
    difference = rounded.eval()(images()) - exact.eval()(images())
    assert difference.abs().max() < 0.05 * exact(images()).abs().max()


class ReadingConv(nn.Module):
    """One convolution of [x, the pooled channels of a tap], with a weight column for every channel of the tap."""

    def __init__(self, in_chs: int, out_chs: int, tap_chs: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.own = nn.Parameter(torch.empty(out_chs, in_chs, kernel, kernel))
        self.columns = nn.Parameter(torch.empty(out_chs, tap_chs, kernel, kernel))
        self.stride, self.padding = stride, kernel // 2

    def forward(self, x: Tensor, tap: Tensor, w: Tensor) -> Tensor:
        idx = w.argsort(descending=True)[: tap.shape[1] // 8]
        both = torch.cat([x, tap[:, idx] * w[idx].view(1, -1, 1, 1)], 1)
        return F.conv2d(both, torch.cat([self.own, self.columns[:, idx]], 1), None, self.stride, self.padding)


class Block(nn.Module):
    """A basic block of an eighth of the width; `first` and `second` are the weights of its two pools."""

    def __init__(self, in_chs: int, chs: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.ones(8 * in_chs)), nn.Parameter(torch.ones(8 * chs))
        self.conv1 = ReadingConv(in_chs, chs, 8 * in_chs, 3, stride)
        self.bn1 = nn.BatchNorm2d(chs)
        self.conv2 = ReadingConv(chs, chs, 8 * chs, 3, 1)
        self.bn2 = nn.BatchNorm2d(chs)
        self.shortcut = ReadingConv(in_chs, chs, 8 * in_chs, 1, stride) if stride > 1 else None
        self.shortcut_bn = nn.BatchNorm2d(chs) if stride > 1 else None

    def forward(self, x: Tensor, first_tap: Tensor, second_tap: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x, first_tap, self.first)))
        y = self.bn2(self.conv2(y, second_tap, self.second))
        if self.shortcut is not None and self.shortcut_bn is not None:
            x = self.shortcut_bn(self.shortcut(x, first_tap, self.first))
        return torch.relu(y + x)


class SnowResNet18(nn.Module):
    """SNOW on ResNet-18, K = M = 8, written out by hand; the head reads the averages of all taps and the last
    features, of which it chooses an eighth."""

    def __init__(self, resnet: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.resnet = [resnet]  # no part of this network
        self.conv1 = nn.Conv2d(3, 8, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        widths = [8, 8, 16, 32, 64]
        self.layers = nn.ModuleList(
            nn.ModuleList([Block(a, b, 1 if i == 0 else 2), Block(b, b, 1)])
            for i, (a, b) in enumerate(pairwise(widths))
        )
        num_values = 4 * 64 + (64 + 3 * 128) + (128 + 3 * 256) + (256 + 3 * 512) + 512
        self.w, self.num_read = nn.Parameter(torch.ones(num_values)), round(num_values / 8)
        self.register_buffer("center", torch.zeros(num_values))
        self.register_buffer("spread", torch.ones(num_values))
        self.own, self.bias = nn.Parameter(torch.zeros(num_classes, 64)), nn.Parameter(torch.zeros(num_classes))
        self.columns = nn.Parameter(torch.zeros(num_classes, num_values))

    @torch.no_grad()
    def taps_of_the_source(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """What each block's two convolutions read, and the pooled features."""
        resnet = self.resnet[0].eval()
        x = resnet.maxpool(F.relu(resnet.bn1(resnet.conv1(x))))
        taps = []
        for layer in (resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4):
            for block in layer:
                y = F.relu(block.bn1(block.conv1(x)))
                taps += [x, y]
                shortcut = x if block.downsample is None else block.downsample(x)
                x = F.relu(block.bn2(block.conv2(y)) + shortcut)
        return taps, x.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        taps, last = self.taps_of_the_source(x)
        pairs: Iterator[Tensor] = iter(taps)
        x = F.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, stride=2, padding=1)
        for layer in self.layers:
            for block in layer:
                x = block(x, next(pairs), next(pairs))
        values = torch.cat([*(tap.mean((2, 3)) for tap in taps), last], 1)
        idx = self.w.argsort(descending=True)[: self.num_read]
        read = ((values - self.center) / self.spread)[:, idx] * self.w[idx] / self.num_read**0.5
        return x.mean((2, 3)) @ self.own.T + self.bias + read @ self.columns[:, idx].T


def by_hand_from_derived() -> dict[str, str]:
    """The state of the network written by hand -> the state of the derived delta."""
    names = {"conv1.weight": "body.conv1.weight"}
    norms = {"bn1": "body.bn1"}
    for layer in range(4):
        for block in range(2):
            ours, theirs = f"layers.{layer}.{block}", f"layer{layer + 1}_{block}"
            convs = {"conv1": "conv1", "conv2": "conv2"}
            norms |= {f"{ours}.bn1": f"body.{theirs}_bn1", f"{ours}.bn2": f"body.{theirs}_bn2"}
            if layer > 0 and block == 0:
                convs["shortcut"] = "downsample_0"
                norms[f"{ours}.shortcut_bn"] = f"body.{theirs}_downsample_1"
            for here, there in convs.items():
                names[f"{ours}.{here}.own"] = f"body.{theirs}_{there}.local.weight"
                names[f"{ours}.{here}.columns"] = f"body.{theirs}_{there}.columns"
            names[f"{ours}.first"] = f"pools.{theirs}_conv1.weight"
            names[f"{ours}.second"] = f"pools.{theirs}_conv2.weight"
    for here, there in norms.items():
        for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            names[f"{here}.{part}"] = f"{there}.{part}"
    return names | {
        "w": "head.pool.weight",
        "center": "head.center",
        "spread": "head.spread",
        "own": "head.fc.local.weight",
        "bias": "head.fc.local.bias",
        "columns": "head.fc.columns",
    }


def randomise(model: nn.Module) -> None:
    """Every number of the state gets a value that would show if it were taken for another."""
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if key.endswith(("running_var", "spread")) or (tensor.ndim == 1 and key.endswith(".weight")):
                tensor.uniform_(0.5, 1.5)
            elif tensor.is_floating_point():
                tensor.normal_(std=0.1 if tensor.ndim < 4 else (2 / tensor[0].numel()) ** 0.5)


def test_the_derived_delta_of_resnet18_is_snow_written_by_hand() -> None:
    torch.manual_seed(0)
    resnet = timm.create_model("resnet18", pretrained=False, num_classes=0).eval()
    randomise(resnet)
    source = make_source(resnet, "resnet18", "random")
    delta = Delta(source, DeltaSpec(5, width_divisor=8, pool_divisor=8, head_divisor=8))
    randomise(delta)
    delta.head.mix(1.0, 1.0)
    state = delta.state_dict()
    by_hand = SnowResNet18(resnet, 5)
    names = by_hand_from_derived()
    in_training_only = ("times_chosen", "share", "read_share", "num_read")
    assert {key for key in state if not key.endswith(in_training_only)} == set(names.values())
    by_hand.load_state_dict({ours: state[theirs].clone() for ours, theirs in names.items()})

    assert all(isinstance(pool, ChannelPooling) and pool.sigma == 0 for pool in delta.named_pools().values())
    model, labels = SnowModel(source, delta), torch.tensor([0, 1, 2, 3])
    for training in (False, True):
        model.train(training)
        by_hand.train(training)
        torch.testing.assert_close(model(images(4, 96)), by_hand(images(4, 96)), rtol=1e-4, atol=1e-4)
    # One training step later they have the same gradients, and the same statistics from the pass above.
    for network in (model, by_hand):
        F.cross_entropy(network(images(4, 96)), labels).backward()
    gradients = dict(delta.named_parameters())
    for name, parameter in by_hand.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[names[name]].grad, rtol=1e-3, atol=1e-5)
    for name, buffer in by_hand.named_buffers():
        torch.testing.assert_close(buffer, delta.state_dict()[names[name]], rtol=1e-4, atol=1e-5)
