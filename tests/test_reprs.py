"""What a person sees who types a name into a prompt or a notebook."""

from __future__ import annotations

from pathlib import Path

import pytest

from sample_photos import make_photos
from sample_tasks import sample_task
from torchsnow import Hub, Source, load_data, load_source, make_splits


@pytest.fixture(scope="module")
def source() -> Source:
    return load_source("test_resnet", weights="random")


def test_things_say_in_a_line_what_they_are(source: Source, tmp_path: Path) -> None:
    task = sample_task(source, "pets")
    hub = Hub.create(tmp_path / "hub", source)
    hub.add(task)
    data = load_data(make_photos(tmp_path / "photos"))
    assert repr(source) == "Source(test_resnet, 14 taps, fp32)"
    assert repr(task) == "Task('pets', 3 classes, 64 px, on test_resnet)"
    assert repr(hub.info("pets")) == "TaskInfo('pets', 3 classes, 64 px, on test_resnet)"
    assert repr(hub) == f"Hub('{tmp_path / 'hub'}', 1 tasks on test_resnet)"
    assert repr(data) == "LoadedData('photos', 3 classes, images: 30 all)"
    assert repr(make_splits(data)) == "Splits(3 classes, images: 18 train, 6 val, 6 test)"


def test_a_hub_is_a_table_in_a_notebook(source: Source, tmp_path: Path) -> None:
    hub = Hub.create(tmp_path / "<b>", source)
    hub.add(sample_task(source, "pets"))
    html = hub._repr_html_()
    assert html.count("<tr>") == 2
    assert "<td>pets</td><td>3</td>" in html
    assert "<b>" not in html
