from __future__ import annotations

from pathlib import Path

import pytest

from sample_tasks import sample_task
from torchsnow.delta import Delta
from torchsnow.errors import TrainingError
from torchsnow.explain.page import task_of_run
from torchsnow.methods.snow import Snow, make_snow
from torchsnow.source import Source, load_source
from torchsnow.train import RunFolder


@pytest.fixture(scope="module")
def source() -> Source:
    return load_source("test_resnet", "random")


def made(source: Source) -> Snow:
    """A narrow copy whose choice is learned, with a body that counts: one that does not would not ship."""
    method = make_snow(source, 3, changes={"width_divisor": 8, "grid_width": None, "learned": True})
    method.delta.head.share.fill_(1.0)
    return method


@pytest.fixture
def delta(source: Source) -> Delta:
    return made(source).model.delta


@pytest.fixture
def run(source: Source, tmp_path: Path) -> RunFolder:
    """What a run leaves of the choice of channels."""
    method = made(source)
    folder = RunFolder(tmp_path)
    folder.create({})
    folder.write_subscription(method.subscription())
    return folder


def test_a_run_is_known_by_what_it_ended_with(source: Source, delta: Delta, run: RunFolder) -> None:
    frozen = delta.freeze(source)
    assert task_of_run(run, {"other": sample_task(source).delta, "own": frozen}) == "own"
    with pytest.raises(TrainingError, match="is not that of task 'pets' or 'cats'"):
        task_of_run(run, {"pets": sample_task(source).delta, "cats": sample_task(source, seed=1).delta})


def test_a_run_of_a_grid_delta_is_known_by_its_channels_too(source: Source, tmp_path: Path) -> None:
    method, run = make_snow(source, 3), RunFolder(tmp_path)
    method.delta.head.share.fill_(1.0)
    run.create({})
    run.write_subscription(method.subscription())
    frozen = method.delta.freeze(source)
    assert task_of_run(run, {"own": frozen}) == "own"
    frozen.grid_pool.index += 1
    with pytest.raises(TrainingError, match="is not that of task 'own'"):
        task_of_run(run, {"own": frozen})


def test_the_same_channels_with_other_weights_are_another_task(source: Source, delta: Delta, run: RunFolder) -> None:
    frozen = delta.freeze(source)
    next(iter(frozen.pools.values())).weight.data += 1e-3
    with pytest.raises(TrainingError, match="is not that of task 'own'"):
        task_of_run(run, {"own": frozen})


def test_folders_that_are_no_finished_run(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"nowhere holds no run: it has no args\.yaml"):
        task_of_run(RunFolder(tmp_path / "nowhere"), {})
    run.subscription.write_text("{")
    with pytest.raises(TrainingError, match=r"subscription\.json is damaged"):
        task_of_run(run, {})
    run.subscription.unlink()
    with pytest.raises(TrainingError, match="not finished, or its method chooses no channels"):
        task_of_run(run, {})
