"""Real processes, stopped at real moments."""

from __future__ import annotations

import csv
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from command_line import TINY, Trained, torchsnow
from safetensors.torch import load_file

from torchsnow.hub import Hub
from torchsnow.train import RunFolder
from torchsnow.train.checkpoint import Checkpoint

pytestmark = pytest.mark.slow

SCRIPT = Path(sys.executable).parent / "torchsnow"
EPOCHS = 12


def start(words: list[str | Path]) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # sums over as many threads as here, so that bits can be equal
    return subprocess.Popen(
        [SCRIPT, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def wait_for(path: Path, text: str, process: subprocess.Popen[str]) -> None:
    """Until a file holds a text."""
    deadline_s = time.monotonic() + 120
    while not (path.exists() and text in path.read_text()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline_s
        time.sleep(0.005)


def check_readable(run: RunFolder) -> None:
    """Every file of a run that was killed is whole."""
    if run.args.exists():
        assert yaml.safe_load(run.args.read_text())["training"]["epochs"] == EPOCHS
    if run.last.exists():
        assert Checkpoint.load(run.last).history[-1].epoch <= EPOCHS
    for table in (run.results, run.selection):
        if table.exists():
            rows = list(csv.DictReader(table.read_text().splitlines()))
            assert all(None not in row and None not in row.values() for row in rows)
    if run.best.exists():
        assert Checkpoint.load(run.best).model


def tensors(hub: Path) -> dict[str, torch.Tensor]:
    (file,) = (hub / "tasks" / "new").glob("*.safetensors")
    return load_file(file)


@pytest.fixture
def words(trained: Trained) -> list[str | Path]:
    return [
        *("train", trained.photos, "--task", "new", "--hub", trained.hub, "--out", "new-run"),
        *(*TINY, "--epochs", str(EPOCHS), "--json"),
    ]


@pytest.fixture
def undisturbed(trained: Trained) -> dict[str, torch.Tensor]:
    """The task as it comes out when nobody disturbs."""
    words = ("--task", "new", "--hub", "other-hub", "--out", "other-run", *TINY, "--epochs", str(EPOCHS))
    assert torchsnow("train", trained.photos, *words).code == 0
    return tensors(Path("other-hub"))


@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_random_moments(
    trained: Trained, words: list[str | Path], undisturbed: dict[str, torch.Tensor], seed: int
) -> None:
    moments = random.Random(seed)
    run, resume = RunFolder("new-run"), False
    for epoch in sorted(moments.sample(range(EPOCHS + 1), 3)):
        process = start([*words, *(["--resume"] if resume else [])])
        wait_for(run.args if epoch == 0 else run.results, "snow" if epoch == 0 else f"\n{epoch},", process)
        time.sleep(moments.uniform(0, 0.3))
        process.kill()
        process.communicate()
        check_readable(run)
        assert Hub.open(trained.hub).verify() == []  # the old one
        resume = run.args.exists()
        if Hub.open(trained.hub).names() != ["colours"]:  # or the new one
            break
    else:
        outcome = torchsnow(*words, "--resume")
        assert outcome.code == 0, outcome
    assert Hub.open(trained.hub).names() == ["colours", "new"]
    result, expected = tensors(trained.hub), undisturbed
    assert result.keys() == expected.keys()
    assert all(torch.equal(result[key], expected[key]) for key in expected)


@pytest.mark.parametrize("resume", [False, True])
def test_the_second_of_two_at_once_is_refused(
    trained: Trained, words: list[str | Path], undisturbed: dict[str, torch.Tensor], resume: bool
) -> None:
    if resume:
        stopped = start(words)
        wait_for(RunFolder("new-run").results, "\n1,", stopped)
        stopped.kill()
        stopped.communicate()
        words = [*words, "--resume"]
    both = [start(words), start(words)]
    said = [process.communicate(timeout=240)[1] for process in both]
    codes = [process.returncode for process in both]
    assert sorted(codes) == [0, 2], said
    (sentence,) = said[codes.index(2)].splitlines()
    assert f"torchsnow: new-run is in use by process {both[codes.index(0)].pid} on " in sentence
    result = tensors(trained.hub)
    assert all(torch.equal(result[key], tensor) for key, tensor in undisturbed.items())


def test_ctrl_c(trained: Trained, words: list[str | Path], undisturbed: dict[str, torch.Tensor]) -> None:
    process = start(words)
    wait_for(RunFolder("new-run").results, "\n2,", process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (130, "")
    (message,) = err.splitlines()
    assert f"of {EPOCHS} epochs are safe in new-run" in message
    program, *command = shlex.split(message.partition("to continue: ")[2])
    assert program == "torchsnow"
    outcome = torchsnow(*command)
    assert outcome.code == 0, outcome
    result = tensors(trained.hub)
    assert all(torch.equal(result[key], tensor) for key, tensor in undisturbed.items())
