from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from torchsnow.data import load_data
from torchsnow.errors import ExperimentError, TrainingError
from torchsnow.experiments import lifelong as lifelong_module
from torchsnow.experiments import lifelong_learners
from torchsnow.experiments.lifelong import Lifelong, write_results
from torchsnow.experiments.lifelong_learners import SequentialLearner, SnowLearner
from torchsnow.experiments.lifelong_settings import LifelongSettings
from torchsnow.experiments.lifelong_tasks import SequenceTask, make_tasks
from torchsnow.source import Framing, load_source
from torchsnow.train import RunFolder
from torchsnow.train.batches import plain_images
from torchsnow.train.evaluate import predict

CPU = torch.device("cpu")


def make_shades(root: Path, num_classes: int, num_images: int = 6) -> Path:
    """Class folders of noisy pictures that differ in brightness."""
    generator = np.random.default_rng(0)
    for label in range(num_classes):
        (root / f"{label:02d}").mkdir(parents=True)
        for number in range(num_images):
            pixels = generator.integers(0, 100, (32, 32, 3)) + 150 * label // num_classes
            Image.fromarray(pixels.astype(np.uint8)).save(root / f"{label:02d}" / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def settings(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> LifelongSettings:
    """Three tasks: the three classes of one data set, and two of two of another."""
    shades = make_shades(tmp_path_factory.mktemp("data") / "shades", 4)
    return LifelongSettings(
        data=(str(photos), str(shades)),
        source="test_resnet",
        weights="random",
        classes_per_task=2,
        epochs=1,
        image_size=32,
        batch_size=8,
        device="cpu",
    )


@pytest.fixture(scope="module")
def short(settings: LifelongSettings) -> LifelongSettings:
    """The first task alone."""
    return replace(settings, data=settings.data[:1])


@pytest.fixture(scope="module")
def finished(settings: LifelongSettings, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of a finished evaluation, not to be changed, and its results."""
    path = tmp_path_factory.mktemp("finished") / "out"
    return path, run(settings, path)


def run(settings: LifelongSettings, path: Path) -> dict[str, Any]:
    return Lifelong(settings, path).run(lambda name, done, total: None, load_data)


def count_trainings(monkeypatch: pytest.MonkeyPatch, stop_at: int | None = None) -> list[str]:
    """The runs that are trained from now on; the one with number `stop_at` is interrupted at its end."""
    trained: list[str] = []
    fit = lifelong_learners.fit

    def watched(method: Any, splits: Any, training: Any, folder: RunFolder, **options: Any) -> Any:
        result = fit(method, splits, training, folder, **options)
        if len(trained) == stop_at:
            raise KeyboardInterrupt
        trained.append(folder.path.name)
        return result

    monkeypatch.setattr(lifelong_learners, "fit", watched)
    return trained


def without_times(content: dict[str, Any]) -> dict[str, Any]:
    """What must be the same in every run."""
    learners = {
        name: {key: value for key, value in learner.items() if key not in ("train_s", "pass_s", "stored_bytes")}
        for name, learner in content["learners"].items()
    }
    return {**{key: value for key, value in content.items() if key != "made"}, "learners": learners}


def test_ten_tasks_and_no_logit_changes(tmp_path: Path) -> None:
    """The logits of the first task are bit-equal after each of the nine that follow, and at the end those of all."""
    shades = make_shades(tmp_path / "shades", 20)
    source = load_source("test_resnet", "random")
    settings = LifelongSettings((str(shades),), "test_resnet", "random", 2, 1, 32, 4, device="cpu")
    tasks = make_tasks(settings.data, load_data, 2, 0, None, None, None)
    assert len(tasks) == 10
    pool = plain_images(source.input_config, Framing(32))
    before = {name: tensor.clone() for name, tensor in source.model.state_dict().items()}
    learner = SnowLearner(source, settings, tmp_path / "hub")

    def logits(task: SequenceTask) -> torch.Tensor:
        return predict(learner.model(task), pool.with_examples(task.splits.test, task.splits.classes), 4, CPU)[0]

    first: list[torch.Tensor] = []
    for task in tasks:
        learner.learn(task, RunFolder(tmp_path / "runs" / task.name), pool)
        first.append(logits(task))
        assert torch.equal(logits(tasks[0]), first[0]), task.name
    for task, then in zip(tasks, first, strict=True):
        assert torch.equal(logits(task), then), task.name
    assert len({tuple(values.flatten().tolist()) for values in first}) == 10
    assert all(torch.equal(tensor, before[name]) for name, tensor in source.model.state_dict().items())


def test_what_is_measured(finished: tuple[Path, dict[str, Any]]) -> None:
    path, content = finished
    assert [len(task["classes"]) for task in content["tasks"]] == [3, 2, 2]
    for learner in content["learners"].values():
        assert [len(row) for row in learner["matrix"]] == [1, 2, 3]
        assert all(0 <= share <= 1 for row in learner["matrix"] for share in row)
        assert min(learner["train_s"]) > 0
        assert min(learner["pass_s"]) > 0
        assert min(learner["added_multiply_adds"]) > 0
    snow, sequential = content["learners"]["snow"], content["learners"]["sequential"]
    assert (snow["forgetting"], snow["backward_transfer"], snow["forward_transfer"]) == (0, 0, 0)
    assert snow["ahead"] == content["source_probe"]
    assert sequential["ahead"][0] == content["source_probe"][0]
    assert snow["logits_bit_equal"]
    assert not sequential["logits_bit_equal"]
    files = [next((path / "hub" / "tasks" / task["name"]).iterdir()) for task in content["tasks"]]
    assert snow["stored_bytes"] == [file.stat().st_size for file in files]
    num_features = load_source("test_resnet", "random").num_features
    assert sequential["stored_bytes"] == [4 * (num_features + 1) * classes for classes in (3, 2, 2)]
    assert sequential["added_multiply_adds"] == [num_features * classes for classes in (3, 2, 2)]
    assert content["source_bytes"] > 0


def test_one_network_goes_on_with_a_head_per_task(settings: LifelongSettings, tmp_path: Path) -> None:
    """The body is the last one fine-tuned, and starts where the task before left it; heads stay as they were."""
    source = load_source("test_resnet", "random")
    tasks = make_tasks(settings.data, load_data, 2, 0, None, None, None)[:2]
    pool = plain_images(source.input_config, Framing(32))
    settings = replace(settings, epochs=4)
    learner = SequentialLearner(source, settings)
    bodies = [source.model.state_dict()]
    heads = []
    for task in tasks:
        learner.learn(task, RunFolder(tmp_path / task.name), pool)
        bodies.append(learner.features().state_dict())
        heads.append(learner.model(tasks[0]).fc.state_dict())
    weights = [next(tensor for tensor in body.values() if tensor.ndim == 4) for body in bodies]
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])
    assert all(torch.equal(heads[0][name], heads[1][name]) for name in heads[0])
    nearer, farther = (weights[2] - weights[1]).norm(), (weights[2] - weights[0]).norm()
    assert nearer < farther  # a few steps from the task before, not from the source
    again = SequentialLearner(source, settings)
    for task in tasks:
        again.restore(task, RunFolder(tmp_path / task.name))
    assert all(torch.equal(tensor, bodies[2][name]) for name, tensor in again.features().state_dict().items())


def test_finished_tasks_are_not_learned_again(
    settings: LifelongSettings,
    finished: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stopped = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        trained = count_trainings(patch, stop_at=3)
        with pytest.raises(KeyboardInterrupt):
            run(settings, stopped)
    assert [name.partition("-")[0] for name in trained] == ["snow", "sequential", "snow"]
    trained = count_trainings(monkeypatch)
    content = run(settings, stopped)
    assert [name.partition("-")[0] for name in trained] == ["sequential", "snow", "sequential"]
    assert without_times(content) == without_times(finished[1])
    trained.clear()
    again = run(settings, stopped)
    assert trained == []
    assert {**again, "made": ""} == {**content, "made": ""}


def test_a_sequence_may_grow_at_its_end(
    settings: LifelongSettings, short: LifelongSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(short, tmp_path)
    trained = count_trainings(monkeypatch)
    content = run(settings, tmp_path)
    assert len(content["tasks"]) == 3
    assert len(trained) == 4
    with pytest.raises(ExperimentError, match="more data can only follow at the end"):
        Lifelong(short, tmp_path)


def test_other_settings_and_changed_or_damaged_files_are_refused(short: LifelongSettings, tmp_path: Path) -> None:
    run(short, tmp_path)
    with pytest.raises(ExperimentError, match="holds a sequence with epochs = 1, not 2"):
        Lifelong(replace(short, epochs=2), tmp_path)
    (step,) = (tmp_path / "steps").glob("*-snow.json")
    kept = json.loads(step.read_text())
    step.write_text(json.dumps({**kept, "task": {**kept["task"], "fingerprint": "other"}}))
    with pytest.raises(ExperimentError, match="changed since"):
        run(short, tmp_path)
    step.write_text("{")
    with pytest.raises(ExperimentError, match=r"snow\.json is damaged: remove the file"):
        run(short, tmp_path)
    step.unlink()
    assert run(short, tmp_path)["learners"]["snow"]["matrix"] == [kept["accuracies"]]
    (tmp_path / "settings.yaml").write_text("[")
    with pytest.raises(ExperimentError, match="is damaged"):
        Lifelong(short, tmp_path)


def test_the_test_split_chooses_nothing(short: LifelongSettings, tmp_path: Path) -> None:
    """What is trained is the same with fewer test images."""
    first, second = (run(replace(short, test_images=num), tmp_path / str(num)) for num in (3, None))
    assert first["tasks"][0]["test_images"] < second["tasks"][0]["test_images"]
    for kind in ("snow", "sequential"):
        one, two = (next((tmp_path / str(num) / "runs").glob(f"{kind}-*")) for num in (3, None))
        assert (one / "splits.json").read_text() != (two / "splits.json").read_text()
        tables = [list(csv.reader((run / "results.csv").read_text().splitlines())) for run in (one, two)]
        columns = [[row[:5] for row in table] for table in tables]  # the epoch, losses and accuracies
        assert columns[0] == columns[1]


def test_what_is_written(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    _, content = finished
    write_results(content, tmp_path, print)
    assert json.loads((tmp_path / "results.json").read_text()) == content
    with (tmp_path / "matrix-sequential.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    names = [task["name"] for task in content["tasks"]]
    assert header == ["after", *names]
    assert [row[0] for row in rows] == names
    matrix = content["learners"]["sequential"]["matrix"]
    assert [[float(cell) for cell in row[1:] if cell] for row in rows] == matrix
    assert (tmp_path / "lifelong.png").read_bytes().startswith(b"\x89PNG")
    assert "<!doctype html>" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": ()}, "name at least one data set"),
        ({"data": ("a", "a")}, "data lists something twice: a, a"),
        ({"classes_per_task": 1}, "classes_per_task is 1; expected 2 or more"),
        ({"train_images": 0}, "train_images is 0; expected 2 or more"),
        ({"test_images": 0}, "test_images is 0; expected 1 or more"),
        ({"epochs": 0}, "epochs is 0"),
        ({"augmentation": "much"}, "augmentation is 'much'"),
    ],
)
def test_settings_out_of_range(settings: LifelongSettings, change: dict[str, Any], message: str) -> None:
    with pytest.raises((ExperimentError, TrainingError), match=message):
        replace(settings, **change)


def test_the_summary_of_a_learner() -> None:
    steps = [
        {"accuracies": [0.9], "logits_sha256": ["a"], "ahead": 0.5},
        {"accuracies": [0.9, 0.7], "logits_sha256": ["b", "c"], "ahead": 0.6},
    ]
    costs = {"stored_bytes": 5, "added_multiply_adds": 3, "train_s": 1.0}
    made = lifelong_module.summary([{**step, **costs} for step in steps], [0.5, 0.4], [0.1, 0.2])
    assert made["average_accuracy"] == pytest.approx(0.8)
    assert made["forward_transfer"] == pytest.approx(0.2)
    assert not made["logits_bit_equal"]  # although the accuracy is the same
    assert made["stored_bytes"] == [5, 5]
