from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from networks import TINY, image, lively_source, timm_model
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from torchsnow.delta import Delta, DeltaSpec
from torchsnow.errors import SourceError
from torchsnow.model import SnowModel
from torchsnow.source import InputConfig, Precision, Request, Source, load_source
from torchsnow.source.grid import ONE_CELL


@pytest.fixture(scope="module")
def source() -> Source:
    return lively_source("test_resnet")


def snapshot(source: Source) -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in source.model.state_dict().items()}


def assert_untouched(source: Source, before: dict[str, Tensor]) -> None:
    after = source.model.state_dict()
    assert list(after) == list(before)
    for key, tensor in before.items():
        assert after[key].dtype == tensor.dtype
        assert torch.equal(after[key], tensor), key
    assert not any(module.training for module in source.modules())


CONVERSIONS: dict[str, Callable[[nn.Module], object]] = {
    "train()": lambda m: m.train(),
    "train(True) on a parent": lambda m: nn.Sequential(m).train(True),
    "to(float64)": lambda m: m.to(torch.float64),
    "to(bfloat16)": lambda m: m.to(torch.bfloat16),
    "half()": lambda m: m.half(),
    "double() on a parent": lambda m: nn.Sequential(m).double(),
    "to(device, dtype)": lambda m: m.to("cpu", torch.float16),
    "to(memory_format)": lambda m: m.to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("conversion", CONVERSIONS)
def test_no_conversion_touches_a_source(conversion: str) -> None:
    source = lively_source("test_resnet")
    before, features = snapshot(source), source(image())
    assert any("running_mean" in key for key in before)
    CONVERSIONS[conversion](source)
    assert_untouched(source, before)
    torch.testing.assert_close(source(image()).last, features.last)


@pytest.mark.parametrize("unfreeze", [False, True], ids=["as it comes", "after requires_grad_(True)"])
def test_training_touches_neither_parameters_nor_buffers(unfreeze: bool) -> None:
    torch.manual_seed(0)
    source = lively_source("test_resnet")
    model = SnowModel(source, Delta(source, DeltaSpec(2, 4, 4))).train()
    if unfreeze:
        model.requires_grad_(True)
    before = snapshot(source)
    delta_before = copy.deepcopy(model.delta.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(image(batch=4)), torch.tensor([0, 1, 0, 1])).backward()
        optimizer.step()
    assert_untouched(source, before)
    assert all(parameter.grad is None for parameter in source.parameters())
    assert any(not torch.equal(tensor, delta_before[key]) for key, tensor in model.delta.state_dict().items())


def test_a_source_asks_for_no_gradients(source: Source) -> None:
    assert not any(parameter.requires_grad for parameter in source.parameters())
    features = source(image().requires_grad_())
    assert not any(value.requires_grad for value in (*features.taps.values(), features.last))


@pytest.mark.parametrize("name", TINY)
def test_gradients_reach_the_images_if_asked_for(name: str) -> None:
    source = lively_source(name)
    before, images = snapshot(source), image(batch=1).requires_grad_()
    tap = list(source.taps)[len(source.taps) // 2]
    index = source.channels_of([tap])
    request = Request(grids={ONE_CELL: index}, last=True)
    features, plain = source.differentiable(images, request), source(images, request)
    torch.testing.assert_close(features.last, plain.last, rtol=1e-4, atol=1e-4)  # the plain one fuses its steps
    torch.testing.assert_close(features.averages(index), plain.averages(index), rtol=1e-4, atol=1e-4)
    assert not plain.last.requires_grad
    value = features.last.square().sum() + features.averages(index).square().sum()
    (gradient,) = torch.autograd.grad(value, images)
    whole = source.model(images).square().sum()
    (expected,) = torch.autograd.grad(whole, images)
    assert gradient.abs().sum() > 0
    (of_last,) = torch.autograd.grad(source.differentiable(images, Request(last=True)).last.square().sum(), images)
    torch.testing.assert_close(of_last, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()) + 1e-7)
    assert_untouched(source, before)
    assert all(parameter.grad is None for parameter in source.parameters())


def test_features_can_be_used_in_a_trained_graph(source: Source) -> None:
    """Features made under inference_mode would raise here."""
    name, tap = next(iter(source.taps.items()))
    index = source.channels_of([name])
    features = source(image(), Request(taps=(name,), grids={ONE_CELL: index}, last=True))
    assert not features.taps[name].is_inference()
    layer = nn.Conv2d(tap.num_chs, 2, 1)
    (layer(features.taps[name]).mean() + features.values(index, last=True).sum() * layer.bias.sum()).backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.abs().sum() > 0


def test_everything_is_returned_by_default(source: Source) -> None:
    features = source(image())
    assert list(features.taps) == list(source.taps)
    assert features.last.shape == (2, source.num_features) == (2, source.model.num_features)
    assert torch.equal(features.images, image())


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext"])
def test_a_request_returns_what_it_asks_for_and_no_more(name: str) -> None:
    source = lively_source(name)
    first, second, third, *_ = source.taps
    idx = torch.tensor([5, 2])
    whole = source(image())
    index = source.channels_of([third])
    features = source(image(), Request(taps=(first,), channels={second: idx}, grids={ONE_CELL: index}))
    assert list(features.taps) == [first]
    assert features.last is None
    torch.testing.assert_close(features.channels(second, idx), whole.channels(second, idx), rtol=1e-4, atol=1e-4)
    assert features.channels(second, idx).shape[source.taps[second].dim] == 2
    expected = whole.taps[third].movedim(source.taps[third].dim, 1).mean((2, 3))
    torch.testing.assert_close(features.averages(index), expected, rtol=1e-4, atol=1e-4)
    assert source(image(), Request(last=True)).taps == {}


def test_channels_of_a_whole_tap(source: Source) -> None:
    name = next(iter(source.taps))
    features = source(image(), Request(taps=(name,)))
    assert torch.equal(features.channels(name, torch.tensor([4, 0])), features.taps[name][:, [4, 0]])


def test_channels_that_were_not_asked_for_are_not_passed_off_as_others(source: Source) -> None:
    name = next(iter(source.taps))
    features = source(image(), Request(channels={name: torch.tensor([4, 0])}))
    with pytest.raises(KeyError):
        features.channels(name, torch.tensor([1, 2]))


def test_values_are_averages_and_last_features(source: Source) -> None:
    first, second, *_ = source.taps
    index = source.channels_of([second, first])
    features = source(image(), Request(taps=(first, second), grids={ONE_CELL: index}, last=True))
    expected = torch.cat([features.taps[name].mean((2, 3)) for name in (first, second)], 1)
    torch.testing.assert_close(features.values(index, last=False), expected)
    torch.testing.assert_close(features.values(index[3:5], last=False), expected[:, 3:5])
    torch.testing.assert_close(features.values(index, last=True), torch.cat([expected, features.last], 1))
    assert torch.equal(features.values(index[:0], last=True), features.last)


def test_channels_are_counted_through_all_taps_in_the_order_of_the_pass(source: Source) -> None:
    names = list(source.taps)
    assert source.num_chs == sum(tap.num_chs for tap in source.taps.values())
    assert source.channels_of(names).tolist() == list(range(source.num_chs))
    first, third = source.channels_of(names[:1]), source.channels_of([names[2], names[0]])
    assert third[: len(first)].tolist() == first.tolist() == list(range(source.taps[names[0]].num_chs))
    assert source.channels_of([]).tolist() == []
    for name in names:
        assert [source.tap_of(channel) for channel in source.channels_of([name]).tolist()] == [
            (name, channel) for channel in range(source.taps[name].num_chs)
        ]


def flops_of(source: Source, request: Request) -> int:
    source(image(), request)  # the plan is made now
    with FlopCounterMode(display=False) as counter:
        source(image(), request)
    return int(counter.get_total_flops())


def test_a_pass_runs_nothing_behind_the_last_thing_that_is_wanted(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Source, "_fuses", False)  # the steps of oneDNN are not counted
    whole = flops_of(source, Request(last=True))
    idx = torch.tensor([0])
    requests = [
        [Request(taps=(name,)), Request(channels={name: idx}), Request(grids={ONE_CELL: source.channels_of([name])})]
        for name in ("layer1.0.conv1", "layer1.0.conv2", "layer3.0.conv2")
    ]
    costs = [{flops_of(source, request) for request in of_tap} for of_tap in requests]
    assert [len(of_tap) for of_tap in costs] == [1, 1, 1]
    first, second, third = (of_tap.pop() for of_tap in costs)
    conv1 = source.model.layer1[0].conv1.weight.numel() * 2 * 2 * 16 * 16  # one product and one sum, two images
    assert second - first == conv1
    assert first < second < third < whole


@pytest.mark.parametrize("request_of", [
    lambda name: Request(taps=(name,)),
    lambda name: Request(channels={name: torch.tensor([0])}),
])  # fmt: skip
def test_unknown_taps_are_refused(source: Source, request_of: Callable[[str], Request]) -> None:
    with pytest.raises(SourceError, match=r"test_resnet has no tap 'layer9'; its taps are named like 'conv1\.3'"):
        source(image(), request_of("layer9"))


def test_images_of_a_wrong_shape_are_refused(source: Source) -> None:
    with pytest.raises(SourceError, match=r"test_resnet cannot take images of shape \(2, 1, 64, 64\)"):
        source(torch.zeros(2, 1, 64, 64))


@pytest.mark.parametrize("size", [32, 97, 160])
def test_any_image_size_that_the_network_takes(source: Source, size: int) -> None:
    with torch.no_grad():
        expected = timm_model("test_resnet")(image(size))
    torch.testing.assert_close(source(image(size)).last, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", TINY)
def test_bfloat16_is_near_float32(name: str) -> None:
    exact, rounded = lively_source(name)(image()), lively_source(name, precision="bf16")(image())
    assert rounded.last.dtype == torch.float32
    assert (rounded.last - exact.last).norm() < 0.03 * exact.last.norm()
    for tap, value in rounded.taps.items():
        assert value.dtype == torch.bfloat16
        assert (value.float() - exact.taps[tap]).norm() < 0.05 * exact.taps[tap].norm()


def test_an_unknown_precision_is_refused() -> None:
    wrong: Precision = "fp8"  # type: ignore[assignment]
    with pytest.raises(SourceError, match="unknown precision 'fp8'; expected one of fp32, bf16"):
        lively_source("test_resnet", precision=wrong)


def toy_source(model: nn.Module) -> Source:
    return Source(model, "toy", InputConfig((3, 16, 16), (0.5,) * 3, (0.5,) * 3, "bilinear", 1.0), "random")


def test_a_network_without_taps_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 8))
    with pytest.raises(SourceError, match="toy has no dense convolution, and no linear layer"):
        toy_source(model)


def with_change(change: Callable[[nn.Module], None], name: str = "test_resnet", **config: object) -> str:
    model = timm_model("test_resnet")
    change(model)
    original = lively_source("test_resnet").input_config
    return Source(model, name, replace(original, **config), "random").fingerprint  # type: ignore[arg-type]


def add_one_bit(key: str) -> Callable[[nn.Module], None]:
    def change(model: nn.Module) -> None:
        tensor = model.state_dict()[key].view(-1)
        tensor[0] = torch.nextafter(tensor[0], torch.tensor(9.0)) if tensor.is_floating_point() else tensor[0] + 1

    return change


def test_the_fingerprint_is_of_everything_that_makes_the_features() -> None:
    same = with_change(lambda model: None)
    assert same == lively_source("test_resnet").fingerprint == lively_source("test_resnet").fingerprint
    assert len(same) == 64
    changed = [
        with_change(add_one_bit("conv1.0.weight")),
        with_change(add_one_bit("layer4.0.bn1.bias")),
        with_change(add_one_bit("bn1.running_mean")),
        with_change(add_one_bit("bn1.running_var")),
        with_change(lambda model: None, name="test_resnet.other"),
        with_change(lambda model: None, mean=(0.5, 0.5, 0.25)),
        with_change(lambda model: None, std=(0.5, 0.5, 0.25)),
        with_change(lambda model: None, input_size=(3, 128, 128)),
        with_change(lambda model: None, interpolation="nearest"),
        with_change(lambda model: None, crop_pct=0.5),
    ]
    assert len({same, *changed}) == 1 + len(changed)


def test_the_fingerprint_does_not_depend_on_how_the_source_is_run() -> None:
    exact, rounded = lively_source("test_resnet"), lively_source("test_resnet", precision="bf16")
    before = exact.fingerprint
    exact(image())
    assert exact.fingerprint == rounded.fingerprint == before


def test_copies_share_the_source(source: Source) -> None:
    model = SnowModel(source, Delta(source, DeltaSpec(2, 4, 4)))
    copied = copy.deepcopy(model)
    assert copied.source is source
    assert copied.delta is not model.delta


def test_the_state_is_that_of_the_network(source: Source) -> None:
    source(image())  # plans are no part of it
    assert set(source.state_dict()) == {f"model.{key}" for key in source.model.state_dict()}
    assert not any(tensor.is_meta for tensor in source.state_dict().values())


def test_input_config_survives_json() -> None:
    config = load_source("test_resnet", weights="random").input_config
    assert InputConfig.from_mapping(config.to_dict()) == config
    assert all(not isinstance(value, tuple) for value in config.to_dict().values())


def test_the_picture_to_try_deltas_on_is_passed_once_until_the_source_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    source = load_source("test_resnet", weights="random")
    passes, run = [], Source.forward

    def counted(self: Source, *arguments: object) -> object:
        passes.append(arguments)
        return run(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Source, "forward", counted)
    trial = source.trial(ONE_CELL)
    assert source.trial(ONE_CELL) is trial
    assert trial.images.shape == (1, 3, 96, 96)
    assert {reduction: grid.maps.shape for reduction, grid in trial.grids.items()} == {0: (1, source.num_chs, 1, 1)}
    assert set(trial.taps) == set(source.taps)
    assert trial.last is not None
    assert not trial.last.requires_grad
    finer = source.trial(32).grids[32].maps
    assert finer.shape == (1, source.num_chs, 3, 3)
    source.to("cpu")
    assert source.trial(ONE_CELL) is not trial
    assert len(passes) == 3


def test_a_network_that_takes_its_own_size_alone_has_a_picture_too(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Source.forward

    def strict(self: Source, images: torch.Tensor, request: Request) -> object:
        if images.shape[-1] < 160:
            raise SourceError("cannot take images of this shape")
        return run(self, images, request)

    monkeypatch.setattr(Source, "forward", strict)
    assert load_source("test_resnet", weights="random").trial(ONE_CELL).images.shape == (1, 3, 160, 160)
