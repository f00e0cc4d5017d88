from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from command_line import refused, torchsnow

from torchsnow.experiments import serving_speed, training_speed

TINY = ("--source", "test_resnet", "--image-size", "32", "--batch-size", "2", "--rounds", "1")


@pytest.fixture(autouse=True)
def _no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (training_speed, serving_speed):
        monkeypatch.setattr(module, "peak_bytes", lambda device, prepare, whole: 2**20)


def test_a_person_gets_tables_and_files(tmp_path: Path) -> None:
    outcome = torchsnow("bench", *TINY, "--methods", "head", "--tasks", "1,2", "--out", tmp_path / "out")
    assert outcome.code == 0, outcome
    assert outcome.err.splitlines()[0] == "measuring training steps"
    lines = outcome.out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["training", "full", "head"]
    assert len(lines) == 3 + 1 + 6 + 1
    assert lines[-2].split()[:2] == ["2", "SNOW"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["bench.csv", "bench.json", "bench.png"]


def test_a_machine_gets_the_file_and_no_progress(tmp_path: Path) -> None:
    outcome = torchsnow("bench", *TINY, "--only", "inference", "--tasks", "3", "--out", tmp_path, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out == (tmp_path / "bench.json").read_text()
    document = outcome.document
    assert document["training"] is None
    assert [(row["kind"], row["tasks"]) for row in document["inference"]["rows"]] == [
        ("separate", 3),
        ("heads", 3),
        ("snow", 3),
    ]
    settings = document["settings"]
    assert (settings["backend"], settings["weights"], settings["rounds"]) == ("eager", "random", 1)


def test_training_alone(tmp_path: Path) -> None:
    outcome = torchsnow("bench", *TINY, "--only", "training", "--precision", "bf16", "--out", tmp_path, "--json")
    assert outcome.code == 0, outcome
    assert [(row["method"], row["precision"]) for row in outcome.document["training"]] == [
        ("full", "fp32"),
        ("head", "bf16"),
        ("snow", "bf16"),
    ]
    assert outcome.document["inference"] is None


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs torchsnow[openvino]")
def test_openvino(tmp_path: Path) -> None:
    options = ("--only", "inference", "--backend", "openvino", "--tasks", "1", "--out", tmp_path, "--json")
    outcome = torchsnow("bench", *TINY, *options)
    assert (outcome.code, outcome.err) == (0, "")
    assert "openvino" in outcome.document["versions"]
    assert len(outcome.document["inference"]["rows"]) == 3


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--backend", "tvm"), "no backend 'tvm'; expected one of eager, inductor, onnx, openvino"),
        (("--tasks", "5,1"), "tasks is '5,1'; expected ascending whole numbers"),
        (("--tasks", "1,,2"), "tasks is '1,,2'; expected whole numbers"),
        (("--rounds", "0"), "rounds is 0"),
        (("--device", "tpu"), "device is 'tpu'"),
        (("--only", "speed"), "no part 'speed'; expected one of training, inference"),
        (("--only", "training", "--tasks", "1"), "--only training and --tasks contradict"),
        (("--only", "training", "--backend", "eager"), "--only training and --backend contradict"),
        (("--only", "inference", "--methods", "snow"), "--only inference and --methods contradict"),
        (("--only", "inference", "--precision", "bf16"), "--only inference and --precision contradict"),
        (("--methods", "snow,"), "no method ''"),
        (("--image-size", "0"), "image_size is 0"),
        (("--image-size", "8000", "--only", "inference"), "image_size is 8000; expected 1024 pixels or fewer"),
        (("--source", "resnet51"), "did you mean"),
        (("--source", "bundled", "--weights", "random"), "has weights of its own"),
    ],
)
def test_bad_input_is_refused(tmp_path: Path, words: tuple[str, ...], sentence: str) -> None:
    assert sentence in refused("bench", *TINY, "--out", tmp_path / "out", *words)
    assert not (tmp_path / "out" / "bench.json").exists()


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'torchsnow[openvino]'" in refused("bench", *TINY, "--backend", "openvino", "--out", tmp_path)


def test_cuda_without_cuda_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "torch sees no CUDA device" in refused("bench", *TINY, "--device", "cuda", "--out", tmp_path)


def test_a_folder_that_cannot_be_made_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot make the folder" in refused("bench", *TINY, "--out", tmp_path / "file" / "out")
