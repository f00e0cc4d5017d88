"""Checkpoints as trainings leave them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from networks import lively
from torch import Tensor

from torchsnow.errors import SourceError
from torchsnow.hub import Hub
from torchsnow.source import load_source
from torchsnow.source.weights import read_weights

Tensors = dict[str, Tensor]


def weights_of(seed: int) -> Tensors:
    torch.manual_seed(seed)
    return lively(timm.create_model("test_resnet", pretrained=False, num_classes=10)).state_dict()


@pytest.fixture(scope="module")
def weights() -> Tensors:
    return weights_of(5)


@pytest.fixture(scope="module")
def other() -> Tensors:
    return weights_of(6)


def prefixed(weights: Tensors, prefix: str) -> Tensors:
    return {prefix + key: tensor for key, tensor in weights.items()}


def saved(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


def test_a_checkpoint_of_timms_training(weights: Tensors, other: Tensors, tmp_path: Path) -> None:
    args = argparse.Namespace(model="test_resnet", mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6], img_size=None, lr=0.1)
    optimizer = torch.optim.SGD(timm.create_model("test_resnet").parameters(), lr=0.1, momentum=0.9).state_dict()
    content = {"epoch": 3, "arch": "test_resnet", "optimizer": optimizer, "args": args, "metric": 71.5, "version": 2}
    file = saved({**content, "state_dict": other, "state_dict_ema": weights}, tmp_path / "model_best.pth.tar")
    source = load_source("test_resnet", weights=file)
    assert all(torch.equal(tensor, weights[key]) for key, tensor in source.model.state_dict().items())
    assert (source.input_config.mean, source.input_config.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    Hub.create(tmp_path / "hub", source)
    assert Hub.open(tmp_path / "hub").source.fingerprint == source.fingerprint


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module.", "backbone.", "model.net.", "layer1.0."])
@pytest.mark.parametrize("key", [None, "state_dict", "model", "model_ema"])
def test_weights_under_other_names(weights: Tensors, tmp_path: Path, prefix: str, key: str | None) -> None:
    content = prefixed(weights, prefix)
    file = saved(content if key is None else {key: content, "epoch": 1}, tmp_path / "last.pth")
    found, preprocessing = read_weights(file, weights, "test_resnet")
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())
    assert preprocessing == {}


def test_averaged_weights_come_before_others(weights: Tensors, other: Tensors, tmp_path: Path) -> None:
    both = {**prefixed(other, "model."), **prefixed(weights, "model_ema.module.")}
    file = saved({"state_dict": both}, tmp_path / "lightning.ckpt")
    found, _ = read_weights(file, weights, "test_resnet")
    assert torch.equal(found["conv1.0.weight"], weights["conv1.0.weight"])


def test_averaged_weights_that_are_not_whole_are_passed_over(weights: Tensors, other: Tensors, tmp_path: Path) -> None:
    part = {"conv1.0.weight": other["conv1.0.weight"]}
    found, _ = read_weights(saved({"ema": part, "model": weights}, tmp_path / "last.pt"), weights, "test_resnet")
    assert torch.equal(found["conv1.0.weight"], weights["conv1.0.weight"])


def test_counters_of_training_may_be_missing(weights: Tensors, tmp_path: Path) -> None:
    old = {key: tensor for key, tensor in weights.items() if "num_batches_tracked" not in key}
    assert load_source("test_resnet", weights=saved(old, tmp_path / "old.pth"))


def test_nothing_in_a_checkpoint_is_run(weights: Tensors, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    with pytest.raises(SourceError, match=r"trap\.pth holds more than weights, or is damaged, and is not read"):
        load_source("test_resnet", weights=saved({"state_dict": weights, "x": Trap()}, tmp_path / "trap.pth"))
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list; expected weights by name"),
        ({"epoch": 1}, r"does not fit test_resnet: it lacks 'bn1\.bias'"),
        ({"state_dict": {"conv1.weight": torch.zeros(1)}}, "does not fit test_resnet: it lacks"),
    ],
)
def test_checkpoints_without_such_weights(content: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=message):
        load_source("test_resnet", weights=saved(content, tmp_path / "model.pth"))


def test_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    for content in (b"", b"no checkpoint", b"PK\x03\x04" + bytes(100)):
        (tmp_path / "x.pth").write_bytes(content)
        with pytest.raises(SourceError, match=r"x\.pth (is not a readable checkpoint|holds more than weights)"):
            load_source("test_resnet", weights=tmp_path / "x.pth")
    with pytest.raises(SourceError, match="no weight file"):
        load_source("test_resnet", weights=tmp_path / "gone.pth")
    with pytest.raises(SourceError, match="is no weight file by its name"):
        load_source("test_resnet", weights=tmp_path / "model.onnx")


def test_a_mean_and_a_standard_deviation_of_ones_own(tmp_path: Path) -> None:
    plain = load_source("test_resnet", weights="random")
    own = load_source("test_resnet", weights="random", mean=(0.0, 0.25, 0.5))
    assert own.input_config.mean == (0.0, 0.25, 0.5)
    assert own.input_config.std == plain.input_config.std
    assert own.fingerprint != plain.fingerprint
    Hub.create(tmp_path / "hub", own)
    assert Hub.open(tmp_path / "hub").source.fingerprint == own.fingerprint
    for wrong in ((0.5, 0.5, 0.0), (0.5, 0.5, float("nan"))):
        with pytest.raises(SourceError, match="expected three numbers each, those of std above 0"):
            load_source("test_resnet", weights="random", std=wrong)


def test_a_checkpoint_for_grey_images_is_refused(weights: Tensors, tmp_path: Path) -> None:
    content = {"state_dict": weights, "args": argparse.Namespace(mean=[0.5], std=[0.5], input_size=[1, 64, 64])}
    with pytest.raises(SourceError, match="expected RGB images"):
        load_source("test_resnet", weights=saved(content, tmp_path / "grey.pth"))
