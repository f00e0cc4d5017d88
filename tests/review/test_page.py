from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sample_photos import make_photos
from sample_tasks import sample_task
from torchsnow.hub import Hub
from torchsnow.review.findings import Image, Review, Suspect
from torchsnow.review.page import MOST, review_page
from torchsnow.source import load_source

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
NAME = "<b>" + "a_name_without_any_place_to_break" * 3


@pytest.fixture(scope="module")
def review(tmp_path_factory: pytest.TempPathFactory) -> Review:
    (file, *_) = sorted(make_photos(tmp_path_factory.mktemp("photos") / "photos", 1).rglob("*.png"))
    images = tuple(Image(file, f"red/{NAME}{i}.png", NAME, "train", "cat", 0.75, 0.5) for i in range(MOST + 1))
    suspects = tuple(Suspect(image, "cat") for image in images)
    return Review("photos", "pets", 9, images * 10, images, suspects, (images[:3],), {NAME: {"train": 9}}, (NAME,))


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Hub:
    source = load_source("test_resnet", weights="random")
    hub = Hub.create(tmp_path_factory.mktemp("hubs") / "hub", source)
    hub.add(sample_task(source, width_divisor=None, head_last=False, head_taps=None))
    hub.add(sample_task(source, "copy"))
    return hub


def test_no_section_has_too_many_pictures_and_names_are_text(review: Review, hub: Hub) -> None:
    done: list[tuple[int, int]] = []
    page = review_page(review, hub, lambda *at: done.append(at)).html()
    assert page.count("<img") == 5 * MOST + 3  # with a heat map next to the wrong and the doubtful
    assert len(page) < 3_000_000
    assert done[-1] == (3 * MOST + 3, 3 * MOST + 3)
    assert f"Likely mislabelled: {MOST + 1}" in page
    assert f"The first {MOST} are shown." in page
    assert "<b>" not in page


def test_of_few_images_few_are_called_doubtful(review: Review) -> None:
    few = replace(review, images=review.images[:46])
    assert (len(review.doubtful), len(few.doubtful)) == (MOST, 10)
    assert replace(review, images=review.images[:3]).doubtful == review.images[:1]


def test_a_task_that_reads_no_grid_has_images_alone_and_it_is_said(review: Review, hub: Hub) -> None:
    page = review_page(replace(review, task="copy"), hub).html()
    assert page.count("<img") == 3 * MOST + 3
    assert page.count("No heat maps: ") == 2
    assert "is red, what speaks" not in page


@pytest.mark.parametrize(("augmentation", "views"), [("none", 1), ("flip", 2), ("strong", 4), (None, 0), (["flip"], 0)])
def test_a_few_images_are_shown_as_training_sees_them(
    review: Review, tmp_path: Path, hub: Hub, augmentation: object, views: int
) -> None:
    task = sample_task(hub.source, "copy")
    task = replace(task, training={"augmentation": augmentation})
    own = Hub.create(tmp_path / "hub", hub.source)
    own.add(task)
    calm = replace(review, task="copy", mislabelled=(), wrong=(), duplicates=())
    state = torch.get_rng_state()
    page = review_page(calm, own).html()
    assert torch.equal(torch.get_rng_state(), state)
    assert page.count("<img") == MOST + 6 * views  # the doubtful, and six images with their views
    assert ("As training sees them" in page) == (views > 0)


@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_fits_into_a_browser(review: Review, hub: Hub, tmp_path: Path, width: int) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no browser: install chromium (apt-get install chromium), or name one in CHROMIUM")
    review_page(review, hub).save(tmp_path / "review.html")
    with playwright.sync_playwright() as api:
        browser = api.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 800})
        page.goto((tmp_path / "review.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") == width
        for gallery, of_width in ((".gallery", {360: 2, 1280: 7}), (".several", {360: 1, 1280: 3})):
            columns = f"getComputedStyle(document.querySelector('{gallery}')).gridTemplateColumns.split(' ')"
            assert len(page.evaluate(columns)) == of_width[width]
        browser.close()
