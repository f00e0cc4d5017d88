from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sample_photos import make_photos
from sample_tasks import sample_task
from torchsnow.review import suggest_images
from torchsnow.review.suggest import doubtful_and_unlike
from torchsnow.source import Source, load_source


@pytest.fixture(scope="module")
def source() -> Source:
    return load_source("test_resnet", weights="random")


def test_the_doubtful_come_first_and_copies_of_them_late() -> None:
    units = torch.eye(4)[[0, 0, 1, 2]]
    doubt = torch.tensor([0.9, 0.89, 0.5, -1.0])
    assert doubtful_and_unlike(doubt, units, 2) == [0, 2]
    assert doubtful_and_unlike(doubt, units, 9) == [0, 2, 1]  # the last has no answer


def test_every_task_gets_its_own_suggestions_from_one_pass(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = make_photos(tmp_path / "photos", num_images=4)
    files = [*sorted(photos.rglob("*.png")), Path("gone.png")]
    tasks = {
        "a": sample_task(source, "a"),
        "b": sample_task(source, "b", seed=1, num_classes=4),
        "small": replace(sample_task(source, "small", seed=2), image_size=32),
    }
    passes, forward = [], Source.forward

    def counted(self: Source, images: torch.Tensor, *rest: object) -> object:
        passes.append(images.shape[-1])
        return forward(self, images, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Source, "forward", counted)
    bad: list[Path] = []
    found = suggest_images(source, tasks, files, 5, lambda path, why: bad.append(path), lambda done, total: None)
    assert sorted(passes) == [32, 64]
    assert bad == [Path("gone.png")]
    assert [one.task for one in found] == ["a"] * 5 + ["b"] * 5 + ["small"] * 5
    for name in tasks:
        own = [one for one in found if one.task == name]
        assert len({one.image for one in own}) == 5
        assert own[0].doubt == max(one.doubt for one in own)
        assert all(one.label in tasks[name].classes and 0 <= one.doubt <= 1 for one in own)
