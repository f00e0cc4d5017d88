"""The whole page, from a hub to a folder."""

from __future__ import annotations

import json
from contextlib import nullcontext
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from sample_photos import make_photos
from sample_tasks import sample_task
from torchsnow.data import LoadedData, load_data
from torchsnow.errors import DataError, HubError, TorchsnowError
from torchsnow.explain import Visualization
from torchsnow.explain.channels import maximise
from torchsnow.hub import Hub
from torchsnow.methods.snow import make_snow
from torchsnow.source import Framing, load_source
from torchsnow.task_file import make_task
from torchsnow.train import RunFolder

NAMES = ("cats", "dogs")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Hub:
    """Two tasks that subscribe, and one that does not; not to be changed."""
    source = load_source("test_resnet", "random")
    hub = Hub.create(tmp_path_factory.mktemp("hubs") / "hub", source)
    for seed, name in enumerate(NAMES):
        hub.add(sample_task(source, name, seed=seed, head_divisor=4))
    hub.add(sample_task(source, "loner", taps=(), head_taps=(), head_last=False))
    return hub


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> LoadedData:
    return load_data(make_photos(tmp_path_factory.mktemp("photos") / "data", 3))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchsnow.explain.page.maximise", partial(maximise, steps=2))
    monkeypatch.setattr("torchsnow.plots.DPI", 30)


def drawn(hub: Hub, out: Path, *names: str, data: LoadedData | None = None, image: Path | None = None) -> list[str]:
    """The names of the files, in order."""
    whole = Visualization(hub, names, out, run=None, image=image, num_channels=3)
    files = whole.write(data, torch.device("cpu"), lambda what: nullcontext(lambda done, total: None))
    assert all(file.parent == out and file.stat().st_size for file in files)
    return [file.name for file in files]


class Reader(HTMLParser):
    """What a page shows and what it points to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words, self.targets = "", []
        self.feed(text)

    def handle_data(self, data: str) -> None:
        self.words += data

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.targets += [value for name, value in attrs if name in ("src", "href") and value is not None]


def test_everything_of_one_task(hub: Hub, data: LoadedData, tmp_path: Path) -> None:
    names = drawn(hub, tmp_path, "cats", data=data, image=data.examples[0].path)
    pictures = [f"cats-{part}.png" for part in ("depth", "channels", "maps", "attribution")]
    assert names == [*pictures, "overlap-layers.png", "overlap-head.png", "subscription.json", "index.html"]
    page = Reader((tmp_path / "index.html").read_text())
    assert len(page.targets) == 6
    assert all(target.startswith("data:image/png;base64,") for target in page.targets)
    numbers = json.loads((tmp_path / "subscription.json").read_text())
    assert list(numbers["tasks"]) == ["cats"]
    cats = numbers["tasks"]["cats"]
    assert [part["tap"] for part in cats["layers"]] == list(hub.source.taps)
    assert len(cats["channels"]) == 3
    assert len(cats["channels"][0]["top_images"]) == 8
    assert (data.root / cats["channels"][0]["top_images"][0]["image"]).is_file()
    assert cats["attribution"]["class"] in hub.task("cats").classes
    assert numbers["overlap"]["layers"]["tasks"] == ["cats", "dogs"]


def test_everything_of_a_task_with_a_grid(hub: Hub, data: LoadedData, tmp_path: Path) -> None:
    method = make_snow(hub.source, 3)
    method.delta.head.share.fill_(1.0)  # as if training had found its body worth it
    run, delta = RunFolder(tmp_path / "run"), method.delta.freeze(hub.source).eval()
    run.create({})
    run.write_subscription(method.subscription())
    grids = Hub.create(tmp_path / "hub", hub.source)
    for name in ("grid", "other"):
        grids.add(make_task(hub.source, delta, name, ("a", "b", "c"), Framing(64), {}, {}))
    picture = data.examples[0].path
    whole = Visualization(grids, ["grid"], tmp_path / "out", run=run.path, image=picture, num_channels=3)
    files = whole.write(data, torch.device("cpu"), lambda what: nullcontext(lambda done, total: None))
    pictures = [f"grid-{part}.png" for part in ("depth", "channels", "maps", "attribution")]
    overlaps = ["overlap-layers.png", "overlap-head.png"]
    assert [file.name for file in files] == [*pictures, *overlaps, "subscription.json", "index.html"]
    assert "made before the first step" in Reader((tmp_path / "out" / "index.html").read_text()).words
    numbers = json.loads((tmp_path / "out" / "subscription.json").read_text())
    parts, pool = numbers["tasks"]["grid"]["layers"], delta.grid_pool
    assert sum(len(part["index"]) for part in parts) == len(pool.index)
    assert np.diag(numbers["overlap"]["layers"]["observed"]).tolist() == [1.0, 1.0]
    assert len(numbers["tasks"]["grid"]["attribution"]["layers"]) == len(parts)


def test_several_tasks_are_compared_with_each_other_alone(hub: Hub, tmp_path: Path) -> None:
    names = drawn(hub, tmp_path, "dogs", "cats", "dogs")
    assert names[:2] == ["dogs-depth.png", "cats-depth.png"]
    assert len(names) == 6
    drawn(hub, tmp_path, "dogs", "loner")
    page = Reader((tmp_path / "index.html").read_text())
    assert "No two tasks to compare have a subscription of their layers." in page.words
    assert json.loads((tmp_path / "subscription.json").read_text())["overlap"] == {}


def test_a_task_without_a_subscription_says_so(hub: Hub, data: LoadedData, tmp_path: Path) -> None:
    names = drawn(hub, tmp_path, "loner", data=data, image=data.examples[0].path)
    assert [name for name in names if name.startswith("loner")] == ["loner-attribution.png"]
    assert "subscribes to no channel of the source" in Reader((tmp_path / "index.html").read_text()).words


def test_a_head_alone_shows_what_it_reads(hub: Hub, data: LoadedData, tmp_path: Path) -> None:
    alone = Hub.create(tmp_path / "hub", hub.source)
    alone.add(sample_task(hub.source, "alone", head_divisor=4, width_divisor=None))
    names = drawn(alone, tmp_path / "out", "alone", data=data, image=data.examples[0].path)
    assert {"alone-depth.png", "alone-attribution.png"} <= set(names)
    page = Reader((tmp_path / "out" / "index.html").read_text())
    assert "Its layers subscribe to nothing of the source." in page.words


def test_other_files_of_the_folder_stay_and_older_pictures_are_replaced(hub: Hub, tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder"
    first = drawn(hub, out, "cats")
    (out / "mine.txt").write_text("mine")
    (out / "cats-depth.png").write_bytes(b"old")
    assert drawn(hub, out, "cats") == first
    assert (out / "cats-depth.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in out.iterdir()} == {*first, "mine.txt"}


def test_a_damaged_task_beside_the_named_one_is_left_out(tmp_path: Path) -> None:
    source = load_source("test_resnet", "random")
    hub = Hub.create(tmp_path / "hub", source)
    for name in NAMES:
        hub.add(sample_task(source, name))
    hub.folder.task_file("dogs", hub.infos()["dogs"]).write_bytes(b"junk")
    fresh = Hub.open(tmp_path / "hub", source)
    whole = Visualization(fresh, ["cats"], tmp_path / "out", run=None, image=None, num_channels=1)
    assert list(whole.compared) == ["cats"]
    assert len(whole.left_out) == 1
    assert "'dogs'" in whole.left_out[0]
    with pytest.raises(HubError, match="'dogs'"):
        Visualization(fresh, ["dogs"], tmp_path / "out", run=None, image=None, num_channels=1)


def test_what_cannot_be_drawn_is_refused_before_anything_is_made(hub: Hub, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "text.png").write_text("no image")

    def refuse(error: type[TorchsnowError], match: str, out: Path = out, **changed: object) -> None:
        given = {"run": None, "image": None, "num_channels": 1, **changed}
        with pytest.raises(error, match=match):
            Visualization(hub, ["cats"], out, **given)  # type: ignore[arg-type]

    refuse(TorchsnowError, "channels to show is 0; expected 1 or more", num_channels=0)
    refuse(DataError, r"cannot read the image .*text\.png", image=tmp_path / "text.png")
    refuse(HubError, "lies inside the hub", out=hub.folder.path / "pictures")
    refuse(TorchsnowError, "cannot make the folder", out=tmp_path / "text.png" / "out")
    refuse(TorchsnowError, "holds no run", run=tmp_path)
    assert not out.exists()
