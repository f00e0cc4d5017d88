"""The page: nothing from elsewhere, usable by everybody; and in a browser, where there is one."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from bad_tasks import smuggle_overflow
from running_server import TOKEN, Running, form, picture, running

from sample_tasks import sample_task
from torchsnow.hub import Hub
from torchsnow.hub.live import LiveHub
from torchsnow.serving.app import page_html, policy

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
WHY_NOT = "no browser: install chromium (apt-get install chromium), or name one in CHROMIUM"


class Elements(HTMLParser):
    """All start tags with their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def elements() -> list[tuple[str, dict[str, str | None]]]:
    parser = Elements()
    parser.feed(page_html())
    return parser.found


def test_the_page_loads_nothing_from_elsewhere(steady: Running, elements: list[Any]) -> None:
    reply = steady.call("GET", "/")
    assert (reply.status, reply.body.decode()) == (200, page_html())
    assert reply.headers["content-security-policy"] == policy()
    assert "default-src 'none'" in policy()
    assert "unsafe" not in policy()
    assert not re.search(r"https?://|//[a-z]|@import|url\(", page_html())
    for _, attributes in elements:
        for name in ("src", "href", "action"):
            assert not (attributes.get(name) or "").startswith(("/", "h"))
        assert not any(name.startswith("on") for name in attributes)
    assert "innerHTML" not in page_html()  # names of tasks and classes are text


def test_the_page_can_be_read_aloud_and_used_by_keyboard(elements: list[Any]) -> None:
    tags = [tag for tag, _ in elements]
    by_id = {attributes["id"]: tag for tag, attributes in elements if "id" in attributes}
    assert ("html", {"lang": "en"}) in elements
    assert {"header", "main", "h1", "footer", "title"} <= set(tags)
    assert any(a.get("name") == "viewport" and "width=device-width" in str(a.get("content")) for _, a in elements)
    labelled = {attributes.get("for") for tag, attributes in elements if tag == "label"}
    assert {attributes["id"] for tag, attributes in elements if tag == "input"} <= labelled
    for tag, attributes in elements:
        assert attributes.get("aria-labelledby", "ask") in by_id
        assert int(attributes.get("tabindex") or 0) <= 0
        assert tag != "img" or "alt" in attributes
    assert any(attributes.get("aria-live") == "polite" for _, attributes in elements)
    assert ":focus-visible" in page_html()


@pytest.fixture
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip(WHY_NOT)
    with playwright.sync_playwright() as api:
        started = api.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


def opened(browser: Any, url: str, width: int = 1000) -> tuple[Any, list[str]]:
    """A page and the complaints of its console, requests to other places among them."""
    page = browser.new_page(viewport={"width": width, "height": 800})
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "request",
        lambda request: None if request.url.startswith((url, "blob:", "data:")) else complaints.append(request.url),
    )
    page.goto(url)
    return page, complaints


@pytest.mark.parametrize("width", [360, 1000])
def test_a_picture_is_answered_in_a_browser(steady: Running, browser: Any, tmp_path: Path, width: int) -> None:
    (tmp_path / "x.png").write_bytes(picture(1))
    (tmp_path / "bad.png").write_bytes(b"bad")
    page, complaints = opened(browser, steady.url, width)
    page.wait_for_selector("#tasks tbody tr")
    assert page.locator("#tasks tbody tr").count() == 3
    row = page.locator("#tasks tbody tr").first.inner_text().split()
    listed = steady.call("GET", "/tasks").json["tasks"][0]
    assert row == ["a", "75.0%", "(test)", listed["added"][:10], "2", listed["version"]]
    assert page.locator("#tasks tbody td").nth(1).bounding_box()["x"] < width  # also on a phone, the date is in sight
    page.set_input_files("#file", tmp_path / "x.png")
    page.wait_for_selector("article")
    assert page.locator("article h3").all_inner_texts() == ["a", "b", "c"]
    assert page.locator("article").nth(1).locator("li").count() == 3
    answer = steady.predict([picture(1)], ["b"]).json["images"][0]["answers"][0]
    first = page.locator("article").nth(1).locator("li").first.inner_text()
    assert answer["label"] in first
    unlike = page.locator("article").nth(1).locator(".unlike").all_inner_texts()
    assert [f"({answer['unknown_score']:.1f};" in text for text in unlike] == [True]
    assert page.locator(".unlike").count() == 1
    assert f"{100 * answer['probabilities'][answer['label']]:.1f}%" in first
    bar, whole = (
        page.locator(f"article >> nth=1 >> {part} >> nth=0").bounding_box()["width"] for part in (".bar", "li")
    )
    assert bar / whole == pytest.approx(answer["probabilities"][answer["label"]], abs=0.02)
    assert "3 tasks answered in" in page.inner_text("#status")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert complaints == []
    page.set_input_files("#file", tmp_path / "bad.png")
    page.wait_for_selector("#status.bad")
    assert "no JPEG or PNG" in page.inner_text("#status")
    assert page.locator("article").count() == 0


def test_an_answer_says_what_it_owes_to_which_tap(steady: Running, browser: Any, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(picture(1))
    page, complaints = opened(browser, steady.url, 360)
    page.set_input_files("#file", tmp_path / "x.png")
    page.wait_for_selector("article")
    body, kind = form([("image", picture(1), "x.png"), ("task", b"b", None), ("explain", b"true", None)])
    reply = steady.call("POST", "/predict", body, {"content-type": kind}).json
    lead = reply["images"][0]["answers"][0]["lead"]
    card = page.locator("article").nth(1)
    said = card.locator(".why p").inner_text()
    assert f"It is {lead['logits']:.2f} points ahead of “{lead['over']}”" in said
    early = f"{lead['depths']['early']:+.2f}".replace("-", "−")
    assert f"{early} from edges and colours" in said
    assert "tap" not in said
    page.focus("#explain")
    for _ in range(3):  # over the parts of the first answer, and where it lies
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # opens the parts of the second answer
    rows = card.locator("tr:visible")
    assert rows.count() == len(lead["taps"]) + 2
    shown = [float(row.split()[-1].replace("−", "-")) for row in rows.all_inner_texts()]
    assert sum(shown) == pytest.approx(lead["logits"], abs=0.2)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    page.uncheck("#explain")
    page.wait_for_selector("article:not(:has(.why))")
    assert complaints == []


def test_an_answer_shows_where_in_the_picture_it_lies(hub: Hub, browser: Any, tmp_path: Path) -> None:
    hub.add(sample_task(hub.source, "grid", width_divisor=None, grid_width=16, grid_reduction=16))
    (tmp_path / "x.png").write_bytes(picture(1))
    with running(LiveHub(hub)) as server:
        page, complaints = opened(browser, server.url, 360)
        page.set_input_files("#file", tmp_path / "x.png")
        page.wait_for_selector("article")
        narrow, grid = page.locator("article").nth(0), page.locator("article").nth(3)
        assert page.get_by_role("button", name="Show where").count() == 4
        grid.get_by_role("button").focus()
        page.keyboard.press("Enter")
        grid.locator("img").wait_for()
        label = server.predict([picture(1)], ["grid"]).json["images"][0]["answers"][0]["label"]
        assert f"What speaks for “{label}” is red" in grid.locator(".where p").inner_text()
        assert grid.locator("img").evaluate("image => image.decode().then(() => image.naturalWidth)") == 448
        narrow.get_by_role("button").click()
        narrow.get_by_text("This task cannot say where.").wait_for()
        assert page.locator("article img").count() == 1
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert complaints == []


def test_what_failed_and_what_has_very_many_classes_is_shown_in_short(
    hub: Hub, browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smuggle_overflow(hub, "bad", monkeypatch)
    hub.add(sample_task(hub.source, "many", num_classes=1000, head_divisor=64))
    (tmp_path / "x.png").write_bytes(picture(1))
    with running(LiveHub(hub)) as server:
        page, complaints = opened(browser, server.url)
        page.set_input_files("#file", tmp_path / "x.png")
        page.wait_for_selector("article")
        assert page.locator("article h3").all_inner_texts() == ["a", "b", "c", "many", "bad"]
        many, bad = page.locator("article").nth(3), page.locator("article").nth(4)
        assert many.locator("li").count() == 20
        assert "and 980 classes more" in many.inner_text()
        assert "No answer: " in bad.inner_text()
        assert "not finite" in bad.inner_text()
    assert complaints == []


def test_all_labels_that_reach_their_thresholds_are_said(hub: Hub, browser: Any, tmp_path: Path) -> None:
    hub.add(replace(sample_task(hub.source, "all", num_classes=4), thresholds=(0.0, 0.0, 1.0, 0.0)))
    hub.add(replace(sample_task(hub.source, "none", num_classes=3), thresholds=(1.0, 1.0, 1.0)))
    (tmp_path / "x.png").write_bytes(picture(1))
    with running(LiveHub(hub)) as server:
        page, complaints = opened(browser, server.url, 360)
        page.set_input_files("#file", tmp_path / "x.png")
        page.wait_for_selector("article")
        assert page.locator("article h3").all_inner_texts() == ["a", "all", "b", "c", "none"]
        said = [page.locator("article").nth(place).locator("li.said").count() for place in range(5)]
        assert said == [1, 3, 1, 1, 0]
        assert "None of these reaches its threshold." in page.locator("article").nth(4).inner_text()
        answer = server.predict([picture(1)], ["all"]).json["images"][0]["answers"][0]
        assert f"Said: {', '.join(answer['labels'])}" in page.locator("article").nth(1).inner_text()
        assert sum(answer["probabilities"].values()) != pytest.approx(1, abs=1e-3)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert complaints == []


def test_the_keyboard_reaches_everything(steady: Running, browser: Any) -> None:
    page, _ = opened(browser, steady.url)
    page.wait_for_selector("#tasks tbody tr")
    reached = []
    for _ in range(5):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate(
                "document.activeElement.id || document.activeElement.className || document.activeElement.tagName"
            )
        )
    assert reached == ["file", "camera", "explain", "wide", "A"]


def test_a_picture_can_be_dropped(steady: Running, browser: Any) -> None:
    page, complaints = opened(browser, steady.url)
    page.evaluate(
        """bytes => {
          const files = new DataTransfer();
          files.items.add(new File([new Uint8Array(bytes)], "x.png", {type: "image/png"}));
          document.getElementById("drop").dispatchEvent(
            new DragEvent("drop", {dataTransfer: files, bubbles: true, cancelable: true}));
        }""",
        list(picture(1)),
    )
    page.wait_for_selector("article")
    assert complaints == []


def test_many_pictures_are_answered_one_after_another(steady: Running, browser: Any, tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.png" for number in range(3)]
    for number, file in enumerate(files):
        file.write_bytes(picture(number) if number != 1 else b"bad")
    page, complaints = opened(browser, steady.url, 360)
    page.set_input_files("#file", files)
    page.wait_for_selector("#status.bad")
    assert "3 tasks answered for 2 of 3 pictures" in page.inner_text("#status")
    pictures = page.locator(".picture")
    assert [pictures.nth(place).locator("article").count() for place in range(3)] == [3, 0, 3]
    assert "1.png" in pictures.nth(1).inner_text()
    assert "No answer: " in pictures.nth(1).inner_text()
    answer = steady.predict([picture(2)], ["a"]).json["images"][0]["answers"][0]
    assert answer["label"] in pictures.nth(2).locator("article").first.inner_text()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert [complaint for complaint in complaints if "415" not in complaint] == []  # of the bad one


def test_a_picture_comes_from_the_camera(steady: Running, browser: Any) -> None:
    page, complaints = opened(browser, steady.url, 360)
    page.evaluate(
        """() => {
          const canvas = document.createElement("canvas");
          [canvas.width, canvas.height] = [80, 60];
          const drawing = canvas.getContext("2d");
          setInterval(() => drawing.fillRect(0, 0, 80 * Math.random(), 60), 50);  // only changes make frames
          navigator.mediaDevices.getUserMedia = async () => canvas.captureStream(10);
        }"""
    )
    page.click("#camera")
    page.wait_for_selector("#live", state="visible")
    page.wait_for_timeout(500)  # until the first frame is there: what waits for it by script may not run on this page
    page.click("#camera")
    page.wait_for_selector("article")
    assert "camera.jpg" in page.locator(".picture").inner_text()
    assert page.is_hidden("#live")
    assert complaints == []


def test_a_token_is_asked_for(sealed: Running, browser: Any, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(picture(1))
    page, _ = opened(browser, sealed.url)
    page.wait_for_selector("#key:not([hidden])")
    page.keyboard.type(TOKEN)
    page.keyboard.press("Enter")
    page.wait_for_selector("#tasks tbody tr")
    page.set_input_files("#file", tmp_path / "x.png")
    page.wait_for_selector("article")
