from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
from command_line import TINY, Trained, refused, snapshot, torchsnow

from torchsnow.explain.channels import maximise


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchsnow.explain.page.maximise", partial(maximise, steps=2))
    monkeypatch.setattr("torchsnow.plots.DPI", 30)


def test_everything_at_once(pristine: Trained, tmp_path: Path) -> None:
    before = snapshot(pristine.hub, pristine.run)
    words = ("--hub", pristine.hub, "--task", "colours", "--out", tmp_path / "out", "--channels", "2")
    picture = pristine.photos / "red" / "0.png"
    outcome = torchsnow("visualize", pristine.photos, *words, "--image", picture, "--run", pristine.run, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    files = [Path(file) for file in outcome.document["files"]]
    assert outcome.document["tasks"] == ["colours"]
    parts = ("depth", "channels", "maps", "attribution")
    assert [file.name for file in files] == [
        *(f"colours-{part}.png" for part in parts),
        "subscription.json",
        "index.html",
    ]
    assert set(files) == set((tmp_path / "out").iterdir())
    numbers = json.loads(files[-2].read_text())["tasks"]["colours"]
    assert len(numbers["channels"]) == 2
    ended = json.loads((pristine.run / "subscription.json").read_text())
    for part, pool in (("layers", "grid"), ("head", "head")):
        read = ended.get(pool, {"index": []})["index"]  # a body that counts nothing does not ship
        assert sum(len(tap["index"]) for tap in numbers[part]) == len(read)
    assert snapshot(pristine.hub, pristine.run) == before


def test_a_person_is_told_where_to_look(pristine: Trained, tmp_path: Path) -> None:
    outcome = torchsnow("visualize", "--hub", pristine.hub, "--task", "colours", "--out", tmp_path / "out")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out == f"3 files are in {tmp_path / 'out'}; open {tmp_path / 'out' / 'index.html'}\n"


def test_what_cannot_be_shown(pristine: Trained, tmp_path: Path) -> None:
    def words(*more: str | Path, task: str = "colours", hub: Path = pristine.hub) -> tuple[str | Path, ...]:
        return "visualize", *more, "--hub", hub, "--task", task, "--out", tmp_path / "out"

    text = tmp_path / "text.png"
    text.write_text("no image")
    assert "did you mean colours?" in refused(*words(task="colour"))
    assert "is not a hub" in refused(*words(hub=tmp_path / "none"))
    assert "channels to show is 0; expected 1 or more" in refused(*words("--channels", "0"))
    assert "cannot read the image" in refused(*words("--image", text))
    assert "there is no such file" in refused(*words("--image", tmp_path / "gone.png"))
    assert "holds no run" in refused(*words("--run", tmp_path))
    assert "device is 'tpu'" in refused(*words("--device", "tpu"))
    assert "lies inside the data" in refused(*words(tmp_path))
    assert "'nowhere' does not exist" in refused(*words("nowhere"))


def test_data_whose_images_cannot_be_read(pristine: Trained, tmp_path: Path) -> None:
    photos = Path(shutil.copytree(pristine.photos, tmp_path / "photos"))
    for file in (photos / "red").iterdir():
        file.write_bytes(b"junk")
    sentence = refused("visualize", photos, "--hub", pristine.hub, "--task", "colours", "--out", tmp_path / "out")
    assert "no image of the class 'red'" in sentence


def test_a_run_of_another_task(trained: Trained, tmp_path: Path) -> None:
    words = ("--epochs", "1", "--seed", "5", "--preset", "paper", "--json")
    other = torchsnow(
        "train", trained.photos, "--task", "other", "--hub", trained.hub, "--out", tmp_path / "other", *TINY, *words
    )
    assert other.code == 0, other
    given = ("--hub", trained.hub, "--task", "colours", "--out", tmp_path / "out", "--run", tmp_path / "other")
    assert "is not that of task 'colours'" in refused("visualize", *given)
    outcome = torchsnow("visualize", *given, "--task", "other", "--json")
    assert outcome.code == 0, outcome
    names = [Path(file).name for file in outcome.document["files"]]
    assert "other-settling.png" in names
    assert "colours-settling.png" not in names
