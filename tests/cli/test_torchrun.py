"""One network trained by two processes, as torchrun starts them."""

from __future__ import annotations

import csv
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from command_line import refused, torchsnow

from sample_photos import make_photos
from torchsnow.train.checkpoint import Checkpoint
from torchsnow.train.ranks import Ranks

ALONE = (sys.executable, "-m", "torchsnow")
# 42 images to train on, in batches of 9, 9, 9, 9 and 6, and 9 to choose by: shares differ in size
SIZES = ("--source", "test_resnet", "--weights", "random", "--image-size", "32", "--batch-size", "9", "--lr", "0.001")
FULL = ("--method", "full:frozen-bn", *SIZES, "--augmentation", "none", "--epochs", "3")
TORCHRUN = {
    "RANK": "0",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "0",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "1",
    "TORCHELASTIC_RUN_ID": "none",
}
TIMEOUT_S = 240  # of a machine that is busy


def by_two() -> tuple[str, ...]:
    """The words that start two processes, which meet at a port that is free."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", port)
    return (sys.executable, *torchrun, "-m", "torchsnow")


@contextmanager
def started(command: Sequence[str], *words: str | Path) -> Iterator[subprocess.Popen[str]]:
    """A command; neither it nor the processes that it starts are left afterwards."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*command, *words], env=environment, **pipes) as process:
        try:
            yield process
        finally:
            kill(process)


def kill(process: subprocess.Popen[str]) -> None:
    """End a command and the processes that it has started, all at once."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    started = children.read_text().split() if children.exists() else []
    for pid in (process.pid, *map(int, started)):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def ended(command: Sequence[str], *words: str | Path) -> tuple[int, str, str]:
    """The exit code of a command, and what it said on stdout and on stderr."""
    with started(command, *words) as process:
        out, err = process.communicate(timeout=TIMEOUT_S)
        return process.returncode, out, err


def wait_for_epoch(epoch: int, run: Path, process: subprocess.Popen[str]) -> None:
    deadline_s = time.monotonic() + TIMEOUT_S
    while not (run / "results.csv").exists() or len(rows(run)) <= epoch:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline_s
        time.sleep(0.005)


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "results.csv").open() as table:
        return list(csv.DictReader(table))


def figures(run: Path) -> list[float]:
    """Losses and accuracies, epoch by epoch."""
    columns = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")
    return [float(row[column] or 0) for row in rows(run) for column in columns]


def assert_same(one: Path, two: Path) -> None:
    """Figures and weights of two runs, but for sums in another order."""
    assert figures(two) == pytest.approx(figures(one), abs=1e-4)
    first, second = (Checkpoint.load(run / "last.safetensors").model for run in (one, two))
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(second[name], first[name], rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def many_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photos(tmp_path_factory.mktemp("data") / "photos", 20)


@pytest.fixture(scope="module")
def by_one(many_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    run = tmp_path_factory.mktemp("one") / "run"
    code, _, err = ended(ALONE, "train", many_photos, *FULL, "--out", run)
    assert code == 0, err
    return run


def test_two_processes_train_what_one_does(many_photos: Path, by_one: Path, tmp_path: Path) -> None:
    code, out, err = ended(by_two(), "train", many_photos, *FULL, "--out", "run")
    assert code == 0, err
    assert_same(by_one, tmp_path / "run")
    assert {path.name for path in tmp_path.iterdir()} == {"run"}
    assert sorted(path.name for path in Path("run").iterdir()) == sorted(path.name for path in by_one.iterdir())
    assert out.count("test accuracy") == 1
    assert err.count("epoch 1:") == 1
    assert "Warning" not in err


@pytest.mark.slow
def test_stopped_and_killed_processes_are_resumed(many_photos: Path, by_one: Path, tmp_path: Path) -> None:
    words, run = ("train", many_photos, *FULL, "--out", tmp_path / "run"), tmp_path / "run"
    with started(by_two(), *words) as process:
        wait_for_epoch(1, run, process)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode != 0
    (sentence,) = [line for line in err.splitlines() if line.startswith("torchsnow: ")]
    assert "; to continue: torchrun --nproc-per-node 2 -m torchsnow train" in sentence
    with started(by_two(), *words, "--resume") as process:
        wait_for_epoch(2, run, process)
        kill(process)
    assert ended(by_two(), *words, "--resume")[0] == 0
    assert_same(by_one, run)


BROKEN = """
import os, signal
from torchsnow.cli import main
from torchsnow.errors import TrainingError
from torchsnow.train.loop import Loop

whole = Loop._val_logits

def broken(loop):
    if os.environ["RANK"] == "1":
        {what}
    return whole(loop)

Loop._val_logits = broken
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "sentence", "least"),
    [
        ('raise TrainingError("an image is gone")', "torchsnow: an image is gone", 1),
        # torchrun may end the other one before that can say so
        ("os.kill(os.getpid(), signal.SIGKILL)", "torchsnow: another of the 2 processes was ended", 0),
    ],
)
def test_what_ends_one_process_ends_both_with_one_sentence(
    what: str, sentence: str, least: int, many_photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken.py").write_text(BROKEN.format(what=what))
    code, _, err = ended((*by_two()[:-2], "broken.py"), "train", many_photos, *FULL, "--out", "run")
    assert code != 0
    said = [line[: len(sentence)] for line in err.splitlines() if line.startswith("torchsnow: ")]
    assert least <= len(said) <= 1
    assert set(said) <= {sentence}


class Store:
    """What torchrun offers, of a first process that is alone with it."""

    def __init__(self) -> None:
        self.said: dict[str, str] = {}

    def set(self, key: str, value: str) -> None:
        self.said[key] = value

    def get(self, key: str) -> bytes:
        return b"ended"


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    """This process is the first of two."""
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    store = Store()
    monkeypatch.setattr(Ranks, "_store", store)
    return store


def test_what_one_process_does_is_refused(photos: Path, store: Store) -> None:
    assert "started 2 processes, and train-many runs in one" in refused("train-many", f"a={photos}", "--hub", "hub")
    assert store.said == {"first": "ended"}  # the other does not wait any longer
    assert "trains from stored features" in refused("train", photos, *SIZES)
    assert "each of the 2 processes needs 2 images of a batch" in refused(
        "train", photos, *FULL, "--batch-size", "3", "--out", "run"
    )


def test_another_process_has_nothing_to_do_when_the_first_has_ended(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    handler = signal.getsignal(signal.SIGINT)
    outcome = torchsnow("train", "nowhere")
    signal.signal(signal.SIGINT, handler)
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")


@pytest.mark.parametrize(("name", "value"), [("MASTER_PORT", None), ("WORLD_SIZE", "1")])
def test_without_other_processes_a_training_is_an_ordinary_one(
    name: str, value: str | None, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    if value is None:
        monkeypatch.delenv(name)
    else:
        monkeypatch.setenv(name, value)
    assert "the data 'nowhere' does not exist" in refused("train", "nowhere")
    assert store.said == {}
