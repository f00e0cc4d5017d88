from __future__ import annotations

import ast
import importlib.util
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import TINY, Trained, refused, torchsnow
from PIL import Image, ImageOps

from torchsnow.data import eval_transform, read_image
from torchsnow.export.description import preprocessing
from torchsnow.hub import Hub
from torchsnow.source import Framing, load_source
from torchsnow.source.config import CROP_MODES

PAGE = Path(__file__).parent.parent.parent / "docs" / "export.md"
SCRIPTS = re.findall(r"^```py\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
FILE = re.compile(r'"my-hub\.(\w+)"')
NEEDS = {"onnx": "onnxscript", "xml": "openvino", "pt2": "torch", "tflite": "litert_torch"}
has_onnx = pytest.mark.skipif(importlib.util.find_spec("onnxscript") is None, reason="needs torchsnow[onnx]")


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Neither square nor upright, so that turning, resizing and cropping all matter."""
    pixels = np.random.default_rng(1).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((90, 53), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path_factory.mktemp("photo") / "photo.jpg"
    image.save(path, exif=exif, quality=95)
    return path


def test_the_page_has_a_script_for_every_format() -> None:
    assert sorted(suffix for script in SCRIPTS for suffix in FILE.findall(script)) == sorted(NEEDS)


def of_script(script: str) -> Any:
    (suffix,) = FILE.findall(script)
    return pytest.param(script, marks=[pytest.mark.integration] if suffix == "tflite" else [], id=suffix)


@pytest.mark.parametrize("script", [of_script(script) for script in SCRIPTS])
def test_the_scripts_of_the_page_say_what_predict_says(
    script: str, pristine: Trained, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (suffix,) = FILE.findall(script)
    if importlib.util.find_spec(NEEDS[suffix]) is None:
        pytest.skip(f"needs {NEEDS[suffix]}")
    assert "import torchsnow" not in script
    shutil.copy(photo, "photo.jpg")
    outcome = torchsnow("export", "--hub", pristine.hub, "--out", f"my-hub.{suffix}")
    assert (outcome.code, outcome.err) == (0, "")
    assert f"my-hub.{suffix}: " in outcome.out
    (prediction,) = torchsnow("predict", "photo.jpg", "--hub", pristine.hub, "--json").document["predictions"]
    exec(compile(script, PAGE.name, "exec"), {"__name__": "__main__"})
    task, label, probability = capsys.readouterr().out.splitlines()[-1].split()
    assert (task, label) == ("colours", prediction["label"])
    assert float(probability) == pytest.approx(prediction["probabilities"][label], abs=2e-4)


@pytest.mark.parametrize("crop_mode", CROP_MODES)
def test_the_scripts_prepare_images_as_the_tasks_do(crop_mode: str, photo: Path) -> None:
    source, framing = load_source("test_resnet", "random"), Framing(48, crop_mode)
    how = preprocessing(source.input_config, framing)
    expected = eval_transform(source.input_config, framing)(read_image(photo)).numpy()
    for script in SCRIPTS:
        known: dict[str, Any] = {"np": np, "Image": Image, "ImageOps": ImageOps}
        (made,) = (node for node in ast.parse(script).body if getattr(node, "name", None) == "prepare")
        exec(ast.unparse(made), known)
        np.testing.assert_allclose(known["prepare"](photo, how), expected, atol=1e-5)


def test_json_says_what_was_written(pristine: Trained, tmp_path: Path) -> None:
    outcome = torchsnow("export", "--hub", pristine.hub, "--out", "out.pt2", "--image-size", "48", "--json")
    assert (outcome.code, outcome.err) == (0, "")
    size_bytes = Path("out.pt2").stat().st_size
    assert outcome.document == {
        "files": ["out.pt2"],
        "size_bytes": size_bytes,
        "format": "torch",
        "image_size": 48,
        "outputs": {"colours": "colours"},
        "unknown_outputs": {},
        "checked": True,
        "fp16": False,
        "int8": [],
    }


@has_onnx
def test_int8_shows_its_cost(pristine: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchsnow.export.quantize.LOW_AGREEMENT", 1.01)
    words = ("export", "--hub", pristine.hub, "--out", "out.onnx", "--int8", "--calibrate", pristine.photos, "--json")
    outcome = torchsnow(*words)
    assert outcome.code == 0
    (cost,) = outcome.document["int8"]
    assert set(cost) == {"task", "num_images", "agreement", "fp32_accuracy", "int8_accuracy"}
    assert cost["num_images"] == pristine.printed["test_images"] == 6
    assert cost["fp32_accuracy"] == pytest.approx(pristine.printed["test_accuracy"])
    assert "warning: int8 names another class than fp32 on" in outcome.err


def test_tasks_of_two_sizes_need_a_decision(trained: Trained, tmp_path: Path) -> None:
    words = ("--task", "large", "--hub", trained.hub, "--out", tmp_path / "run2", *TINY, "--epochs", "1")
    assert torchsnow("train", trained.photos, *words, "--image-size", "48").code == 0
    sentence = refused("export", "--hub", trained.hub, "--out", "out.pt2")
    assert "prepared differently (32 px, squash: colours; 48 px, squash: large)" in sentence
    assert "--task" in sentence
    assert "--image-size" in sentence
    assert torchsnow("export", "--hub", trained.hub, "--out", "out.pt2", "--task", "large").code == 0


def test_what_cannot_be_exported(pristine: Trained, tmp_path: Path) -> None:
    def export(*words: str | Path, hub: Path = pristine.hub) -> str:
        return refused("export", "--hub", hub, *words)

    Hub.create(tmp_path / "bare", load_source("test_resnet", weights="random"))
    assert "bare has no tasks yet" in export("--out", "a.pt2", hub=tmp_path / "bare")
    assert "is not a hub" in export("--out", "a.pt2", hub=tmp_path)
    assert "has no task 'colors'; did you mean colours?" in export("--out", "a.pt2", "--task", "colors")
    assert "format 'onnx' ends in .onnx" in export("--out", "a.pt2", "--format", "onnx")
    assert "make it first" in export("--out", "none/a.pt2")
    assert "int8 exists for" in export("--out", "a.pt2", "--int8", "--calibrate", pristine.photos)
    assert list(tmp_path.glob("*.pt2")) == []


@has_onnx
def test_nothing_to_calibrate_on(pristine: Trained, tmp_path: Path) -> None:
    (tmp_path / "empty" / "red").mkdir(parents=True)
    words = ("export", "--hub", pristine.hub, "--out", "a.onnx", "--int8", "--calibrate")
    assert "does not exist" in refused(*words, "nowhere")
    assert "empty" in refused(*words, tmp_path / "empty")
    assert not Path("a.onnx").exists()


@pytest.mark.skipif(importlib.util.find_spec("coremltools") is None, reason="needs torchsnow[coreml]")
@pytest.mark.skipif(sys.platform == "darwin", reason="Core ML runs here")
def test_what_cannot_be_checked_here_is_said(pristine: Trained, tmp_path: Path) -> None:
    outcome = torchsnow("export", "--hub", pristine.hub, "--out", "my-hub.mlpackage")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.splitlines()[-1].endswith("not checked, as Core ML does not exist for this system")
