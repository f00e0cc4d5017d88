"""The long runs of `benchmarks/endurance.py` grow from what they found, and hide nothing of it."""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from scripts import load_script

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def endurance() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
        return load_script(BENCHMARKS / "endurance.py")


def test_noise_is_the_same_for_a_seed_and_other_than_what_it_is_made_from(endurance: ModuleType) -> None:
    corpus = endurance.first_requests()
    made = [[endurance.changed(random.Random(seed), corpus) for seed in range(100)] for _ in range(2)]
    assert made[0] == made[1]
    assert len(set(made[0])) > 80
    assert max(map(len, made[0])) < 2_000_000
    for one in made[0]:
        assert b"\r\nauthorization: bearer " in one
        assert len(re.findall(rb"\r\nconnection: close\r\n", one)) == 1


def test_a_reply_is_judged_by_the_worst_that_it_says(endurance: ModuleType) -> None:
    def reply(status: int, body: bytes) -> bytes:
        return b"HTTP/1.1 %d x\r\nContent-Length: %d\r\n\r\n" % (status, len(body)) + body

    two = reply(404, b'{"error": "there is no task 7 named \'t9\'"}')
    assert endurance.said(two) == (404, "404there is no task  named ")
    assert endurance.said(two + reply(500, b"{}"))[0] == 500
    for bad in (b"", reply(400, b"Invalid HTTP request")):
        with pytest.raises((ValueError, IndexError)):
            endurance.said(bad)


def test_what_was_found_stays_found(
    endurance: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A scenario that breaks is no clean one, nor is the next run, which continues."""
    file, runs = tmp_path / "state.json", []

    def scenario(args: argparse.Namespace, state: object, folder: Path) -> None:
        runs.append(args)
        if len(runs) == 1:
            raise RuntimeError("the server died")
        endurance.State.add(state, 5, [])

    monkeypatch.setattr(endurance, "fuzz", scenario)
    monkeypatch.setattr(sys, "argv", ["endurance.py", "fuzz", "--until", "10", "--state", str(file)])
    for _ in range(2):
        assert endurance.main() == 1
    found = json.loads(file.read_text())["fuzz"]
    assert (found["done"], found["bad"]) == (5, ["RuntimeError('the server died')"])
    assert "RuntimeError: the server died" in capsys.readouterr().err
