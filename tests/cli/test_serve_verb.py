from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from command_line import TINY, Trained, refused, torchsnow

from torchsnow.cli.serve import _address
from torchsnow.errors import ServingError
from torchsnow.serving import Client

PROGRAM = [sys.executable, "-c", "from torchsnow.cli import main; main()"]
TOKEN = "a-token-for-these-tests"


@contextmanager
def served(hub: Path, tmp_path: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server in a process of its own, and its address."""
    log = tmp_path / "server.log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [*PROGRAM, "serve", "--hub", str(hub), "--port", "0", *words],
            stderr=stream,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    try:
        yield process, f"http://127.0.0.1:{wait_for_port(process, log)}"
    finally:
        process.kill()
        process.wait()


def wait_for_port(process: subprocess.Popen[str], log: Path) -> int:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()
        lines = [json.loads(line) for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]
        if any(line["event"] == "Application startup complete." for line in lines):
            return next(int(line["address"][1]) for line in lines if line["event"] == "serving")
        time.sleep(0.1)
    raise AssertionError(log.read_text())


def test_serve_follows_train_and_drains(trained: Trained, tmp_path: Path) -> None:
    image = trained.photos / "red" / "1.png"
    with served(trained.hub, tmp_path) as (process, url):
        client = Client(url)
        assert [task["task"] for task in client.tasks()] == ["colours"]
        (answer,) = client.predict([image])[0]
        printed = torchsnow("predict", image, "--hub", trained.hub, "--json").document["predictions"][0]
        assert answer["probabilities"] == pytest.approx(printed["probabilities"], abs=1e-4)

        words = ("--task", "more", "--hub", trained.hub, "--out", tmp_path / "more", *TINY, "--epochs", "1")
        assert torchsnow("train", trained.photos, *words).code == 0
        start_s = time.monotonic()
        while len(client.predict([image])[0]) < 2:
            assert time.monotonic() - start_s < 2
            time.sleep(0.05)

        outcome = torchsnow("predict", image, "gone.png", "--server", url, "--task", "more", "--json")
        assert outcome.code == 2
        assert [p["task"] for p in outcome.document["predictions"]] == ["more"]
        assert "gone.png" in outcome.document["errors"][0]["reason"]

        results: list[object] = []

        def ask() -> None:
            try:
                results.append(len(client.predict([image] * 16)))
            except ServingError as error:
                results.append(error)

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        while "torchsnow_queue_images 0.0" in metrics(url) and len(results) < 6:
            pass
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()
        assert process.wait(30) == 0
        assert [result for result in results if result != 16] == []
        with pytest.raises(ServingError, match="cannot be used"):
            client.tasks()
    for line in (tmp_path / "server.log").read_text().splitlines():
        assert {"time", "level", "event"} <= set(json.loads(line))


@pytest.mark.slow
def test_workers_answer_as_one_and_are_replaced(trained: Trained, tmp_path: Path) -> None:
    image = trained.photos / "red" / "1.png"
    with served(trained.hub, tmp_path, "--workers", "2") as (process, url):
        wait_for_workers(url)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert len(children) == 2
        os.kill(int(children[0]), signal.SIGKILL)
        for _ in range(10):
            (answer,) = Client(url).predict([image])[0]
            assert answer["task"] == "colours"
        wait_for_workers(url)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert not any(Path(f"/proc/{pid}").exists() for pid in children)
    lines = [json.loads(line) for line in (tmp_path / "server.log").read_text().splitlines()]
    assert {line.get("worker") for line in lines if line["event"] == "request"} == {0, 1}
    assert "a worker ended and is replaced" in [line["event"] for line in lines]


def wait_for_workers(url: str) -> None:
    """Until both answer."""
    end_s = time.monotonic() + 120
    while not all(f'torchsnow_worker_up{{worker="{number}"}} 1.0' in metrics(url) for number in (0, 1)):
        assert time.monotonic() < end_s
        time.sleep(0.2)


def metrics(url: str) -> str:
    import urllib.request

    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as reply:
        text: str = reply.read().decode()
    return text


def test_what_cannot_be_served(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "is not a hub" in refused("serve", "--hub", tmp_path / "none")
    assert "batch_size is 0" in refused("serve", "--hub", trained.hub, "--batch-size", "0")
    assert "deadline_s is -1" in refused("serve", "--hub", trained.hub, "--deadline-s", "-1")
    assert "cannot read the token" in refused("serve", "--hub", trained.hub, "--token-file", tmp_path / "none")
    (tmp_path / "token").write_text("short\n")
    assert "16 or more" in refused("serve", "--hub", trained.hub, "--token-file", tmp_path / "token")
    (tmp_path / "token").write_text("\n")
    assert "is empty" in refused("serve", "--hub", trained.hub, "--token-file", tmp_path / "token")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert "choose another --host or --port" in refused("serve", "--hub", trained.hub, "--port", port)
    assert "cannot listen" in refused("serve", "--hub", trained.hub, "--port", "99999")
    assert "cannot listen" in refused("serve", "--hub", trained.hub, "--host", "no.such.host.invalid")


def test_it_listens_on_this_machine_alone_unless_told() -> None:
    import inspect

    from torchsnow.cli.serve import serve

    assert inspect.signature(serve).parameters["host"].default == "127.0.0.1"


def test_a_missing_extra_is_named(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'torchsnow[serve]'" in refused("serve", "--hub", trained.hub)


def test_predict_wants_a_hub_or_a_server(trained: Trained) -> None:
    image = trained.photos / "red" / "1.png"
    both = ("--hub", trained.hub, "--server", "http://127.0.0.1:1")
    assert "either the folder of a hub" in refused("predict", image, *both)
    assert "cannot be used" in refused("predict", image, "--server", "http://127.0.0.1:1")
    assert "is no address" in refused("predict", image, "--server", "127.0.0.1:1")


@pytest.mark.parametrize(
    "words",
    [
        ("--deadline-s", "inf"),
        ("--deadline-s", "nan"),
        ("--wait-ms", "inf"),
        ("--drain-s", "1e9"),
        ("--queue", "99999999999999999999"),
        ("--batch-size", "1000000000"),
    ],
)
def test_numbers_without_bounds_are_refused(trained: Trained, words: tuple[str, str]) -> None:
    assert "expected" in refused("serve", "--hub", trained.hub, *words)


@pytest.mark.parametrize(
    ("host", "tls", "expected"),
    [
        ("127.0.0.1", False, "http://127.0.0.1:8000/"),
        ("0.0.0.0", True, "https://localhost:8000/"),
        ("::1", False, "http://[::1]:8000/"),
    ],
)
def test_the_address_for_a_browser(host: str, tls: bool, expected: str) -> None:
    assert _address(host, 8000, tls) == expected
