"""Whatever is written can be read again: the writer refuses what the reader would."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sample_tasks import logits, sample_task
from torchsnow.errors import TaskFileError
from torchsnow.hub import Hub
from torchsnow.source import Framing, Source, load_source
from torchsnow.task_file import (
    Task,
    encode_task,
    load_task,
    make_task,
    read_task_info,
    save_task,
    validate_task_size,
)
from torchsnow.task_file import task as storage


@pytest.fixture(scope="module")
def source() -> Source:
    return load_source("test_resnet", weights="random")


@pytest.fixture(scope="module")
def task(source: Source) -> Task:
    return sample_task(source)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../x"},
        {"name": 3},
        {"classes": ("a", "b")},
        {"classes": ("a", "b", "b")},
        {"classes": ("a", "b", "x" * 2000)},
        {"image_size": 0},
        {"image_size": 8000},
        {"image_size": 64.0},
        {"training": {"note": "x" * 17 * 2**20}},
        {"training": {"note": [[[[[[[[[[]]]]]]]]]]}},
        {"training": ["a"]},
        {"metrics": {"accuracy": 0.5}},
        {"metrics": {"val": {"accuracy": "good"}}},
        {"metrics": {"val": {"per_class": [[0] * 10] * 10}}},
        {"subscription": {"head": 3}},
        {"versions": {}},
        {"created": "yesterday"},
        {"spec": "pool_divisor"},
        {"source_info": "precision"},
    ],
    ids=lambda change: "-".join(f"{key}={str(value)[:20]}" for key, value in change.items()),
)
def test_what_could_not_be_read_again_is_not_written(
    source: Source, task: Task, tmp_path: Path, change: dict[str, Any]
) -> None:
    if "spec" in change:
        change = {"spec": replace(task.spec, pool_divisor=4)}
    if "source_info" in change:
        change = {"source_info": replace(task.source_info, precision="fp8")}  # type: ignore[arg-type]
    hub = Hub.create(tmp_path / "hub", source)
    with pytest.raises(TaskFileError):
        save_task(replace(task, **change), tmp_path / "a.safetensors")
    assert not (tmp_path / "a.safetensors").exists()
    with pytest.raises(TaskFileError):
        hub.add(replace(task, **change))
    assert (hub.names(), hub.verify()) == ([], [])


@pytest.mark.parametrize("limit", ["MAX_SIZE_BYTES", "MAX_HEADER_BYTES"])
def test_the_limits_of_the_reader_are_those_of_the_writer(
    task: Task, tmp_path: Path, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = encode_task(task)
    size = len(content) if limit == "MAX_SIZE_BYTES" else int.from_bytes(content[:8], "little")
    monkeypatch.setattr(storage, limit, size)
    assert encode_task(task) == content
    monkeypatch.setattr(storage, limit, size - 1)
    with pytest.raises(
        TaskFileError, match=rf"a.safetensors: its .* would have {size} bytes, more than the {size - 1}"
    ):
        save_task(task, tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_hub_reads_back_what_no_file_says_of_itself(source: Source, task: Task, tmp_path: Path) -> None:
    """The delta is as it says; it is not what this source makes of its spec."""
    other = load_source("test_efficientnet", weights="random")
    foreign = replace(sample_task(other), source_info=task.source_info)
    encode_task(foreign)
    hub = Hub.create(tmp_path / "hub", source)
    with pytest.raises(TaskFileError, match="lacks the tensor"):
        hub.add(foreign)
    assert hub.names() == []


def test_ten_thousand_classes_are_stored_and_found_again(source: Source, tmp_path: Path) -> None:
    made = sample_task(source, "many", num_classes=10_000, head_divisor=64)
    measured = {"num_images": 9, "accuracy": 0.5, "confusion": [[1] * 10_000] * 100, "per_class": [{}] * 10_000}
    task = make_task(source, made.delta, "many", made.classes, Framing(64), metrics={"val": measured})
    save_task(task, tmp_path / "many.safetensors")
    images = torch.randn(1, 3, 64, 64)
    loaded = load_task(tmp_path / "many.safetensors", source)
    assert torch.equal(logits(source, loaded, images), logits(source, task, images))
    assert read_task_info(tmp_path / "many.safetensors").classes == made.classes
    hub = Hub.create(tmp_path / "hub", source)
    hub.add(task)
    again = Hub.open(tmp_path / "hub", source)
    assert again.verify() == []
    assert again.infos()["many"].num_classes == len(again.info("many").classes) == 10_000
    assert again.predict(images)["many"].shape == (1, 10_000)


def test_what_a_file_has_no_room_for_is_known_before_training(source: Source, task: Task) -> None:
    validate_task_size(source, task.spec, task.classes)
    validate_task_size(source, replace(task.spec, num_classes=10_000), sample_classes(10_000))
    with pytest.raises(
        TaskFileError, match=r"a task of 100000 classes may take .* bytes with these settings, more than"
    ):
        validate_task_size(source, replace(task.spec, num_classes=100_000), sample_classes(100_000))
    with pytest.raises(TaskFileError, match=r"class names take .* bytes in JSON"):
        validate_task_size(source, replace(task.spec, num_classes=10_000), sample_classes(10_000, "x" * 500))


def sample_classes(number: int, before: str = "") -> list[str]:
    return [f"{before}{i}" for i in range(number)]


# numbers that cannot be computed with


@pytest.mark.parametrize("key", ["head.fc.columns", "head.fc.local.bias", "head.pool.weight", "body.conv1_0.weight"])
def test_numbers_that_are_too_large_to_compute_with_are_refused(source: Source, tmp_path: Path, key: str) -> None:
    task = sample_task(source)
    dict(task.delta.named_parameters())[key].data.fill_(3e38)
    save_task(task, tmp_path / "a.safetensors")
    with pytest.raises(TaskFileError, match=r"a.safetensors: its numbers are too large to compute with"):
        load_task(tmp_path / "a.safetensors", source)
    hub = Hub.create(tmp_path / "hub", source)
    with pytest.raises(TaskFileError, match="its numbers are too large to compute with"):
        hub.add(task)
    assert hub.names() == []


def test_a_delta_that_cannot_be_computed_is_refused(tmp_path: Path) -> None:
    """At this width its layers are left with one weight per channel, which cannot be standardised."""
    source = load_source("test_nfnet", weights="random")
    hub = Hub.create(tmp_path / "hub", source)
    with pytest.raises(TaskFileError, match="its delta cannot be computed on this source: Expected more than 1 value"):
        hub.add(sample_task(source))
    assert hub.names() == []
