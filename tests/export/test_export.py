from __future__ import annotations

import importlib.util
import json
import os
import resource
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sample_tasks import sample_task
from torchsnow.errors import CompileError, HubError, SourceError
from torchsnow.export import formats
from torchsnow.export.coreml import MOST_IMAGES
from torchsnow.export.description import output_names
from torchsnow.export.export import Export, plan_export, smooth_images, write_export
from torchsnow.export.formats import FORMATS, Written
from torchsnow.export.quiet import silence
from torchsnow.hub import Hub
from torchsnow.hub.live import LiveHub
from torchsnow.source import InputConfig, Source, load_source
from torchsnow.task_file import content_hash

NEEDS = {
    "onnx": "onnxscript",
    "openvino": "openvino",
    "torch": "torch",
    "coreml": "coremltools",
    "tflite": "litert_torch",
}
# "images" is the input's name, "relu" one of ONNX's inner values
NAMES = ["grid", "images", "relu", "small-cats.v1", "twin"]


def of_format(name: str) -> Any:
    missing = importlib.util.find_spec(NEEDS[name]) is None
    marks = [pytest.mark.skipif(missing, reason=f"needs torchsnow[{name}]")]
    if name == "tflite":  # a minute to write, and hundreds of MB of others' code
        marks.append(pytest.mark.integration)
    return pytest.param(name, marks=marks)


@contextmanager
def room_for_files(size_bytes: int) -> Iterator[None]:
    """No file can be larger meanwhile, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("kind", [of_format(name) for name in FORMATS])
def test_a_disk_without_room_is_named_and_nothing_is_left(kind: str, hub: Hub, tmp_path: Path) -> None:
    out = tmp_path / f"all{FORMATS[kind].suffix}"
    plan = plan_export(hub, out)
    with room_for_files(20_000), pytest.raises(CompileError, match=r"cannot write .*all.*: the file is larger than"):
        write_export(plan)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def source() -> Source:
    return load_source("test_resnet", "random")


@pytest.fixture(scope="module")
def hub(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Hub:
    """Five tasks at 64 px; "grid" has a grid body, "images" is a head alone, "twin" has the numbers of "relu"."""
    hub = Hub.create(tmp_path_factory.mktemp("hubs") / "hub", source)
    hub.add(sample_task(source, "grid", 2, seed=4, width_divisor=None, grid_width=8, grid_blocks=1))
    hub.add(replace(sample_task(source, "images", 2, seed=1, width_divisor=None), thresholds=(0.5, 0.4)))
    hub.add(replace(sample_task(source, "small-cats.v1", 4, seed=2), unknown_above=0.8))
    for name in ("relu", "twin"):
        hub.add(sample_task(source, name, 3, seed=3))
    return hub


@pytest.fixture(scope="module", params=[of_format(name) for name in FORMATS])
def exported(request: pytest.FixtureRequest, hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Export:
    out = tmp_path_factory.mktemp("exported") / f"all{FORMATS[request.param].suffix}"
    return write_export(plan_export(hub, out))


def core_ml_spec(out: Path) -> Any:
    with silence():
        import coremltools

        return coremltools.utils.load_spec(str(out))


def description(exported: Export) -> dict[str, Any]:
    """What the file says about itself, read by its own library."""
    out = exported.plan.out
    if out.suffix == ".onnx":
        import onnx

        (entry,) = onnx.load(out).metadata_props
        assert entry.key == "torchsnow"
        text = entry.value
    elif out.suffix == ".xml":
        import openvino

        text = openvino.Core().read_model(out).get_rt_info("torchsnow").astype(str)
    elif out.suffix == ".mlpackage":
        text = core_ml_spec(out).description.metadata.userDefined["torchsnow"]
    elif out.suffix == ".tflite":
        text = zipfile.ZipFile(out).read("torchsnow.json").decode()
    else:
        extra = {"torchsnow.json": ""}
        torch.export.load(out, extra_files=extra)
        text = extra["torchsnow.json"]
    document: dict[str, Any] = json.loads(text)
    return document


@pytest.mark.parametrize("batch_size", [1, 2, 9])
def test_outputs_are_the_hubs_for_any_batch_size(exported: Export, hub: Hub, batch_size: int) -> None:
    if not exported.plan.kind.runs_here:
        pytest.skip(f"{exported.plan.kind.runtime} does not exist for this system")
    images = torch.randn(batch_size, 3, 64, 64)
    given = exported.plan.kind.load(exported.plan.out)(images)
    expected = hub.predict(images)
    assert set(given) == {*exported.plan.outputs.values(), *exported.plan.unknown_outputs.values()}
    for task, output in exported.plan.outputs.items():
        torch.testing.assert_close(given[output], expected[task], rtol=1e-4, atol=1e-4)
    assert torch.equal(given["relu"], given["twin"])
    (name,) = exported.plan.unknown_outputs.values()
    scores = LiveHub(hub).predict(images)["small-cats.v1"].unknown_scores
    torch.testing.assert_close(given[name], scores, rtol=1e-4, atol=1e-4)


def test_the_file_says_all_that_its_user_needs(exported: Export, hub: Hub) -> None:
    said = description(exported)
    assert [task["name"] for task in said["tasks"]] == NAMES
    for task in said["tasks"]:
        assert task["output"] == exported.plan.outputs[task["name"]]
        assert task["unknown_output"] == exported.plan.unknown_outputs.get(task["name"])
        assert task["thresholds"] == ([0.5, 0.4] if task["name"] == "images" else None)
        assert task["classes"] == list(hub.task(task["name"]).classes)
        assert task["sha256"] == hub.infos()[task["name"]].sha256
        (file,) = (hub.folder.path / "tasks" / task["name"]).iterdir()
        assert task["sha256"] == content_hash(file.read_bytes())
    config = hub.source.input_config
    assert said["preprocessing"]["mean"] == list(config.mean)
    assert said["preprocessing"]["std"] == list(config.std)
    assert said["preprocessing"]["crop"] == "squash"
    assert said["preprocessing"]["resize_size"] == int(64 / config.crop_pct)
    assert (said["preprocessing"]["image_size"], said["input"], said["quantized"]) == (64, "images", None)
    assert said["source"]["fingerprint"] == hub.source.fingerprint


def test_nothing_else_is_left_in_the_folder(exported: Export) -> None:
    assert sorted(exported.plan.out.parent.iterdir()) == sorted(exported.files)
    files = [one for path in exported.files for one in (path, *path.rglob("*")) if one.is_file()]
    assert exported.size_bytes == sum(file.stat().st_size for file in files)


def test_names_of_outputs() -> None:
    assert output_names(["a.b", "a-b", "images", "7up"], identifiers=True) == {
        "a.b": "a_b",
        "a-b": "a_b_2",
        "images": "images_2",
        "7up": "_7up",
    }
    assert output_names(["a.b", "7up"], identifiers=False) == {"a.b": "a.b", "7up": "7up"}


def test_an_onnx_file_is_valid_and_has_one_source(exported: Export) -> None:
    if exported.plan.kind.name != "onnx":
        pytest.skip("a question of ONNX")
    import onnx

    model = onnx.load(exported.plan.out)
    onnx.checker.check_model(model)
    of_source = [n for n in model.graph.node if n.op_type == "Conv" and n.input[1].startswith("source_pass.")]
    layers = {name.rpartition(".")[0] for name, _ in exported.plan.hub.source.model.named_parameters()}
    assert 0 < len(of_source) <= len(layers)
    assert [str(output.name) for output in model.graph.output] == [
        *("grid", "images_2", "relu", "small_cats_v1", "small_cats_v1_unknown_score", "twin")
    ]


def test_a_core_ml_package_names_what_goes_in_and_out(exported: Export) -> None:
    if exported.plan.kind.name != "coreml":
        pytest.skip("a question of Core ML")
    spec = core_ml_spec(exported.plan.out)
    assert (spec.specificationVersion, spec.WhichOneof("Type")) == (6, "mlProgram")  # iOS 15, macOS 12
    (given,) = spec.description.input
    assert given.name == "images"
    sizes = [(one.lowerBound, one.upperBound) for one in given.type.multiArrayType.shapeRange.sizeRanges]
    assert sizes == [(1, MOST_IMAGES), (3, 3), (64, 64), (64, 64)]
    outputs = {output.name for output in spec.description.output}
    assert outputs == {"grid", "images_2", "relu", "small_cats_v1", "small_cats_v1_unknown_score", "twin"}
    assert {one.type.multiArrayType.dataType for one in (given, *spec.description.output)} == {65568}  # float32


@pytest.mark.parametrize("kind", [of_format("coreml")])
def test_a_core_ml_package_replaces_one_but_no_other_folder(kind: str, hub: Hub, tmp_path: Path) -> None:
    out = tmp_path / "some.mlpackage"
    out.mkdir()
    (out / "kept.txt").write_text("mine")
    with pytest.raises(CompileError, match="this is a folder; name a file"):
        plan_export(hub, out)
    (out / "Manifest.json").write_text("{}")
    write_export(plan_export(hub, out, names=["relu"]))
    assert list(tmp_path.iterdir()) == [out]
    assert not (out / "kept.txt").exists()


def write_torch(hub: Hub, out: Path, **wishes: Any) -> Export:
    return write_export(plan_export(hub, out, **wishes))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [of_format(name) for name in ("onnx", "openvino", "coreml")])
def test_half_the_bits_are_nearly_half_the_size(kind: str, hub: Hub, tmp_path: Path) -> None:
    full, half = (
        write_export(plan_export(hub, tmp_path / f"{name}{FORMATS[kind].suffix}", names=["relu"], how=how))
        for name, how in (("full", Written()), ("half", Written(half=True)))
    )
    assert description(half)["quantized"] == {"bits": 16}
    weights = 4 * sum(tensor.numel() for tensor in hub.source.model.state_dict().values())
    assert full.size_bytes - half.size_bytes > 0.4 * weights
    if not FORMATS[kind].runs_here:
        return
    images = torch.randn(3, 3, 64, 64)
    given = half.plan.kind.load(half.plan.out)(images)["relu"]
    torch.testing.assert_close(given, hub.predict(images, ["relu"])["relu"], rtol=0, atol=1e-2)


@pytest.mark.parametrize("opset", [pytest.param(18, marks=of_format("onnx").marks)])
def test_the_opset_is_the_one_that_is_asked_for(opset: int, hub: Hub, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    write_export(plan_export(hub, tmp_path / "a.onnx", names=["relu"], how=Written(opset=opset)))
    assert {one.domain: one.version for one in onnx.load(tmp_path / "a.onnx").opset_import}[""] == opset


def test_an_opset_that_cannot_be_written_leaves_nothing(
    hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("onnxscript")
    with pytest.raises(CompileError, match="opset 5"):
        write_export(plan_export(hub, tmp_path / "a.onnx", names=["relu"], how=Written(opset=5)))
    assert list(tmp_path.iterdir()) == []
    assert not any("Failed to convert" in one.message for one in caplog.records)


@pytest.mark.parametrize(
    ("suffix", "how", "int8", "words"),
    [
        (".pt2", Written(half=True), False, "the format torch has no fp16; leave out --fp16"),
        (".onnx", Written(half=True), True, "int8 has fewer bits than fp16 already"),
        (".pt2", Written(opset=18), False, "an opset is ONNX's, not of the format torch; leave out --opset"),
    ],
)
def test_wishes_that_contradict_each_other(
    suffix: str, how: Written, int8: bool, words: str, hub: Hub, tmp_path: Path
) -> None:
    with pytest.raises(CompileError, match=words):
        plan_export(hub, tmp_path / f"a{suffix}", int8=int8, how=how)


def test_chosen_tasks_at_another_size_replace_an_old_file(hub: Hub, tmp_path: Path) -> None:
    out = tmp_path / "some.pt2"
    out.write_text("old")
    exported = write_torch(hub, out, names=["relu"], image_size=32)
    given = exported.plan.kind.load(out)(torch.zeros(3, 3, 32, 32))
    assert {name: tuple(value.shape) for name, value in given.items()} == {"relu": (3, 3)}
    assert description(exported)["preprocessing"]["image_size"] == 32
    assert exported.plan.kind.files(out) == [out] == list(tmp_path.iterdir())


def test_a_bf16_hub_is_exported_in_fp32(source: Source, tmp_path: Path) -> None:
    bf16 = Source(source.model, source.name, source.input_config, source.weights, "bf16")
    hub = Hub.create(tmp_path / "hub", bf16)
    hub.add(sample_task(bf16, "relu", 3, seed=3))
    exported = write_torch(hub, tmp_path / "out.pt2")
    images = torch.randn(2, 3, 64, 64)
    expected = Hub.open(tmp_path / "hub", source).predict(images)["relu"]
    torch.testing.assert_close(exported.plan.kind.load(exported.plan.out)(images)["relu"], expected)


@pytest.fixture
def _wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime that is a little off for batches other than the traced size."""
    kind = FORMATS["torch"]

    def load(path: Path) -> Any:
        run = kind.load(path)
        return lambda images: {name: value + 0.01 * (len(images) > 2) for name, value in run(images).items()}

    changed = formats.Format(kind.name, kind.suffix, kind.runtime, kind.write, load)
    monkeypatch.setitem(FORMATS, "torch", changed)


@pytest.mark.usefixtures("_wrong")
def test_a_file_that_computes_something_else_is_not_written(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "out.pt2").write_text("old")
    with pytest.raises(CompileError, match=r"was not written: torch.export's output 'relu' differs .* by 1\.0e-02"):
        write_torch(hub, tmp_path / "out.pt2", names=["relu"])
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("out.pt2", "old")]


def test_a_disk_that_fails_leaves_nothing(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(CompileError, match=r"cannot write .*out\.pt2: the disk is full"):
        write_torch(hub, tmp_path / "out.pt2", names=["relu"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(importlib.util.find_spec("onnxscript") is None, reason="needs torchsnow[onnx]")
def test_more_than_an_onnx_file_holds(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "ONNX_LIMIT_BYTES", 1000)
    with pytest.raises(CompileError, match=r"an ONNX file holds 2 GB; export fewer tasks"):
        write_export(plan_export(hub, tmp_path / "out.onnx", names=["relu"]))
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_fit_together(hub: Hub, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        CompileError, match="there is no format 'mnn'; expected one of onnx, openvino, torch, coreml, tflite"
    ):
        plan_export(hub, tmp_path / "a.onnx", "mnn")
    with pytest.raises(
        CompileError, match=r"of a\.bin says no format; expected \.onnx, .*, \.pt2, \.mlpackage, \.tflite"
    ):
        plan_export(hub, tmp_path / "a.bin")
    with pytest.raises(CompileError, match="the image size is 8000; expected 1 to 1024 pixels"):
        plan_export(hub, tmp_path / "a.pt2", names=["relu"], image_size=8000)
    with pytest.raises(CompileError, match=r"format 'torch' ends in \.pt2, not as a\.onnx does"):
        plan_export(hub, tmp_path / "a.onnx", "torch")
    with pytest.raises(CompileError, match=r"there is no folder .*; make it first"):
        plan_export(hub, tmp_path / "none" / "a.pt2")
    (tmp_path / "folder.pt2").mkdir()
    with pytest.raises(CompileError, match="this is a folder; name a file"):
        plan_export(hub, tmp_path / "folder.pt2")
    with pytest.raises(CompileError, match="wants a path in UTF-8; choose another"):
        plan_export(hub, tmp_path / os.fsdecode(b"caf\xe9.onnx"))
    with pytest.raises(HubError, match="has no task 'twins'; did you mean twin"):
        plan_export(hub, tmp_path / "a.pt2", names=["twins"])
    with pytest.raises(CompileError, match="int8 exists for the formats onnx and openvino"):
        plan_export(hub, tmp_path / "a.pt2", int8=True)
    with pytest.raises(HubError, match="has no tasks yet"):
        plan_export(Hub.create(tmp_path / "bare", source), tmp_path / "a.pt2")
    with room_for_files(100), pytest.raises(CompileError, match=r"cannot write into .*: the file is larger than"):
        plan_export(hub, tmp_path / "a.pt2")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for suffix, extra in ((".onnx", "onnx"), (".xml", "openvino"), (".mlpackage", "coreml"), (".tflite", "tflite")):
        with pytest.raises(CompileError, match=rf"pip install 'torchsnow\[{extra}\]'"):
            plan_export(hub, tmp_path / f"a{suffix}")


def test_a_size_that_the_network_cannot_take(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("Kernel size can't be greater than actual input size\nand more")

    monkeypatch.setattr(Source, "_run_plan", refuse)
    with pytest.raises(SourceError, match=r"cannot take images of shape .* Kernel size can't be greater"):
        write_torch(hub, tmp_path / "out.pt2", image_size=32)
    with pytest.raises(SourceError, match="8 x 8 pixels, less than the 32 x 32 of one cell"):
        write_torch(hub, tmp_path / "out.pt2", image_size=8)


def test_pictures_to_compare_with_are_smooth_and_normalised() -> None:
    config = InputConfig((3, 64, 64), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "bicubic", 0.9)
    images = smooth_images(4, 64, config)
    pixels = np.asarray(images * 0.25 + 0.5)
    assert pixels.min() >= 0
    assert pixels.max() <= 1
    assert pixels.std() > 0.05
    assert np.abs(np.diff(pixels)).mean() < pixels.std() / 4
    assert not torch.equal(images[0], images[1])
