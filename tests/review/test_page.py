from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from sample_photos import make_photos
from torchsnow.review.findings import Image, Review, Suspect
from torchsnow.review.page import MOST, review_page

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
NAME = "<b>" + "a_name_without_any_place_to_break" * 3


@pytest.fixture(scope="module")
def review(tmp_path_factory: pytest.TempPathFactory) -> Review:
    (file, *_) = sorted(make_photos(tmp_path_factory.mktemp("photos") / "photos", 1).rglob("*.png"))
    images = tuple(Image(file, f"red/{NAME}{i}.png", NAME, "train", "blue", 0.75, 0.5) for i in range(MOST + 1))
    suspects = tuple(Suspect(image, "blue") for image in images)
    return Review("photos", "colours", 9, images, images, suspects, (images[:3],), {NAME: {"train": 9}}, (NAME,))


def test_no_section_has_too_many_pictures_and_names_are_text(review: Review) -> None:
    done: list[tuple[int, int]] = []
    page = review_page(review, lambda *at: done.append(at)).html()
    assert page.count("<img") == 3 * MOST + 3
    assert done[-1] == (3 * MOST + 3, 3 * MOST + 3)
    assert f"Likely mislabelled: {MOST + 1}" in page
    assert f"The first {MOST} are shown." in page
    assert "<b>" not in page


@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_fits_into_a_browser(review: Review, tmp_path: Path, width: int) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no browser: install chromium (apt-get install chromium), or name one in CHROMIUM")
    review_page(review).save(tmp_path / "review.html")
    with playwright.sync_playwright() as api:
        browser = api.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 800})
        page.goto((tmp_path / "review.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") == width
        columns = page.evaluate("getComputedStyle(document.querySelector('.gallery')).gridTemplateColumns.split(' ')")
        assert len(columns) == {360: 2, 1280: 7}[width]
        browser.close()
