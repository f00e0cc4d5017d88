"""What a training tells other tools: TensorBoard, MLflow, Weights & Biases. The run folder has all of it anyway."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from torchsnow.errors import TrainingError
from torchsnow.hub import Hub
from torchsnow.io.yaml_file import read_yaml
from torchsnow.train import RunFolder
from torchsnow.train.history import Epoch
from torchsnow.workflows.training import TrainedTask

_MLFLOW_CHARACTERS = 6_000  # of a setting, at most
_MLFLOW_PATIENCE = {"MAX_RETRIES": "1", "TIMEOUT": "10"}  # unless the environment says otherwise; by itself, minutes


class Logger(Protocol):
    """One tool; whatever its methods raise ends the logging, never the training."""

    def log_settings(self, settings: Mapping[str, Any]) -> None:
        """Names with dots, and plain values."""

    def log_values(self, values: Mapping[str, float], epoch: int) -> None:
        """Numbers by name, after an epoch."""

    def log_file(self, path: Path) -> None:
        """A picture, a table, or the task file."""

    def close(self, finished: bool) -> None:
        """Nothing more comes; `finished` is False for a training that was stopped or failed."""


class TensorBoardLogger:
    """Event files in a folder below `place`, of the run's name; a resumed run takes the place of what it had."""

    def __init__(self, place: str, name: str) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        self._writer = SummaryWriter(str(Path(place) / name), purge_step=0)

    def log_settings(self, settings: Mapping[str, Any]) -> None:
        rows = "\n".join(f"| {key} | {value} |" for key, value in settings.items())
        self._writer.add_text("settings", f"| setting | value |\n| --- | --- |\n{rows}")

    def log_values(self, values: Mapping[str, float], epoch: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def log_file(self, path: Path) -> None:
        """Pictures themselves; of other files, where they are: TensorBoard keeps none."""
        if path.suffix != ".png":
            self._writer.add_text(f"files/{path.name}", str(path.resolve()))
            return
        import numpy as np
        from PIL import Image

        with Image.open(path) as picture:
            pixels = np.array(picture.convert("RGB"))
        self._writer.add_image(path.stem, pixels, dataformats="HWC")

    def close(self, finished: bool) -> None:
        self._writer.close()


class MlflowLogger:
    """A new MLflow run in the experiment "torchsnow" of the tracking server or folder at `place`."""

    def __init__(self, place: str, name: str) -> None:
        for setting, value in _MLFLOW_PATIENCE.items():
            os.environ.setdefault(f"MLFLOW_HTTP_REQUEST_{setting}", value)
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri=place)
        experiment = self._client.get_experiment_by_name("torchsnow")
        number = experiment.experiment_id if experiment is not None else self._client.create_experiment("torchsnow")
        self._run = self._client.create_run(number, run_name=name).info.run_id

    def log_settings(self, settings: Mapping[str, Any]) -> None:
        for key, value in settings.items():
            self._client.log_param(self._run, key, str(value)[:_MLFLOW_CHARACTERS])

    def log_values(self, values: Mapping[str, float], epoch: int) -> None:
        for name, value in values.items():
            self._client.log_metric(self._run, name, value, step=epoch)

    def log_file(self, path: Path) -> None:
        self._client.log_artifact(self._run, str(path))

    def close(self, finished: bool) -> None:
        self._client.set_terminated(self._run, "FINISHED" if finished else "KILLED")


class WandbLogger:
    """A new run in the Weights & Biases project `place`; without connection with WANDB_MODE=offline."""

    def __init__(self, place: str, name: str) -> None:
        import wandb

        self._run = wandb.init(project=place, name=name)

    def log_settings(self, settings: Mapping[str, Any]) -> None:
        self._run.config.update(dict(settings))

    def log_values(self, values: Mapping[str, float], epoch: int) -> None:
        self._run.log(dict(values), step=epoch)

    def log_file(self, path: Path) -> None:
        self._run.log_artifact(str(path), name=path.name)

    def close(self, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


LOGGERS: Mapping[str, Callable[[str, str], Logger]] = {
    "tensorboard": TensorBoardLogger,
    "mlflow": MlflowLogger,
    "wandb": WandbLogger,
}
"""By the name before the colon, which is that of the extra too."""


def open_logger(text: str, name: str) -> Logger:
    """The logger that a text names, as in "tensorboard:FOLDER", for a run called `name`. Raises TrainingError."""
    kind, _, place = text.partition(":")
    if kind not in LOGGERS or not place:
        raise TrainingError(f"{text!r} names no logger; expected tensorboard:FOLDER, mlflow:URI or wandb:PROJECT")
    try:
        return LOGGERS[kind](place, name)
    except ImportError as error:
        raise TrainingError(f"logging to {text} needs a library: pip install 'torchsnow[{kind}]'") from error
    except Exception as error:  # the tools raise what they like
        raise TrainingError(f"cannot log to {text}: {_first_line(error)}") from error


class TrainingLog:
    """All loggers of one training. One that fails later is left out from there on, and the run's log says so."""

    def __init__(self, texts: Sequence[str], name: str, run: RunFolder) -> None:
        """Raises TrainingError for a logger that cannot be had."""
        self._run, self._seen, self._finished = run, 0, False
        self._loggers: dict[str, Logger] = {}
        try:
            for text in dict.fromkeys(texts):
                self._loggers[text] = open_logger(text, name)
        except TrainingError:
            self._close()
            raise

    def __enter__(self) -> Self:
        self._run.on_epoch = self.on_epoch
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._run.on_epoch = None
        self._close()

    def on_epoch(self, history: Sequence[Epoch]) -> None:
        """All epochs so far; those of a resumed run are logged too, so that every log is whole."""
        settings = _flat(read_yaml(self._run.args, TrainingError)) if self._seen == 0 else {}
        new = history[self._seen :]
        self._seen = len(history)

        def tell(logger: Logger) -> None:
            if settings:
                logger.log_settings(settings)
            for row in new:
                logger.log_values(_values(row), row.epoch)

        self._tell(tell)

    def finish(self, result: TrainedTask) -> None:
        """The main figures, the run's pictures and tables, and the task file."""
        self.on_epoch(result.fit.history)
        summary = {key: value for key, value in result.summary().items() if isinstance(value, int | float)}
        figures = {f"result/{key}": float(value) for key, value in summary.items()}
        files = [path for path in sorted(result.run.iterdir()) if path.suffix in (".png", ".csv", ".yaml")]
        if result.hub is not None:
            hub = Hub.open(result.hub)
            files.append(hub.folder.task_file(result.name, hub.infos()[result.name]))

        def tell(logger: Logger) -> None:
            logger.log_values(figures, result.fit.history[-1].epoch)
            for path in files:
                logger.log_file(path)

        self._tell(tell)
        self._finished = True

    def _tell(self, tell: Callable[[Logger], None]) -> None:
        for text, logger in list(self._loggers.items()):
            try:
                tell(logger)
            except Exception as error:  # the tools raise what they like
                self._run.log(f"warning: nothing more is logged to {text}: {_first_line(error)}")
                del self._loggers[text]

    def _close(self) -> None:
        for logger in self._loggers.values():
            with suppress(Exception):
                logger.close(self._finished)


def _values(row: Epoch) -> dict[str, float]:
    named = {
        key.replace("_", "/", 1) if key.startswith(("train_", "val_")) else key: v for key, v in asdict(row).items()
    }
    return {key: float(value) for key, value in named.items() if value is not None and key != "epoch"}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value}
    return flat


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
