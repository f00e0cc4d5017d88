from __future__ import annotations

import errno
import json
import math
import os
import pickle
import random
import zipfile
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch

from sample_tasks import logits, sample_task
from torchsnow.delta import Delta, DeltaSpec
from torchsnow.errors import TaskFileError
from torchsnow.source import Framing, Source, load_source, make_source
from torchsnow.source.config import MAX_IMAGE_SIZE
from torchsnow.task_file import (
    Task,
    TaskInfo,
    content_hash,
    encode_task,
    load_task,
    make_task,
    read_task_info,
    save_task,
    validate_task_name,
)
from torchsnow.task_file.info import validate_classes
from torchsnow.train.evaluate import metrics_of


@pytest.fixture(scope="module")
def source() -> Source:
    return load_source("test_resnet", weights="random")


@pytest.fixture(scope="module")
def task(source: Source) -> Task:
    return sample_task(source)


@pytest.fixture
def path(task: Task, tmp_path: Path) -> Path:
    save_task(task, tmp_path / "pets.safetensors")
    return tmp_path / "pets.safetensors"


def rewrite(path: Path, change: Callable[[dict[str, torch.Tensor], dict[str, Any]], None]) -> None:
    """Change a task file's tensors and metadata in place."""
    tensors = safetensors.torch.load(path.read_bytes())
    with safetensors.safe_open(path, "pt") as file:
        values = json.loads(file.metadata()["torchsnow"])
    change(tensors, values)
    path.write_bytes(safetensors.torch.save(tensors, {"torchsnow": json.dumps(values)}))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"slots": "rank", "width_divisor": 4},
        {"taps": ("layer1.0.conv1",), "head_taps": (), "head_last": False},
        {"head_divisor": 8},
        {"taps": (), "pool_divisor": 2},
    ],
)
def test_logits_are_equal_after_loading(source: Source, settings: dict[str, Any], tmp_path: Path) -> None:
    check_round_trip(source, tmp_path, **settings)


@pytest.mark.parametrize("network", ["test_efficientnet", "test_convnext"])
def test_other_families_load_too(network: str, tmp_path: Path) -> None:
    check_round_trip(load_source(network, weights="random"), tmp_path)


def check_round_trip(source: Source, tmp_path: Path, **settings: Any) -> None:
    task = sample_task(source, **settings)
    save_task(task, tmp_path / "a.safetensors")
    loaded = load_task(tmp_path / "a.safetensors", source)
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(logits(source, loaded, images), logits(source, task, images))
    assert not loaded.delta.training
    assert all(parameter.requires_grad for parameter in loaded.delta.parameters())
    assert not any(tensor.is_meta for tensor in [*loaded.delta.parameters(), *loaded.delta.buffers()])


def test_everything_is_kept(task: Task, path: Path, source: Source) -> None:
    loaded, info = load_task(path, source), read_task_info(path)
    for field in fields(TaskInfo):
        assert getattr(loaded, field.name) == getattr(task, field.name) == getattr(info, field.name), field.name
    assert loaded.training["sizes"] == [64, 64]
    assert loaded.subscription["layer4.0.conv1"] == 24
    assert loaded.subscription["head"] == 976
    assert path.read_bytes() == encode_task(task) == encode_task(loaded)


def test_the_file_has_one_metadata_key(path: Path) -> None:
    with safetensors.safe_open(path, "pt") as file:
        assert list(file.metadata()) == ["torchsnow"]


def test_info_reads_the_header_only(path: Path) -> None:
    content = path.read_bytes()
    header_bytes = 8 + int.from_bytes(content[:8], "little")
    path.write_bytes(content[:header_bytes])
    assert read_task_info(path).classes == ("cat", "dog", "Überhund")


def test_loading_leaves_the_random_numbers_alone(path: Path, source: Source) -> None:
    before = torch.get_rng_state()
    load_task(path, source)
    assert torch.equal(torch.get_rng_state(), before)


def test_loading_can_check_the_content(path: Path, source: Source) -> None:
    load_task(path, source, content_hash(path.read_bytes()))
    with pytest.raises(TaskFileError, match="damaged: its SHA-256 is"):
        load_task(path, source, "0" * 64)


# what cannot be saved


def test_unsettled_deltas_are_refused(source: Source, task: Task) -> None:
    delta = Delta(source, DeltaSpec(3))
    with pytest.raises(TaskFileError, match="not frozen"):
        make_task(source, delta, "pets", "abc")
    with pytest.raises(TaskFileError, match="not frozen"):
        encode_task(replace(task, delta=delta))


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_refused(source: Source, tmp_path: Path, number: float) -> None:
    task = sample_task(source)
    next(iter(task.delta.parameters())).data.view(-1)[0] = number
    with pytest.raises(TaskFileError, match=r"pets.safetensors: tensor 'body.conv1_0.weight' holds 1 NaN or inf"):
        save_task(task, tmp_path / "pets.safetensors")
    assert os.listdir(tmp_path) == []


def test_half_precision_deltas_are_refused(source: Source) -> None:
    task = sample_task(source)
    task.delta.half()
    with pytest.raises(TaskFileError, match=r"float16; expected torch.float32"):
        encode_task(task)


@pytest.mark.parametrize(
    ("classes", "message"),
    [(["a", "b"], "2 class names"), (["a", "b", "a"], "two classes"), (["a", " ", "b"], "empty name")],
)
def test_classes_must_fit(source: Source, task: Task, classes: list[str], message: str) -> None:
    with pytest.raises(TaskFileError, match=message):
        make_task(source, task.delta, "pets", classes)


def test_what_takes_no_place_in_a_file_is_refused(source: Source, task: Task) -> None:
    for size in (0, MAX_IMAGE_SIZE + 1):
        with pytest.raises(TaskFileError, match=f"image_size is {size}; expected 1 pixel to 1024"):
            make_task(source, task.delta, "pets", "abc", Framing(size))
    assert make_task(source, task.delta, "pets", "abc", Framing(MAX_IMAGE_SIZE)).image_size == MAX_IMAGE_SIZE
    validate_classes([f"{i:05} {'é' * 50}" for i in range(10_000)], 10_000)
    with pytest.raises(TaskFileError, match=r"the 10000 class names take .* bytes in JSON, more than the 4194304"):
        validate_classes([f"{i:05} {'é' * 70}" for i in range(10_000)], 10_000)
    with pytest.raises(TaskFileError, match="training is nested too deeply"):
        make_task(source, task.delta, "pets", "abc", training=deep(9))


@pytest.mark.parametrize("values", [{"loss": math.nan}, {"device": torch.device("cpu")}])
def test_metrics_must_be_json(source: Source, task: Task, values: dict[str, Any]) -> None:
    with pytest.raises(TaskFileError, match="metrics cannot be stored as JSON"):
        make_task(source, task.delta, "pets", "abc", metrics=values)


@pytest.mark.parametrize("values", [{"accuracy": 0.5}, {"val": {"f2": 0.5}}, {"val": {"accuracy": 50}}])
def test_metrics_must_be_results_by_split(source: Source, task: Task, values: dict[str, Any]) -> None:
    with pytest.raises(TaskFileError, match=r"metrics.*expected 0 to 1; metrics are results by split|unknown key"):
        make_task(source, task.delta, "pets", "abc", metrics=values)


@pytest.mark.parametrize("num_classes", [3, 200, 10_000])
def test_metrics_stay_small_however_many_classes_there_are(source: Source, num_classes: int) -> None:
    frozen = sample_task(source, num_classes=num_classes, head_divisor=64, width_divisor=None)
    labels = torch.arange(min(num_classes, 300))
    measured = metrics_of(torch.randn(len(labels), num_classes), labels, frozen.classes)
    task = make_task(source, frozen.delta, "pets", frozen.classes, metrics={"val": measured.to_dict(), "test": None})
    assert set(task.metrics) == {"val", "test"}
    assert task.metrics["val"]["accuracy"] == measured.accuracy
    assert len(json.dumps(task.metrics)) < 1000
    assert ("per_class" in task.metrics["val"]) == (num_classes == 3)


@pytest.mark.parametrize("name", ["a", "0", "solar-cells_v1.2", "a" * 64])
def test_good_names(name: str) -> None:
    validate_task_name(name)


@pytest.mark.parametrize("name", ["", "A", ".a", "-a", "a/b", "..", "a" * 65, "a\n", "é", "a b"])
def test_bad_names(name: str) -> None:
    with pytest.raises(TaskFileError, match="cannot be a task's name; expected 1 to 64"):
        validate_task_name(name)


def test_a_full_disk_leaves_the_old_file(task: Task, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TaskFileError, match=r"pets.safetensors: the disk is full"):
        save_task(replace(task, name="other"), path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


# what cannot be loaded


def refused(path: Path, source: Source, message: str) -> None:
    with pytest.raises(TaskFileError, match=message) as error:
        load_task(path, source)
    assert str(path) in str(error.value)


def test_missing_files_and_folders(tmp_path: Path, source: Source) -> None:
    refused(tmp_path / "missing.safetensors", source, "no such file")
    refused(tmp_path, source, "not a file")
    with pytest.raises(TaskFileError, match="no such file"):
        read_task_info(tmp_path / "missing.safetensors")


def test_large_files_are_refused_before_they_are_read(path: Path, source: Source) -> None:
    with pytest.raises(TaskFileError, match="bytes, more than the 1000 allowed"):
        load_task(path, source, max_size_bytes=1000)
    with path.open("r+b") as file:
        file.truncate(2**40)  # sparse: takes no space
    refused(path, source, "more than the 268435456 allowed")


def test_pickles_and_archives_are_never_unpickled(tmp_path: Path, source: Source) -> None:
    path = tmp_path / "a.safetensors"
    for protocol in range(2, 6):
        path.write_bytes(pickle.dumps({"a": [1.0] * 9}, protocol))
        refused(path, source, "a Python pickle; it is never unpickled")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    refused(path, source, "a zip archive of pickles, as torch.save writes; it is never unpickled")


@pytest.mark.parametrize("content", [b"", b"{}", b"hello world, hello world", b"\xff" * 100, bytes(100)])
def test_other_files_are_refused(tmp_path: Path, source: Source, content: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    refused(path, source, "not a .safetensors file")
    with pytest.raises(TaskFileError, match=r"not a .safetensors file"):
        read_task_info(path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"torchsnow": "{}", "format": "pt"}])
def test_files_of_other_programs_are_refused(tmp_path: Path, source: Source, metadata: dict[str, str] | None) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors.torch.save({"a": torch.zeros(2)}, metadata))
    refused(path, source, r"not written by torchsnow|must be one text")


def test_truncated_files_are_refused(path: Path, source: Source) -> None:
    content = path.read_bytes()
    for size in (4, 9, 500, len(content) - 1):
        path.write_bytes(content[:size])
        refused(path, source, "safetensors file|damaged")


def deep(levels: int) -> dict[str, Any]:
    """An object with so many others in each other."""
    return {"a": deep(levels - 1)} if levels else {}


def change_metadata(key: str, value: Any) -> Callable[[dict[str, torch.Tensor], dict[str, Any]], None]:
    def change(_: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
        *parents, last = key.split(".")
        for parent in parents:
            values = values[parent]
        values[last] = value

    return change


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("schema_version", 8, "schema version is 8, this torchsnow reads 7; upgrade"),
        ("schema_version", True, "does not say its schema version"),
        ("name", "../x", "cannot be a task's name"),
        ("name", 3, "metadata.name is 3; expected a text"),
        ("surprise", 1, 'unknown key "surprise"'),
        ("classes", ["a", "b"], "2 class names for a delta of 3"),
        ("classes", ["a", "b", "b"], "two classes are named 'b'"),
        ("classes", ["a", "b", 3], r"metadata.classes\[2\] is 3; expected a text"),
        ("classes", "abc", "expected a list"),
        ("classes", ["a", "b", "x" * 1001], "class 2 has a name of 1001 characters, 'xxx.*; expected 1000 or fewer"),
        ("image_size", 1.5, "image_size is 1.5; expected a whole number"),
        ("image_size", True, "image_size is true; expected a whole number"),
        ("image_size", 0, "expected 1 pixel"),
        ("crop_mode", "stretch", "crop_mode is 'stretch'; expected one of squash, center, border"),
        ("grey_range", [5], r"grey_range is \[5\]; expected two values of 0 to 65535, rising"),
        ("grey_range", [5, 5], r"grey_range is \[5, 5\]; expected two values"),
        ("grey_range", [0, 65_536], r"grey_range is \[0, 65536\]; expected two values"),
        ("grey_range", [0, 9.5], r"grey_range\[1\] is 9.5; expected a whole number"),
        ("unknown_above", -1.0, "unknown_above is -1.0; expected"),
        ("thresholds", [0.5], "1 thresholds for 3 classes"),
        ("thresholds", [0.5, 0.5, 1.5], r"thresholds\[2\] is 1.5; expected 0 to 1"),
        ("unknown_above", "far", "unknown_above is .far.; expected a number"),
        ("image_size", MAX_IMAGE_SIZE + 1, "image_size is 1025; expected 1 pixel to 1024"),
        ("image_size", 10**6, "image_size is 1000000; expected 1 pixel to 1024"),
        ("training", [], "training is .*; expected an object"),
        ("metrics", {"a": float("nan")}, "not valid JSON: NaN"),
        ("metrics", [], r"metrics is \[\]; expected an object"),
        ("metrics", {"a": {}}, 'metrics has an unknown key "a"'),
        ("metrics", {"val": 0.5}, "metrics.val is 0.5; expected an object"),
        ("metrics", {"val": []}, r"metrics.val is \[\]; expected an object"),
        ("metrics", {"val": {"accuracy": {}}}, "metrics.val.accuracy is {}; expected a number"),
        ("metrics", {"val": {"accuracy": None}}, "metrics.val.accuracy is null; expected a number"),
        ("metrics", {"val": {"accuracy": 1.1}}, "metrics.val.accuracy is 1.1; expected 0 to 1"),
        ("metrics", {"test": {"top5": "1"}}, 'metrics.test.top5 is "1"; expected a number'),
        ("metrics", {"test": {"loss": -1}}, r"metrics.test.loss is -1; expected 0 to 1e\+38"),
        ("metrics", {"test": {"num_images": 1.5}}, "num_images is 1.5; expected a whole number"),
        ("metrics", {"test": {"num_images": -1}}, "num_images is -1; expected 0 to"),
        ("metrics", {"test": {"surprise": 1}}, 'metrics.test has an unknown key "surprise"'),
        ("metrics", {"val": {"per_class": [{"name": "a"}]}}, r"metrics.val.per_class\[0\] lacks 'f1'"),
        ("training", deep(8), "training is nested too deeply"),
        ("versions", {"torch": "2"}, "versions lacks 'timm'"),
        ("versions.torch", "2" * 101, "versions.torch is .*; expected 1 to 100 characters"),
        ("created", "yesterday", "metadata.created is 'yesterday'; expected a date and time"),
        ("created", "", 'metadata.created is ""; expected 1 to 100 characters'),
        ("subscription", {"head": 3}, "subscription does not say"),
        ("subscription", {"head": -1}, r"subscription.head is -1; expected 1 to 2.14748e\+09"),
        ("subscription", {"head": "3"}, 'subscription.head is "3"; expected a whole number'),
        ("spec.num_classes", 10**9, "3 class names for a delta of 1000000000"),
        ("spec.num_classes", 10**30, "num_classes is 1000000000000000000000000000000; expected a whole"),
        ("spec.width_divisor", 10**9, "leaves no channel"),
        ("spec.width_divisor", 4, "has shape .*, expected"),
        ("spec.head_divisor", 0, "head_divisor is 0"),
        ("spec.entry_reduction", 8, "missing|unexpected|lacks|has no|tensor"),
        ("spec.slots", "diagonal", "slots is 'diagonal'"),
        ("spec.taps", ["nowhere"], "nowhere"),
        ("spec.taps", ["layer1.0.conv1"] * 2, "names a tap twice"),
        ("spec.head_last", 1, "head_last is 1; expected true or false"),
        ("source_info.precision", "fp8", "precision is 'fp8'"),
        ("source_info.name", "resnet", "has another name or input_config than its fingerprint is of"),
        ("source_info.input_config.mean", [1e308, 0, 0], "another name or input_config than its fingerprint"),
        ("source_info.input_config.crop_pct", 1e-308, "another name or input_config than its fingerprint"),
        ("source_info.weights", "x" * 10_001, "source.weights is .* expected 1 to 10000 characters"),
        ("source_info.fingerprint", None, "fingerprint is null; expected a text"),
        ("source_info.input_config.mean", [0.5], "expected three numbers"),
        ("source_info.input_config.mean", 0.5, "expected a list"),
    ],
)
def test_metadata_is_read_strictly(path: Path, source: Source, key: str, value: Any, message: str) -> None:
    rewrite(path, change_metadata(key, value))
    refused(path, source, message)


def test_an_older_file_with_a_confusion_matrix_is_read_without_it(path: Path, source: Source) -> None:
    rows = [{"name": "cat", "num_images": 4, "precision": 1.0, "recall": 0.5, "f1": 0.6}]
    old = {"num_images": 4, "loss": 0.3, "accuracy": 0.5, "top5": None, "balanced_accuracy": 0.5}
    old |= {"calibration_error": 0.1, "per_class": rows, "confusion": [[2, 2, 0], [0, 0, 0], [0, 0, 0]]}
    rewrite(path, change_metadata("metrics", {"val": old, "test": None}))
    kept = {"val": {key: value for key, value in old.items() if key != "confusion"}, "test": None}
    assert load_task(path, source).metrics == read_task_info(path).metrics == kept


GRID_SETTINGS = {"grid_width": None, "grid_blocks": 3, "grid_reduction": 32}
ADDED = {"global_pool": "avg", "head_std": False, "head_bits": 8}


@pytest.mark.parametrize(
    ("version", "unknown"),
    [
        (1, {"entry_reduction": 1, **GRID_SETTINGS, **ADDED}),
        (2, {**GRID_SETTINGS, **ADDED}),
        (3, ADDED),
        (4, ADDED),
        (5, {}),
        (6, {}),
    ],
)
def test_a_file_of_a_former_version_is_one_of_a_delta_as_there_was_then(
    path: Path, task: Task, source: Source, version: int, unknown: dict[str, Any]
) -> None:
    """Version 1 knew deltas that begin at the image alone, version 2 had no grid, and neither had halves; up to
    version 3 the middle was cut out of every picture. Up to version 4 every number had a byte or more, and all greys
    were in range, up to version 5 nothing was known to be unknown, and up to version 6 an image had one class."""

    def older(tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
        values["schema_version"] = version
        del values["thresholds"]
        if version <= 5:
            del values["unknown_above"]
        if version <= 4:
            del values["grey_range"]
        if version <= 3:
            del values["crop_mode"]
        for key, value in unknown.items():
            assert values["spec"].pop(key) == value
        if version < 3:
            tensors.update({key: tensor.float() for key, tensor in tensors.items() if tensor.is_floating_point()})

    rewrite(path, older)
    loaded, images = load_task(path, source), torch.randn(2, 3, 64, 64)
    assert loaded.spec == task.spec
    assert loaded.framing == (Framing(64, "center") if version <= 3 else task.framing)
    assert (loaded.unknown_above, loaded.thresholds) == (None, None)
    assert torch.equal(logits(source, loaded, images), logits(source, task, images))


def set_tensor(key: str, at: Any, value: Any) -> Callable[[dict[str, torch.Tensor], dict[str, Any]], None]:
    def change(tensors: dict[str, torch.Tensor], _: dict[str, Any]) -> None:
        tensors[key][at] = value

    return change


INDEX = "pools.layer4_0_conv1.index"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, _: t.pop("head.center"), "lacks the tensor 'head.center'"),
        (lambda t, _: t.update(extra=torch.zeros(1)), "unknown tensor 'extra'"),
        (
            lambda t, _: t.update({"head.center": torch.zeros(3)}),
            r"'head.center' has shape \(3,\), expected \(976,\)",
        ),
        (lambda t, _: t.update({"head.center": t["head.center"].double()}), "is torch.float64, expected torch.float32"),
        (lambda t, _: t.update({INDEX: t[INDEX].int()}), "is torch.int32, expected torch.int64"),
        (set_tensor("head.center", 0, math.nan), "'head.center' holds 1 NaN or infinite"),
        (set_tensor(INDEX, 0, 192), f"'{INDEX}' chooses channel 192 of 0 to 191"),
        (set_tensor(INDEX, 0, -1), f"'{INDEX}' chooses channel -1 of 0 to 191"),
        (set_tensor(INDEX, slice(None), 5), f"'{INDEX}' chooses a channel twice"),
    ],
)
def test_tensors_are_read_strictly(path: Path, source: Source, change: Any, message: str) -> None:
    rewrite(path, change)
    refused(path, source, message)


def test_damaged_files_never_surprise(path: Path, source: Source) -> None:
    """Whatever is flipped in the header, the file is refused with the family's error or loads."""
    content = path.read_bytes()
    header_bytes = 8 + int.from_bytes(content[:8], "little")
    generator = random.Random(0)
    messages = []
    for _ in range(150):
        damaged = bytearray(content)
        for _ in range(generator.choice([1, 1, 30])):
            damaged[generator.randrange(header_bytes)] = generator.randrange(256)
        path.write_bytes(damaged)
        try:
            load_task(path, source)
        except TaskFileError as error:
            messages.append(str(error))
    assert len(messages) > 100
    assert all(str(path) in message for message in messages)


# other sources


def test_another_network_is_refused(path: Path) -> None:
    other = load_source("test_efficientnet", weights="random")
    refused(path, other, "test_resnet .*is not test_efficientnet .*differ in name, weights|differ in name")


def test_other_weights_are_refused(path: Path) -> None:
    model = timm.create_model("test_resnet", num_classes=0)
    refused(path, make_source(model, "test_resnet", "random"), "they differ in the numbers of the weights")
    refused(path, make_source(model, "test_resnet", "mine.safetensors"), "they differ in weights")


def test_other_preprocessing_is_refused(path: Path, source: Source) -> None:
    config = replace(source.input_config, mean=(0.1, 0.2, 0.3))
    refused(path, Source(source.model, source.name, config, source.weights), "they differ in preprocessing")
