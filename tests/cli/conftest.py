"""A hub with a trained task, and a quick command line."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from command_line import TINY, Trained, torchsnow

from sample_photos import make_photos


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten images of each of three classes; not to be changed."""
    return make_photos(tmp_path_factory.mktemp("data") / "photos")


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Trained:
    """Trained once, with everything that a run writes; not to be changed."""
    root = tmp_path_factory.mktemp("pristine")
    hub, run = root / "hub", root / "run"
    outcome = torchsnow(
        "train", photos, "--task", "colours", "--hub", hub, "--out", run, *TINY, "--epochs", "2", "--json"
    )
    assert outcome.code == 0, outcome
    return Trained(photos, hub, run, outcome.document)


@pytest.fixture
def trained(pristine: Trained, tmp_path: Path) -> Trained:
    """A copy of its own of the hub and the run."""
    hub, run = (Path(shutil.copytree(path, tmp_path / path.name)) for path in (pristine.hub, pristine.run))
    return Trained(pristine.photos, hub, run, pristine.printed)


@pytest.fixture(autouse=True)
def _quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No pictures of runs, which take most of a tiny training; runs/ is made in the test's own folder."""
    monkeypatch.setattr("torchsnow.plots.draw_run", lambda run, metrics: [])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(os.environ, "COLUMNS", "80")
