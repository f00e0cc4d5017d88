"""The process that decodes, by itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hostile_pictures import saved
from PIL import Image
from running_server import picture

CODE = "from torchsnow.serving.pictures import main; main()"
SLOW = "import time, torchsnow.serving.pictures as m; m.decode = lambda *given: time.sleep(60); m.main()"
BROKEN = "import torchsnow.serving.pictures as m; m.decode = lambda *given: 1 / 0; m.main()"
POOR = "import torchsnow.serving.pictures as m; m._SPARE_BYTES = 2**24; m._PIXEL_BYTES = 0; m.main()"
Process = subprocess.Popen[bytes]


@pytest.fixture
def process(request: pytest.FixtureRequest) -> Iterator[Process]:
    """One that is ready, and runs the code that the test gives."""
    command = [sys.executable, "-c", getattr(request, "param", CODE)]
    with subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-1) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == b"ready\n"
        yield started
        started.kill()


def ask(process: Process, content: bytes, seconds: int = 60, cuts: Any = (), max_pixels: int = 10**6) -> None:
    given = {"called": "x", "bytes": len(content), "cuts": cuts, "max_pixels": max_pixels, "seconds": seconds}
    given["formats"] = ["JPEG", "PNG"]
    assert process.stdin is not None
    process.stdin.write(json.dumps(given).encode() + b"\n" + content)
    process.stdin.flush()


def test_it_answers_until_its_input_ends(process: Process) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    for _ in range(2):
        ask(process, picture(), cuts=((32, 40, "center", 2), (24, 24, "squash", 3)))
        assert process.stdout.readline() == b"null\n"
        assert len(process.stdout.read(3 * (32**2 + 24**2))) == 3 * (32**2 + 24**2)
        ask(process, b"no picture")
        assert json.loads(process.stdout.readline()) == [
            415,
            "not_an_image",
            "the image x is no JPEG or PNG picture",
        ]
        ask(process, b"")
        assert json.loads(process.stdout.readline()) == [415, "not_an_image", "the image x is empty"]
    process.stdin.close()
    assert process.wait(30) == 0


def test_only_its_server_ends_it(process: Process) -> None:
    assert process.stdout is not None
    for stop in (signal.SIGTERM, signal.SIGINT):
        process.send_signal(stop)
    ask(process, picture())
    assert process.stdout.readline() == b"null\n"


@pytest.mark.parametrize("process", [SLOW], indirect=True)
def test_without_a_server_it_ends_at_its_limit(process: Process) -> None:
    ask(process, picture(), seconds=1)
    assert process.wait(30) == -signal.SIGALRM


@pytest.mark.parametrize("process", [BROKEN], indirect=True)
def test_a_mistake_of_ours_is_logged_and_told_without_its_trace(process: Process) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    ask(process, picture())
    assert json.loads(process.stdout.readline())[:2] == [500, "internal"]
    process.stdin.close()
    (line,) = process.stderr.read().splitlines()
    assert "division by zero" in json.loads(line)["trace"]


@pytest.mark.parametrize("process", [POOR], indirect=True)
def test_a_picture_that_wants_too_much_memory_fails_alone(process: Process) -> None:
    assert process.stdout is not None
    for content, words in ((saved(Image.new("RGB", (5000, 4000))), b"out of memory"), (picture(), b"null\n")):
        ask(process, content, max_pixels=10**8)
        assert words in process.stdout.readline()


def test_it_is_small() -> None:
    code = "import sys, torchsnow.serving.pictures; print(sorted({'torch', 'starlette'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=os.environ)
    assert (result.stdout, result.stderr) == ("[]\n", "")
