from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from torchsnow.errors import TrainingError
from torchsnow.train import TrainSettings


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("epochs", 0, "a whole number of 1 or more"),
        ("epochs", 2.5, "a whole number of 1 or more"),
        ("epochs", True, "a whole number of 1 or more"),
        ("batch_size", 0, "a whole number of 2 or more"),
        ("image_size", -1, "a whole number of 1 or more"),
        ("image_size", 1025, "1024 pixels or fewer"),
        ("seed", -1, "a whole number of 0 or more"),
        ("seed", 2**64, "a whole number below 2^64"),
        ("num_workers", -1, "a whole number of 0 or more"),
        ("lr", 0, "a number above 0"),
        ("lr", float("nan"), "a number above 0"),
        ("lr", "fast", "a number above 0"),
        ("weight_decay", -0.1, "0 or more"),
        ("label_smoothing", 1.0, "less than 1"),
        ("warmup_epochs", 15, "fewer than the 15 epochs"),
        ("optimizer", "adam", "adamw, sgd"),
        ("class_weights", "some", "none, balanced"),
        ("augmentation", "wild", "none, flip, light, strong"),
        ("precision", "fp16", "fp32, bf16"),
        ("grey_range", 4095, "two whole numbers, the lower first, from 0 to 65535"),
        ("grey_range", (4095, 0), "two whole numbers, the lower first"),
        ("grey_range", (0, 65_536), "two whole numbers, the lower first"),
        ("grey_range", (0, 0.5), "two whole numbers, the lower first"),
        ("device", "tpu", "auto, cpu, cuda"),
        ("patience", 0, "None or a whole number"),
        ("amp", "yes", "true or false"),
    ],
)
def test_out_of_range_says_what_was_given_and_expected(name: str, value: Any, expected: str) -> None:
    with pytest.raises(TrainingError) as error:
        TrainSettings(**{name: value})
    assert str(error.value).startswith(f"{name} is {value!r}")
    assert expected in str(error.value)


def test_batch_of_one_is_explained() -> None:
    with pytest.raises(TrainingError, match="batch normalisation cannot estimate a variance from one image"):
        TrainSettings(batch_size=1)


def test_dict_and_back() -> None:
    settings = TrainSettings(epochs=7, patience=3, optimizer="sgd", grey_range=(0, 4095))
    assert TrainSettings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings


@pytest.mark.parametrize("change", [{"momentum": 0.9}, {"epochs": None}])
def test_foreign_dict_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(TrainingError, match=next(iter(change))):
        TrainSettings.from_dict({**TrainSettings().to_dict(), **change})


def test_missing_setting_is_named() -> None:
    values = TrainSettings().to_dict()
    del values["lr"]
    with pytest.raises(TrainingError, match="differ from the expected ones in: lr"):
        TrainSettings.from_dict(values)


def test_device() -> None:
    assert TrainSettings(device="cpu").torch_device() == torch.device("cpu")
    assert TrainSettings().torch_device().type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_one_of_several_cuda_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name in ("cuda", "cuda:0", "cuda:1"):
        assert TrainSettings(device=name).torch_device() == torch.device(name)
    with pytest.raises(TrainingError, match=r"'cuda:2', but torch sees 2 CUDA devices, from cuda:0"):
        TrainSettings(device="cuda:2").torch_device()
    for odd in ("cuda:", "cuda:-1", "cuda:x", "cuda:1:2", "cpu:0", " cuda", "CUDA"):
        with pytest.raises(TrainingError, match="device is"):
            TrainSettings(device=odd)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_missing_cuda_is_said() -> None:
    with pytest.raises(TrainingError, match="no CUDA device"):
        TrainSettings(device="cuda").torch_device()


def test_the_largest_seed_can_be_used() -> None:
    torch.Generator().manual_seed(TrainSettings(seed=2**64 - 1).seed)


def test_workers_need_shared_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("torchsnow.train.settings._SHARED_MEMORY", tmp_path)
    free = SimpleNamespace(free=64_000_000)
    monkeypatch.setattr("torchsnow.train.settings.shutil.disk_usage", lambda folder: free)
    TrainSettings(num_workers=0, image_size=1024).validate_shared_memory()
    TrainSettings(num_workers=1, image_size=224, batch_size=32).validate_shared_memory()
    with pytest.raises(
        TrainingError, match=r"batches need 115\.6 MB of shared memory, .* 64\.0 MB left; .* --shm-size"
    ):
        TrainSettings(num_workers=2, image_size=224, batch_size=32).validate_shared_memory()
