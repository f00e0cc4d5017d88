from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from command_line import Trained, refused, torchsnow

from torchsnow.hub import Hub
from torchsnow.sharing import Pulled, Pushed


def test_push(pristine: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def push(hub: Hub, *given: Any, **how: Any) -> Pushed:
        asked.append((hub.folder.path, *given, how))
        return Pushed("https://x/commit/1", ("colours",))

    monkeypatch.setattr("torchsnow.sharing.push", push)
    words = ("push", "me/hub", "--hub", pristine.hub, "--task", "colours", "--license", "mit", "--private")
    outcome = torchsnow(*words)
    assert (outcome.code, outcome.out, outcome.err) == (0, "pushed colours: https://x/commit/1\n", "")
    assert torchsnow(*words, "--json").document == {
        "repository": "me/hub",
        "url": "https://x/commit/1",
        "tasks": ["colours"],
    }
    how = {"licence": "mit", "private": True, "replace": False}
    assert asked == [(pristine.hub, "me/hub", ["colours"], how)] * 2


def test_pull(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def pull(*given: Any, **how: Any) -> Pulled:
        asked.append((*given, how))
        return Pulled("c" * 40, ("a",), ("b",))

    monkeypatch.setattr("torchsnow.sharing.pull", pull)
    words = ("pull", "me/hub", "--hub", tmp_path / "hub", "--revision", "v1", "--replace")
    outcome = torchsnow(*words)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out == f"added a to {tmp_path / 'hub'}, from commit cccccccccccc\nunchanged: b\n"
    printed = torchsnow(*words, "--json").document
    assert printed == {"repository": "me/hub", "commit": "c" * 40, "added": ["a"], "unchanged": ["b"]}
    assert asked == [("me/hub", tmp_path / "hub", (), {"revision": "v1", "replace": True})] * 2


def test_refusals(pristine: Trained, tmp_path: Path) -> None:
    assert "expected ORGANISATION/NAME" in refused("push", "odd name", "--hub", pristine.hub)
    assert "ends with it; name a place that stays" in refused("push", "memory://a/hub", "--hub", pristine.hub)
    assert "s3:// names no place" in refused("push", "s3://", "--hub", pristine.hub)
    assert "is not a hub" in refused("push", "me/hub", "--hub", tmp_path / "none")
    assert "expected ORGANISATION/NAME" in refused("pull", "../x", "--hub", tmp_path / "none")
