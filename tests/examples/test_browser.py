"""The page that classifies without a server, in a browser, where there is one."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sample_tasks import sample_task
from torchsnow.data import eval_transform, read_image
from torchsnow.export.export import plan_export, write_export
from torchsnow.hub import Hub
from torchsnow.hub.live import LiveHub
from torchsnow.source import Source, load_source

EXAMPLE = Path(__file__).parents[2] / "examples" / "browser"
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
ARGUMENTS = "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync"
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(CHROMIUM is None, reason="no browser: apt-get install chromium"),
    pytest.mark.skipif(not (EXAMPLE / "ort.wasm.bundle.min.mjs").exists(), reason="no ONNX Runtime Web: make browser"),
]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder with the page, and where a plain file server shows it."""
    folder = tmp_path / "site"
    folder.mkdir()
    for file in EXAMPLE.iterdir():
        if file.is_file():
            (folder / file.name).symlink_to(file)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as api:
        started = api.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS.split())
        yield started
        started.close()


def opened(browser: Any, url: str) -> tuple[Any, list[str]]:
    """A page that has loaded, and what was wrong meanwhile: complaints, and requests to other places."""
    page, complaints = browser.new_page(), []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda one: None if one.url.startswith((url, "blob:", "data:")) else complaints.append(one.url))
    page.goto(url)
    page.wait_for_selector("#status:not(:text('Loading'))")
    return page, complaints


def hub_of(folder: Path, crop_mode: str, interpolation: str) -> Hub:
    plain = load_source("test_resnet", "random")
    config = replace(plain.input_config, interpolation=interpolation)
    source = Source(plain.model, plain.name, config, plain.weights)
    hub = Hub.create(folder, source)
    hub.add(replace(sample_task(source, "animals", 7, seed=1), crop_mode=crop_mode, unknown_above=0.8))
    hub.add(replace(sample_task(source, "looks", 3, seed=2), crop_mode=crop_mode, thresholds=(0.5, 0.4, 0.6)))
    return hub


def photo_in(folder: Path, name: str) -> Path:
    """Neither square nor upright, where a file can say so; half of it is transparent, where a file can be."""
    pixels = np.random.default_rng(1).integers(0, 256, (6, 9, 4), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((301, 177), Image.Resampling.BICUBIC)
    if name.endswith(".jpg"):
        exif = Image.Exif()
        exif[0x0112] = 6
        image.convert("RGB").save(folder / name, exif=exif, quality=95)
    else:
        alpha = np.where(np.arange(301) < 150, 255, 0) * np.ones((177, 1))
        image.putalpha(Image.fromarray(alpha.astype(np.uint8)))
        image.save(folder / name)
    return folder / name


@pytest.mark.parametrize(
    ("crop_mode", "interpolation", "photo"),
    [
        ("squash", "bicubic", "x.png"),
        ("center", "bilinear", "x.jpg"),
        ("border", "lanczos", "x.png"),
        ("center", "hamming", "x.png"),
        ("squash", "box", "x.png"),
        ("border", "nearest", "x.png"),
    ],
)
def test_the_page_says_what_torchsnow_says(
    crop_mode: str, interpolation: str, photo: str, site: tuple[Path, str], browser: Any, tmp_path: Path
) -> None:
    folder, url = site
    hub = hub_of(tmp_path / "hub", crop_mode, interpolation)
    exported = write_export(plan_export(hub, folder / "my-hub.onnx"))
    file = photo_in(tmp_path, photo)
    images = eval_transform(hub.source.input_config, exported.plan.framing)(read_image(file))[None]
    answers = LiveHub(hub).predict(images)
    page, complaints = opened(browser, url)
    page.set_input_files("#file", file)
    page.wait_for_selector("#status:text('2 tasks answered in')")
    assert page.locator("article h2").all_inner_texts() == ["animals", "looks"]
    expected = {"animals": answers["animals"].logits[0].softmax(0), "looks": answers["looks"].logits[0].sigmoid()}
    for number, (name, probabilities) in enumerate(expected.items()):
        rows = page.locator("article").nth(number).locator("li")
        order = probabilities.argsort(descending=True)[:5]
        assert rows.locator("span").all_inner_texts() == [hub.task(name).classes[at] for at in order]
        given = rows.locator("data").evaluate_all("all => all.map(one => Number(one.value))")
        assert given == pytest.approx(probabilities[order].tolist(), abs=1e-4)
        said = rows.evaluate_all("all => all.map(one => one.className === 'said')")
        limits = torch.tensor(hub.task(name).thresholds or [float(probabilities.max())] * len(probabilities))
        assert said == (probabilities >= limits)[order].tolist()
    score = float(page.locator(".unknown data").get_attribute("value"))
    assert answers["animals"].unknown_scores is not None
    assert score == pytest.approx(float(answers["animals"].unknown_scores[0]), rel=1e-4)
    assert page.locator(".unknown.bad").count() == (score > 1)
    assert complaints == []
    page.close()


def test_what_is_missing_or_no_picture_is_said(site: tuple[Path, str], browser: Any, tmp_path: Path) -> None:
    folder, url = site
    page, _ = opened(browser, url)
    assert page.inner_text("#status.bad") == "my-hub.onnx: it is not next to this page; torchsnow export writes it"
    assert page.locator("#file").is_disabled()
    (folder / "my-hub.onnx").write_bytes(b"\x08\x0a")
    page, _ = opened(browser, url)
    assert page.inner_text("#status.bad") == "my-hub.onnx: it was not written by torchsnow export"
    write_export(plan_export(hub_of(tmp_path / "hub", "squash", "bilinear"), folder / "my-hub.onnx"))
    page, complaints = opened(browser, url)
    (tmp_path / "x.png").write_bytes(b"bad")
    page.set_input_files("#file", tmp_path / "x.png")
    page.wait_for_selector("#status.bad")
    assert page.inner_text("#status.bad") == "x.png: this browser cannot read it as a picture"
    assert (page.locator("article").count(), complaints) == (0, [])
