from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from torchsnow.compile import AutoEngine, EagerEngine, Work, auto, backends
from torchsnow.compile.native import NativeEngine
from torchsnow.delta import Delta
from torchsnow.errors import CompileError
from torchsnow.experiments.served import random_deltas
from torchsnow.methods import PRESETS
from torchsnow.source import Source, load_source

pytestmark = pytest.mark.skipif(not (os.environ.get("CXX") or shutil.which("g++")), reason="needs a C++ compiler")

ROWS = (0, 1)


@pytest.fixture(scope="module")
def source() -> Source:
    return load_source("test_resnet", "random")


@pytest.fixture(scope="module")
def deltas(source: Source) -> list[Delta]:
    return random_deltas(source, PRESETS["default"].spec(3), 2)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 32, 32)


def times(**given: float) -> object:
    return lambda engines, delta, pictures: {name: given[name] for name in engines}


@pytest.mark.parametrize("faster", ["native", "eager"])
def test_the_faster_one_is_chosen_once(
    source: Source, deltas: list[Delta], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faster: str
) -> None:
    choices = tmp_path / "engines.json"
    monkeypatch.setattr(auto, "_times_s", times(**{"native": 2.0, "eager": 2.0, faster: 1.0}))
    first = AutoEngine(source, choices)
    assert {first.prepare(delta).engine.name for delta in deltas} == {faster}
    assert list(json.loads(choices.read_text()).values()) == [faster]
    monkeypatch.setattr(auto, "_times_s", None)  # a second start measures nothing
    assert AutoEngine(source, choices).prepare(deltas[0]).engine.name == faster


def test_answers_are_pytorchs(source: Source, deltas: list[Delta], images: Tensor, tmp_path: Path) -> None:
    engine, eager = AutoEngine(source, tmp_path / "engines.json"), EagerEngine(source)
    given = engine.run(images, [Work(engine.prepare(delta), ROWS) for delta in deltas])
    expected = eager.run(images, [Work(eager.prepare(delta), ROWS) for delta in deltas])
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-4)


def test_an_engine_that_computes_something_else_is_not_used(
    source: Source, deltas: list[Delta], images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one task; the other goes on with it, and both answer together."""
    monkeypatch.setattr(auto, "_times_s", times(native=1.0, eager=2.0))
    engine, eager = AutoEngine(source, tmp_path / "engines.json"), EagerEngine(source)
    good = engine.prepare(deltas[0])
    run = NativeEngine.run
    monkeypatch.setattr(NativeEngine, "run", lambda *args: [logits + 1 for logits in run(*args)])
    bad = engine.prepare(deltas[1])
    monkeypatch.undo()
    assert (good.engine.name, bad.engine.name) == ("native", "eager")
    assert "differ from PyTorch's" in engine.note
    expected = eager.run(images, [Work(eager.prepare(delta), ROWS) for delta in deltas])
    torch.testing.assert_close(engine.run(images, [Work(good, ROWS), Work(bad, ROWS)]), expected, rtol=1e-4, atol=1e-4)


def test_an_engine_that_names_other_classes_is_not_used(
    source: Source, deltas: list[Delta], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where real images are given, although every logit is near enough to PyTorch's."""
    half = Source(source.model, source.name, source.input_config, source.weights, "bf16")
    monkeypatch.setattr(auto, "_times_s", times(native=1.0, eager=2.0))
    run = NativeEngine.run

    def other(*args: Any) -> list[Tensor]:
        """Within the tolerance, and all classes alike."""
        return [logits * 0 + logits.mean() for logits in run(*args)]

    images = torch.randn(50, 3, 32, 32)
    assert AutoEngine(half, tmp_path / "engines.json", images).prepare(deltas[0]).engine.name == "native"
    monkeypatch.setattr(NativeEngine, "run", other)
    monkeypatch.setitem(backends.TOLERANCES, "bf16", 10.0)
    engine = AutoEngine(half, tmp_path / "engines.json", images)
    assert engine.prepare(deltas[0]).engine.name == "eager"
    assert "PyTorch's class for" in engine.note


def test_a_choice_is_of_one_precision(source: Source, tmp_path: Path) -> None:
    half = Source(source.model, source.name, source.input_config, source.weights, "bf16")
    assert AutoEngine(source)._key() != AutoEngine(half)._key()


def test_without_a_compiler_pytorch_answers(
    source: Source, deltas: list[Delta], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise CompileError("no compiler")

    monkeypatch.setattr("torchsnow.compile.native.engine.kernel", refuse)
    engine = AutoEngine(source, tmp_path / "engines.json")
    assert engine.prepare(deltas[0]).engine.name == "eager"
    assert "no compiler" in engine.note


@pytest.mark.parametrize("content", ["", "[]", '{"other": "native"}', '{"KEY": "gone"}'])
def test_a_file_of_choices_that_says_nothing_is_measured_again(
    source: Source, deltas: list[Delta], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.setattr(auto, "_times_s", times(native=1.0, eager=2.0))
    engine = AutoEngine(source, tmp_path / "engines.json")
    (tmp_path / "engines.json").write_text(content.replace("KEY", engine._key()))
    assert engine.prepare(deltas[0]).engine.name == "native"
    assert "native" in (tmp_path / "engines.json").read_text()


def test_a_disk_that_refuses_costs_nothing_but_the_measurement(
    source: Source, deltas: list[Delta], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "_times_s", times(native=1.0, eager=2.0))
    (tmp_path / "file").write_text("")
    assert AutoEngine(source, tmp_path / "file" / "engines.json").prepare(deltas[0]).engine.name == "native"
