from __future__ import annotations

import importlib.util
import subprocess
import sys
from typing import Any

import pytest
from command_line import TINY, Trained, refused


@pytest.mark.parametrize(
    "words",
    [
        ("compare", "elpv", "--ray", "auto"),
        ("train-many", "labels.csv", "--hub", "hub", *TINY, "--ray", "auto"),
        ("serve", "--hub", "hub", "--ray", "auto"),
    ],
    ids=lambda words: words[0],
)
def test_without_ray_one_sentence_names_the_extra(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    find: Any = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "ray" else find(name, *rest))
    assert refused(*words) == "a cluster needs Ray: pip install 'torchsnow[ray]'"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("compare", "elpv", "--merge"), "--ray and --merge contradict each other: --merge trains nothing"),
        (("compare", "elpv", "--shard", "1/2"), "--shard and --ray contradict each other: --ray is about all cells"),
        (("serve", "--hub", "hub", "--workers", "2"), "--workers is not for --ray: see --replicas"),
        (("serve", "--hub", "hub", "--proxy", "10.0.0.1"), "--proxy is not for --ray: see --replicas"),
    ],
)
def test_what_contradicts_it_is_refused(words: tuple[str, ...], sentence: str) -> None:
    assert refused(*words, "--ray", "auto") == sentence


@pytest.mark.parametrize(("option", "value"), [("--replicas", "2"), ("--gpus", "0.5")])
def test_what_is_for_it_alone_is_refused(option: str, value: str) -> None:
    assert refused("serve", "--hub", "hub", option, value) == (
        f"{option} is for --ray; on one machine --workers 2 are two"
    )


@pytest.mark.integration
def test_gpus_that_this_machine_lacks_are_refused(pristine: Trained) -> None:
    pytest.importorskip("ray")
    words = ("serve", "--hub", str(pristine.hub), "--ray", "local", "--gpus", "8")
    # in a process of its own: Ray warns of itself, and its processes would outlive the test
    done = subprocess.run([sys.executable, "-m", "torchsnow", *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done
    assert "each replica is to have 8 GPUs, and this machine has " in done.stderr
