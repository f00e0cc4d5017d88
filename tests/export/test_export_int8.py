"""Files in int8: what they are made of, and what is measured of them."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from sample_tasks import CLASSES, sample_task
from torchsnow.errors import CompileError
from torchsnow.export.export import plan_export, smooth_images, write_export
from torchsnow.export.quantize import Measured, measure, validate_int8
from torchsnow.hub import Hub
from torchsnow.source import load_source


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Hub:
    source = load_source("test_resnet", "random")
    hub = Hub.create(tmp_path_factory.mktemp("hubs") / "hub", source)
    hub.add(sample_task(source, "pets", 4, seed=1))
    hub.add(sample_task(source, "pair", 2, seed=2))
    return hub


@pytest.fixture(scope="module")
def measured(hub: Hub) -> Measured:
    """Twelve images to calibrate on, twelve others of three classes that only "pets" knows."""
    images = smooth_images(24, 32, hub.source.input_config)
    labelled = [(image, number % 3) for number, image in enumerate(images)]
    return Measured("shapes", (CLASSES[2], CLASSES[0], CLASSES[1]), labelled[:12], labelled[12:])


@pytest.mark.parametrize(
    ("suffix", "package"), [(".onnx", "onnxscript"), (".xml", "nncf")], ids=["ONNX Runtime", "OpenVINO with NNCF"]
)
def test_int8_is_smaller_in_numbers_and_says_what_it_costs(
    suffix: str, package: str, hub: Hub, measured: Measured, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}")
    exported = write_export(plan_export(hub, tmp_path / f"q{suffix}", image_size=32, int8=True), measured)
    assert capfd.readouterr().out == ""
    assert sorted(tmp_path.iterdir()) == sorted(exported.files)
    pair, pets = exported.costs
    assert (pair.task, pets.task, pair.num_images, pets.num_images) == ("pair", "pets", 12, 12)
    assert (pair.fp32_accuracy, pair.int8_accuracy) == (None, None)
    images = torch.stack([image for image, _ in measured.held_out])
    given, expected = exported.plan.kind.load(exported.plan.out)(images), hub.predict(images)
    for cost in exported.costs:
        same = given[cost.task].argmax(1) == expected[cost.task].argmax(1)
        assert cost.agreement == pytest.approx(float(same.float().mean()))
        assert 0 < float((given[cost.task] - expected[cost.task]).abs().max()) < float(expected[cost.task].abs().max())
    if suffix == ".onnx":
        check_onnx(exported.plan.out)


def check_onnx(file: Path) -> None:
    """The source's convolutions read int8 and no delta's does; the description survived."""
    import onnx

    model = onnx.load(file)
    made_by = {output: node for node in model.graph.node for output in node.output}
    kinds = Counter()
    for node in model.graph.node:
        if node.op_type == "Conv":
            producer = made_by.get(node.input[1])
            kinds[node.input[1].split(".")[0], producer is not None] += 1
            assert (producer is not None) == node.input[1].startswith("source_pass.")
    assert set(kinds) == {("source_pass", True), ("readers", False)}
    (entry,) = model.metadata_props
    assert json.loads(entry.value)["quantized"] == {"bits": 8, "data": "shapes", "images": 12}


def test_accuracy_counts_the_right_classes(hub: Hub, measured: Measured) -> None:
    """A "file" that always says dog: a third of the images are; a file that is the hub itself agrees with it."""
    pets = hub.task("pets")
    logits = torch.eye(4)[pets.classes.index("dog")]
    (cost,) = measure(hub, [pets], {"pets": "out"}, lambda images: {"out": logits.expand(len(images), 4)}, measured)
    assert cost.int8_accuracy == pytest.approx(1 / 3)
    images = torch.stack([image for image, _ in measured.held_out])
    says = hub.predict(images, ["pets"])["pets"].argmax(1)
    truth = torch.tensor([pets.classes.index(measured.classes[label]) for _, label in measured.held_out])
    assert cost.fp32_accuracy == pytest.approx(float((says == truth).float().mean()))
    (cost,) = measure(hub, [pets], {"pets": "pets"}, lambda images: hub.predict(images, ["pets"]), measured)
    assert cost.agreement == 1
    assert cost.int8_accuracy == cost.fp32_accuracy


def test_int8_needs_a_quantiser(monkeypatch: pytest.MonkeyPatch) -> None:
    validate_int8("onnx")
    with pytest.raises(CompileError, match="int8 exists for the formats onnx and openvino"):
        validate_int8("torch")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CompileError, match=r"needs NNCF: pip install 'torchsnow\[int8\]'"):
        validate_int8("openvino")
