from __future__ import annotations

import importlib.util
from typing import Any

import pytest
from command_line import TINY, refused


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
