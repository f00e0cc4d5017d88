"""Methods compared: every cell of an experiment, one after the other, each of which is kept as soon as it is done."""

from __future__ import annotations

import hashlib
import json
import platform
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml

from torchsnow.data import LoadedData
from torchsnow.errors import ExperimentError, TorchsnowError
from torchsnow.experiments.cell import run_cell
from torchsnow.experiments.costs import measure_costs
from torchsnow.experiments.material import Material
from torchsnow.experiments.plan import Cell, Experiment
from torchsnow.io.files import clear_os_errors, write_atomically
from torchsnow.io.lock import FolderLock
from torchsnow.plots import without_harm
from torchsnow.report import Results, report_page, write_csv
from torchsnow.report.sections import check_finished

Say = Callable[[str], None]
_ADVICE = "remove the file, and the cell is done again"


class Comparison:
    """The folder of one comparison: `experiment.yaml`, `data.json`, `cells/*.json`, `runs/`, and what is made of them.

    Finished cells are kept whatever happens afterwards, and an experiment may grow: more methods, data sets, sources
    and seeds under the same budget. Whoever writes there owns the folder meanwhile, by `owned`. Raises ExperimentError
    when the folder holds cells of another budget.
    """

    def __init__(self, experiment: Experiment, path: Path) -> None:
        self.experiment, self.path = experiment, path
        self._said: set[str] = set()
        self._lock = FolderLock(path, ExperimentError)
        self._refuse_other_budget()

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Make the folder and own it; blocks of one thread may be nested.

        Raises ExperimentError when another process or thread owns it, with who that is, and when it holds cells of
        another budget by now.
        """
        with self._lock.held():
            self._refuse_other_budget()
            yield

    def run(self, report: Callable[[Cell, int, int], None], say: Say, load: Callable[[str], LoadedData]) -> None:
        """Do the cells that are missing.

        `report` is called before each cell with it, the number of cells done, and that of all; `say` with what went
        wrong. A cell that fails is noted, and the others go on.
        """
        with self.owned():
            with clear_os_errors("create the folder", self.path, ExperimentError):
                (self.path / "cells").mkdir(exist_ok=True)
            text = yaml.safe_dump(self.experiment.to_dict(), sort_keys=False, allow_unicode=True)
            write_atomically(self.path / "experiment.yaml", text, ExperimentError)
            material = Material(self.experiment, lambda name: self._unchanged(name, load(name)))
            cells = self.experiment.cells()
            self.refuse_damaged()
            for done, cell in enumerate(cells):
                report(cell, done, len(cells))
                if self.read(cell) is None:
                    self._do(cell, material, say)

    def _unchanged(self, name: str, data: LoadedData) -> LoadedData:
        """A data set, if its images and labels are those that earlier cells had; otherwise raise ExperimentError."""
        path = self.path / "data.json"
        try:
            known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        except (OSError, ValueError) as error:
            raise ExperimentError(f"{path} is damaged or only half written: {_ADVICE}") from error
        if known.setdefault(name, data.fingerprint) != data.fingerprint:
            raise ExperimentError(
                f"the data {name} changed since cells of {self.path} were made: images, classes or contents differ; "
                "bring them back, or choose another folder"
            )
        write_atomically(path, json.dumps(known, indent=1, allow_nan=False) + "\n", ExperimentError)
        return data

    def _do(self, cell: Cell, material: Material, say: Say) -> None:
        runs = self.path / "runs" / _file_name(cell)
        try:
            content = run_cell(cell, self.experiment, material, runs, self._lrs(cell))
        except TorchsnowError as error:
            if str(error) not in self._said:  # one data set that is missing is missing for every cell
                say(f"{cell}: {error}")
                self._said.add(str(error))
            content = {**cell.to_dict(), "error": str(error)}
        self._write(cell, content)
        for weights in runs.glob("*/*.safetensors"):  # the tables stay; hundreds of networks would fill the disk
            weights.unlink()

    def _lrs(self, cell: Cell) -> list[float]:
        """All learning rates for the first seed; what it found, for the others."""
        first = Cell(cell.source, cell.data, cell.method, self.experiment.seeds[0], cell.variant)
        found = None if cell == first else self.read(first)
        return [found["lr"]] if found and "lr" in found else self.experiment.lrs(cell.method)

    def read(self, cell: Cell) -> dict[str, Any] | None:
        """A finished or failed cell; None where there is none yet. Raises ExperimentError for a damaged file."""
        path = self._path(cell)
        if not path.exists():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ExperimentError(f"{path} is damaged or only half written: {_ADVICE}") from error
        own = cell.to_dict()
        if not isinstance(content, dict) or {name: content.get(name) for name in own} != own:
            raise ExperimentError(f"{path} is not of the cell that its name says: {_ADVICE}")
        return content

    def refuse_damaged(self) -> None:
        """Raise ExperimentError, naming all of them, when there are cells that cannot be read."""
        problems = []
        for cell in self.experiment.cells():
            try:
                self.read(cell)
            except ExperimentError as error:
                problems.append(str(error))
        if problems:
            raise ExperimentError("\n".join(problems))

    def forget_failed(self) -> None:
        """Let the cells that failed be tried again."""
        with self.owned():
            for cell in self.experiment.cells():
                if "error" in (self.read(cell) or {}):
                    self._path(cell).unlink()
                    shutil.rmtree(self.path / "runs" / _file_name(cell), ignore_errors=True)

    def finish(self, say: Say) -> Results:
        """Measure the costs, and write results.json, results.csv and report.html of all cells that there are.

        Raises ExperimentError when not one is finished.
        """
        with self.owned():
            results = self._results(say)
            check_finished(results)
            results.save(self.path / "results.json")
            write_csv(results, self.path / "results.csv")
            with without_harm(say, "report.html"):
                report_page(results).save(self.path / "report.html")
        return results

    def _results(self, say: Say) -> Results:
        contents = [content for content in map(self.read, self.experiment.cells()) if content is not None]
        return Results.from_dict(
            {
                "schema": 1,
                "name": self.experiment.name,
                "made": datetime.now(UTC).isoformat(timespec="seconds"),
                "experiment": self.experiment.to_dict(),
                "versions": {name: version(name) for name in ("torchsnow", "torch", "timm")},
                "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {_device_name(self.experiment)}",
                "cells": [content for content in contents if "error" not in content],
                "failed": [content for content in contents if "error" in content],
                "costs": self._costs(contents, say),
            }
        )

    def _costs(self, contents: Sequence[Mapping[str, Any]], say: Say) -> list[dict[str, Any]]:
        """Measured once, and anew when there are new methods."""
        finished = [content for content in contents if "error" not in content]
        wanted = {(content["source"], content["method"]) for content in finished}
        path = self.path / "costs.json"
        kept = _read_list(path) if path.exists() else []
        if wanted <= {(cost["source"], cost["method"]) for cost in kept}:
            return kept
        costs: list[dict[str, Any]] = []
        for source in dict.fromkeys(source for source, _ in sorted(wanted)):
            methods = [method for method in self.experiment.methods if (source, method) in wanted]
            num_classes = max(content["num_classes"] for content in finished)
            costs += measure_costs(self.experiment, source, methods, num_classes, say)
        write_atomically(path, json.dumps(costs, indent=1, allow_nan=False) + "\n", ExperimentError)
        return costs

    def _path(self, cell: Cell) -> Path:
        return self.path / "cells" / f"{_file_name(cell)}.json"

    def _write(self, cell: Cell, content: Mapping[str, Any]) -> None:
        write_atomically(self._path(cell), json.dumps(content, indent=1, allow_nan=False) + "\n", ExperimentError)

    def _refuse_other_budget(self) -> None:
        file = self.path / "experiment.yaml"
        if not file.exists():
            return
        then, now = Experiment.load(file).budget(), self.experiment.budget()
        odd = [name for name in now if then[name] != now[name]]
        if odd:
            raise ExperimentError(
                f"{self.path} holds results with {odd[0]} = {then[odd[0]]}, not {now[odd[0]]}: results of different "
                "budgets cannot be compared; choose another folder"
            )


def _read_list(path: Path) -> list[dict[str, Any]]:
    """Costs that were measured before; none if the file is damaged, so that they are measured again."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return content if isinstance(content, list) and all(isinstance(row, dict) for row in content) else []


def _file_name(cell: Cell) -> str:
    """A readable name that no other cell has."""
    text = json.dumps(cell.to_dict(), sort_keys=True, allow_nan=False)
    short = re.sub(r"[^a-z0-9]+", "-", f"{cell.data} {cell.method} {cell.seed}".lower()).strip("-")[-60:]
    return f"{short}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def _device_name(experiment: Experiment) -> str:
    device = experiment.settings(experiment.data[0], 1e-3, 0).torch_device()
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
