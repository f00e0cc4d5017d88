from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sample_photos import make_photos
from torchsnow.data import LoadedData, load_data
from torchsnow.errors import TrainingError
from torchsnow.hub import Hub
from torchsnow.source import Source, load_source
from torchsnow.train import RunFolder, TrainSettings
from torchsnow.workflows.loggers import LOGGERS, TrainingLog, open_logger
from torchsnow.workflows.place import Place
from torchsnow.workflows.recipe import Recipe
from torchsnow.workflows.training import TrainedTask, train_task

CURVES = {"train/loss", "train/accuracy", "val/loss", "val/accuracy", "lr", "images_per_s", "seconds"}


@pytest.fixture(scope="module")
def source() -> Source:
    return load_source("test_resnet", weights="random")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> LoadedData:
    return load_data(make_photos(tmp_path_factory.mktemp("data") / "photos"))


@pytest.fixture(autouse=True)
def _one_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(run: RunFolder, metrics: object) -> None:
        Image.fromarray(np.full((4, 6, 3), 7, np.uint8)).save(run.path / "results.png")

    monkeypatch.setattr("torchsnow.plots.draw_run", draw)


class Notebook:
    """A logger that writes down what it is told, and may fail."""

    def __init__(self, fails: bool = False) -> None:
        self.fails = fails
        self.settings: dict[str, Any] = {}
        self.values: list[tuple[int, dict[str, float]]] = []
        self.files: list[Path] = []
        self.closed: list[bool] = []

    def log_settings(self, settings: Mapping[str, Any]) -> None:
        self.settings |= settings

    def log_values(self, values: Mapping[str, float], epoch: int) -> None:
        if self.fails and epoch == 1:
            raise ConnectionError("no answer\nfrom there")
        self.values.append((epoch, dict(values)))

    def log_file(self, path: Path) -> None:
        assert path.exists()
        self.files.append(path)

    def close(self, finished: bool) -> None:
        self.closed.append(finished)


def train_logged(texts: list[str], tmp_path: Path, data: LoadedData, source: Source, epochs: int = 2) -> TrainedTask:
    settings = TrainSettings(epochs=epochs, batch_size=8, image_size=32, device="cpu")
    run, place = RunFolder(tmp_path / "run"), Place(tmp_path / "hub", source)
    with TrainingLog(texts, "colours", run) as log:
        result = train_task(data, "colours", run, Recipe(settings), source, place, resume=run.last.exists())
        log.finish(result)
    return result


def test_settings_curves_pictures_and_the_task_file(
    tmp_path: Path, data: LoadedData, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = Notebook(), Notebook(fails=True)
    monkeypatch.setitem(LOGGERS, "good", lambda place, name: good)  # type: ignore[arg-type]
    monkeypatch.setitem(LOGGERS, "bad", lambda place, name: bad)  # type: ignore[arg-type]
    result = train_logged(["good:x", "bad:x"], tmp_path, data, source)
    assert good.settings["training.epochs"] == 2
    assert good.settings["method.name"] == "snow"
    assert [epoch for epoch, _ in good.values] == [0, 1, 2, 2]
    assert set(good.values[0][1]) == CURVES - {"train/loss", "train/accuracy", "lr", "images_per_s"}
    assert set(good.values[1][1]) - {"body_val_accuracy"} == CURVES
    assert good.values[2][1]["val/loss"] == result.fit.history[2].val_loss
    assert good.values[3][1]["result/val_accuracy"] == result.fit.metrics.accuracy
    hub = Hub.open(tmp_path / "hub")
    task_file = hub.folder.task_file("colours", hub.infos()["colours"])
    assert good.files[-1] == task_file
    assert {path.name for path in good.files} >= {"results.csv", "results.png", "args.yaml"}
    assert (good.closed, bad.closed) == ([True], [])
    assert [epoch for epoch, _ in bad.values] == [0]
    warning = "warning: nothing more is logged to bad:x: no answer\n"
    assert (tmp_path / "run" / "log.txt").read_text().count(warning) == 1

    again = Notebook()
    monkeypatch.setitem(LOGGERS, "good", lambda place, name: again)  # type: ignore[arg-type]
    train_logged(["good:x"], tmp_path, data, source)  # a finished run: its log is whole all the same
    assert again.values[:3] == good.values[:3]
    assert again.settings == good.settings


def test_an_interrupted_training_is_not_a_finished_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = Notebook()
    monkeypatch.setitem(LOGGERS, "good", lambda place, name: book)  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt), TrainingLog(["good:x"], "colours", RunFolder(tmp_path)):
        raise KeyboardInterrupt
    assert book.closed == [False]


@pytest.mark.parametrize("text", ["tensorboard", "tensorboard:", "paper:x", ""])
def test_what_names_no_logger(text: str) -> None:
    with pytest.raises(TrainingError, match="expected tensorboard:FOLDER, mlflow:URI or wandb:PROJECT"):
        open_logger(text, "run")


@pytest.mark.parametrize(
    ("text", "module"),
    [("tensorboard:x", "torch.utils.tensorboard.writer"), ("mlflow:x", "mlflow"), ("wandb:x", "wandb")],
)
def test_without_the_library(text: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(TrainingError, match=rf"pip install 'torchsnow\[{text[:-2]}\]'"):
        open_logger(text, "run")


def test_a_place_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(place: str, name: str) -> None:
        raise OSError("no room")

    monkeypatch.setitem(LOGGERS, "full", fail)  # type: ignore[arg-type]
    book = Notebook()
    monkeypatch.setitem(LOGGERS, "good", lambda place, name: book)  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="cannot log to full:x: no room"):
        TrainingLog(["good:x", "full:x"], "run", RunFolder(tmp_path))
    assert book.closed == [False]


def test_a_tracking_server_that_is_not_there_is_soon_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    for name in ("MAX_RETRIES", "TIMEOUT"):  # what is set is what was set when this is over
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{name}", "")
        monkeypatch.delenv(f"MLFLOW_HTTP_REQUEST_{name}")
    start_s = time.monotonic()
    with pytest.raises(TrainingError, match=r"cannot log to mlflow:http://127\.0\.0\.1:9: "):
        open_logger("mlflow:http://127.0.0.1:9", "run")
    assert time.monotonic() - start_s < 60


def test_tensorboard_reads_it(tmp_path: Path, data: LoadedData, source: Source) -> None:
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = train_logged([f"tensorboard:{tmp_path / 'board'}"], tmp_path, data, source, epochs=1)
    train_logged([f"tensorboard:{tmp_path / 'board'}"], tmp_path, data, source, epochs=1)  # takes the place of it
    found = EventAccumulator(str(tmp_path / "board" / "colours"))
    found.Reload()
    assert set(found.Tags()["scalars"]) >= CURVES
    assert [event.step for event in found.Scalars("val/loss")] == [0, 1]
    assert found.Scalars("val/loss")[1].value == pytest.approx(result.fit.history[1].val_loss)
    assert (found.Images("results")[0].height, found.Images("results")[0].width) == (4, 6)
    assert "settings/text_summary" in found.Tags()["tensors"]


def test_mlflow_has_it(tmp_path: Path, data: LoadedData, source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="needs the extra mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # a data base would need the whole of MLflow
    uri = (tmp_path / "mlruns").as_uri()
    result = train_logged([f"mlflow:{uri}"], tmp_path, data, source, epochs=1)
    client = mlflow.MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("torchsnow").experiment_id])
    assert (run.info.run_name, run.info.status) == ("colours", "FINISHED")
    assert run.data.params["training.epochs"] == "1"
    assert run.data.metrics["result/val_accuracy"] == pytest.approx(result.fit.metrics.accuracy)
    history = client.get_metric_history(run.info.run_id, "val/loss")
    assert [metric.step for metric in history] == [0, 1]
    sha256 = Hub.open(tmp_path / "hub").infos()["colours"].sha256
    assert f"{sha256}.safetensors" in {file.path for file in client.list_artifacts(run.info.run_id)}


def test_wandb_writes_it_offline(
    tmp_path: Path, data: LoadedData, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb", reason="needs the extra wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)
    train_logged(["wandb:parts"], tmp_path, data, source, epochs=1)
    wandb.teardown()  # waits for the process that writes
    (written,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    sha256 = Hub.open(tmp_path / "hub").infos()["colours"].sha256
    content = written.read_bytes()
    for word in ("colours", "val/loss", "training.epochs", sha256):
        assert word.encode() in content, word
