"""Comparisons and trainings on a Ray cluster, by the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from local_ray import Ray
from sample_photos import make_photos

pytestmark = pytest.mark.integration
SIZES = ("--source", "test_resnet", "--weights", "random", "--image-size", "32", "--batch-size", "8", "--lr", "0.005")


def start(*words: str | Path) -> subprocess.Popen[str]:
    given = [sys.executable, "-m", "torchsnow", *map(str, words)]
    return subprocess.Popen(given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str]) -> tuple[str, str]:
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return out, err


def tasks(hub: str) -> dict[str, dict[str, torch.Tensor]]:
    return {file.parent.name: load_file(file) for file in Path(hub).glob("tasks/*/*.safetensors")}


def assert_same_tasks(hub: str, other: str) -> None:
    one, two = tasks(hub), tasks(other)
    assert sorted(one) == sorted(two)
    for name, tensors in one.items():
        assert all(torch.equal(tensor, two[name][key]) for key, tensor in tensors.items()), name


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A table of three tasks on the same images."""
    lines = ["path,colour,parity,half,split"]
    splits = ("train", "train", "val", "train", "test", "train", "train", "val", "train", "train")
    for path in sorted(make_photos(tmp_path / "photos").glob("*/*.png")):
        number = int(path.stem)
        lines.append(f"{path.relative_to(tmp_path)},{path.parent.name},{number % 2},{number // 5},{splits[number]}")
    file = tmp_path / "labels.csv"
    file.write_text("\n".join(lines) + "\n")
    return file


def test_a_comparison_is_what_it_is_without_a_cluster(ray: Ray, tmp_path: Path) -> None:
    photos, experiment = make_photos(tmp_path / "photos"), tmp_path / "tiny.yaml"
    experiment.write_text(
        f"data: [{photos}, missing]\nmethods: [head, snow]\nsources: [test_resnet]\nweights: random\n"
        "seeds: [0, 1, 2]\nepochs: 1\nimage_size: 32\nbatch_size: 8\nlr_tries: 2\ndevice: cpu\n"
    )
    words = ("compare", "--experiment", experiment)
    ended(start(*words, "--out", "alone", "--shard", "1/1"))
    process = start(*words, "--out", "spread", "--ray", ray.address)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 2, err
    assert "6 of 12 cells failed" in err
    assert "the data 'missing' does not exist" in err
    assert "left to another process" not in err
    alone, spread = (read_cells(Path(where)) for where in ("alone", "spread"))
    assert alone == spread
    assert len(spread) == 12


def read_cells(out: Path) -> dict[str, Any]:
    """The cells by the names of their files, without what differs from time to time."""
    cells = {file.name: json.loads(file.read_text()) for file in out.glob("cells/*.json")}
    for cell in cells.values():
        for row in [cell, *cell.get("history", [])]:
            for name in ("seconds", "images_per_s"):
                row.pop(name, None)
    return cells


def test_tasks_are_the_same_when_a_process_is_killed(ray: Ray, table: Path) -> None:
    words = ("train-many", table, "own=photos", *SIZES, "--epochs", "40", "--augmentation", "none")
    ended(start(*words, "--hub", "hub", "--out", "runs"))
    process = start(*words, "--hub", "other", "--out", "other-runs", "--ray", ray.address, "--json")
    while not list(Path("other-runs").glob("*/last.safetensors")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    victim = ray.pids("_call")[0]
    os.kill(victim, signal.SIGKILL)
    out, _ = ended(process)
    assert [one["task"] for one in json.loads(out)] == ["colour", "parity", "half", "own"]
    assert_same_tasks("hub", "other")
    again = start(*words, "--hub", "other", "--out", "other-runs", "--ray", ray.address, "--resume", "--replace")
    assert "4 tasks are in the hub other" in ended(again)[0]
    assert_same_tasks("hub", "other")


def test_what_cannot_be_is_one_sentence(ray: Ray, table: Path) -> None:
    process = start("train-many", table, *SIZES, "--hub", "hub", "--ray", "127.0.0.1:1")
    _, err = process.communicate(timeout=600)
    assert process.returncode == 2
    assert err.splitlines()[-1].startswith("torchsnow: cannot reach the Ray cluster '127.0.0.1:1'")
    assert "Traceback" not in err
