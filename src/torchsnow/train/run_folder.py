"""The folder of one training run."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from torchsnow.errors import TrainingError
from torchsnow.io.files import clear_os_errors, plain_row, write_atomically
from torchsnow.io.lock import LOCK_FILE, OWNER_FILE, FolderLock
from torchsnow.io.yaml_file import read_yaml
from torchsnow.train.history import Epoch
from torchsnow.train.settings import TrainSettings


class RunFolder:
    """Where a run writes; each file is whole at any moment, and every finished epoch is in it.

    `args.yaml` says what was run, `splits.json` on which images, `log.txt` what happened; `results.csv` has a row per
    epoch, from the start on, and `selection.csv` one per epoch and tap; `last.safetensors` is what a run resumes from
    and `best.safetensors` the best model so far; `subscription.json` has the channels that the finished task reads, and
    `metrics.json` how good it is; `shipped.json` says which version of the task in a hub is of this run.
    Whoever shows the run adds `results.png`, `selection.png` and `confusion_matrix.png`; whoever follows it sets
    `on_epoch`, which is given all epochs so far, the start included, whenever one more is in the folder. Whoever
    writes here owns the folder meanwhile, by `owned`.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.on_epoch: Callable[[Sequence[Epoch]], None] | None = None
        self._lock = FolderLock(self.path, TrainingError)

    @property
    def args(self) -> Path:
        return self.path / "args.yaml"

    @property
    def study(self) -> Path:
        """What a study of several trainings resumes from; see `torchsnow.workflows.tune`."""
        return self.path / "study.json"

    @property
    def splits(self) -> Path:
        return self.path / "splits.json"

    @property
    def results(self) -> Path:
        return self.path / "results.csv"

    @property
    def selection(self) -> Path:
        return self.path / "selection.csv"

    @property
    def subscription(self) -> Path:
        return self.path / "subscription.json"

    @property
    def features(self) -> Path:
        """Stored features that memory has no room for, while the run continues."""
        return self.path / "features.bin"

    @property
    def shipped(self) -> Path:
        """Which version of a task in a hub is a stage of this run, or its end."""
        return self.path / "shipped.json"

    @property
    def last(self) -> Path:
        return self.path / "last.safetensors"

    @property
    def best(self) -> Path:
        return self.path / "best.safetensors"

    def owned(self) -> AbstractContextManager[None]:
        """Make the folder and own it; blocks of one thread may be nested.

        Raises TrainingError, with who the owner is, when another process or thread owns it.
        """
        return self._lock.held()

    def validate_unowned(self) -> None:
        """Raise TrainingError when another process or thread owns the folder."""
        self._lock.validate_unheld()

    def create(self, config: Mapping[str, Any]) -> None:
        """Make the folder and write args.yaml.

        Raises TrainingError when a run is there already: it is never overwritten.
        """
        self.validate_vacant()
        self.make()
        self._write(self.args, yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))

    def read_settings(self) -> tuple[TrainSettings, dict[str, str]]:
        """The settings in args.yaml, and which of them were chosen and why.

        Raises TrainingError when there is no run, and when the file is damaged.
        """
        self.validate_begun()
        try:
            args = read_yaml(self.args, TrainingError)
            return TrainSettings.from_dict(args["training"]), dict(args.get("chosen", {}))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise TrainingError(f"{self.args} is damaged ({error}); start the run again") from error

    @property
    def is_begun(self) -> bool:
        """Whether there is a run, or one was killed before it had its settings: then it begins again."""
        return self.args.exists() or (self.path / LOCK_FILE).exists()

    def write_shipped(self, sha256: str) -> None:
        """Write down the SHA-256 of the version of the task that is in a hub."""
        self._write(self.shipped, json.dumps({"sha256": sha256}, allow_nan=False) + "\n")

    def read_shipped(self) -> str | None:
        """That SHA-256, or None."""
        try:
            return str(json.loads(self.shipped.read_text(encoding="utf-8"))["sha256"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def run_of(self, sha256: str) -> RunFolder | None:
        """The run of which a version of a task is, in this folder or one next to it; None where it is not there."""
        try:
            runs = [self, *map(RunFolder, sorted(self.path.absolute().parent.iterdir()))]
        except OSError:
            return None
        return next((run for run in runs if run.read_shipped() == sha256), None)

    def validate_begun(self) -> None:
        """Raise TrainingError when there is no run to resume here, nor one that was killed before it had begun."""
        if not self.is_begun:
            raise TrainingError(f"there is no run to resume in {self.path}; start one there first")

    def make(self) -> None:
        """Make the folder if it is missing."""
        with clear_os_errors("create the run folder", self.path, TrainingError):
            self.path.mkdir(parents=True, exist_ok=True)

    def validate_vacant(self) -> None:
        """Raise TrainingError when a run is here already."""
        with clear_os_errors("look at the run folder", self.path, TrainingError):
            taken = self.last.exists()
        if taken:
            raise TrainingError(f"{self.path} holds a run already: resume it, or choose another folder")

    def clear(self) -> None:
        """Delete a run; the folder must be owned."""
        with clear_os_errors("clear the run folder", self.path, TrainingError):
            for path in self.path.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
                elif path.name not in (LOCK_FILE, OWNER_FILE):
                    path.unlink()

    def write_tables(self, history: Sequence[Epoch], selection: Sequence[Mapping[str, Any]]) -> None:
        """Write results.csv, and selection.csv if there are rows for it."""
        self._write(self.results, _table([asdict(row) for row in history]))
        if selection:
            self._write(self.selection, _table(selection))
        if self.on_epoch is not None:
            self.on_epoch(tuple(history))

    def write_subscription(self, subscription: Mapping[str, Any]) -> None:
        """Write subscription.json, if there is one."""
        if subscription:
            self._write(self.subscription, json.dumps(subscription, indent=1, allow_nan=False) + "\n")

    def write_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Write metrics.json."""
        self._write(self.path / "metrics.json", json.dumps(metrics, indent=1, allow_nan=False) + "\n")

    def drop_features(self) -> None:
        """Delete stored features: a finished run needs them no more."""
        with clear_os_errors("delete", self.features, TrainingError):
            for path in (self.features, self.features.with_suffix(".json")):
                path.unlink(missing_ok=True)

    def log(self, text: str) -> None:
        """Add one line, with the time in UTC, to log.txt."""
        time = datetime.now(UTC).isoformat(" ", timespec="seconds")
        path = self.path / "log.txt"
        line = f"{time} {text}\n".encode("utf-8", "backslashreplace")  # names of files need not be UTF-8
        with clear_os_errors("write", path, TrainingError), path.open("ab") as file:
            file.write(line)

    def _write(self, path: Path, text: str) -> None:
        write_atomically(path, text, TrainingError)


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(plain_row(dict(row)) for row in rows)
    return text.getvalue()
