"""Methods compared: every cell of an experiment, one after the other, each of which is kept as soon as it is done."""

from __future__ import annotations

import json
import platform
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml

from torchsnow.cluster import Call, cluster
from torchsnow.data import LoadedData, load_data
from torchsnow.errors import ExperimentError, TorchsnowError
from torchsnow.experiments.cell import run_cell
from torchsnow.experiments.costs import measure_costs
from torchsnow.experiments.plan import Experiment, PlannedCell
from torchsnow.experiments.resources import ResourceCache, result_key
from torchsnow.io.files import clear_os_errors, write_atomically
from torchsnow.io.lock import FolderLock
from torchsnow.plots import without_harm
from torchsnow.report.page import report_page, validate_finished
from torchsnow.report.results import SCHEMA, Results
from torchsnow.report.tables import write_cells

Say = Callable[[str], None]
Report = Callable[[PlannedCell, int, int], None]
_OF_COSTS = ("weights", "image_size", "batch_size", "device", "precision")  # settings of an experiment
_ADVICE = "remove the file, and the cell is done again"


class Comparison:
    """The folder of one comparison: `experiment.yaml`, `cells/*.json`, `runs/`, and what is made of them.

    Finished cells are kept whatever happens afterwards. Each has a key, a hash of the code, the data, the source and
    the settings that made it; cells with other keys are other cells, which may lie in the same folder. `load` turns a
    data set's name into LoadedData. `num_kept` is the number of this experiment's cells that are done, as far as `run`
    has looked. Whoever writes there owns the folder meanwhile, by `owned`.
    """

    def __init__(self, experiment: Experiment, path: Path, load: Callable[[str], LoadedData] = load_data) -> None:
        self.experiment, self.path, self.num_kept = experiment, path, 0
        self.resources = ResourceCache(experiment, load)
        self._contents: dict[tuple[str, str], str | None] = {}  # what is in data sets and sources
        self._said: set[str] = set()
        self._lock = FolderLock(path, ExperimentError)

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Make the folder and own it; blocks of one thread may be nested.

        Raises ExperimentError when another process or thread owns it, with who that is.
        """
        with self._lock.held():
            yield

    def run(self, report: Report, say: Say, shard: tuple[int, int] | None = None, ray: str | None = None) -> None:
        """Do the cells that are missing, or those of one shard, (number, count); or on the Ray cluster at an address.

        `report` is called before each cell with it, the number of cells done, and that of all; `say` with what went
        wrong. A cell that fails is noted, and the others continue. Several processes may do shards in one folder; what
        another one is at work on is left to it.
        """
        with nullcontext() if shard else self.owned():
            with clear_os_errors("create the folder", self.path, ExperimentError):
                (self.path / "cells").mkdir(parents=True, exist_ok=True)
            text = yaml.safe_dump(self.experiment.to_dict(), sort_keys=False, allow_unicode=True)
            write_atomically(self.path / "experiment.yaml", text, ExperimentError)
            cells = self.experiment.shard(*shard or (1, 1))
            self.validate_cells()
            self.num_kept = sum(self.read(cell) is not None for cell in cells)
            self._say_of_others(say)
            if ray is not None:
                self._spread(ray, report, say)
                return
            for done, cell in enumerate(cells):
                report(cell, done, len(cells))
                if self.read(cell) is None:
                    self.claim(cell, say)
                    self.num_kept += self.read(cell) is not None

    def _spread(self, address: str, report: Report, say: Say) -> None:
        """Each missing cell is a call on a cluster, after the one that searches for its learning rate."""
        cells = self.experiment.cells()
        missing = [cell for cell in cells if self.read(cell) is None]
        numbers = {str(cell): number for number, cell in enumerate(missing)}
        told = json.dumps(self.experiment.to_dict(), allow_nan=False)
        calls = []
        for number, cell in enumerate(missing):
            first = numbers.get(str(replace(cell, seed=self.experiment.seeds[0])), number)
            calls.append(Call((told, self.path, cell), after=first if first < number else None))
        with cluster(address) as machines:
            for ended, (number, lines) in enumerate(machines.spread(_claim, calls, self.experiment.device), 1):
                for line in [f"{missing[number]}: {lines}"] if isinstance(lines, TorchsnowError) else lines:
                    say(line)
                self.num_kept += self.read(missing[number]) is not None
                report(missing[number], len(cells) - len(missing) + ended, len(cells))

    def claim(self, cell: PlannedCell, say: Say) -> None:
        """Do a cell, and before it the one that searches for its learning rate, unless another process does."""
        first = replace(cell, seed=self.experiment.seeds[0])
        if cell != first and self.read(first) is None:
            self.claim(first, say)
            if self.read(first) is None:
                return
        with ExitStack() as claimed:
            try:
                claimed.enter_context(FolderLock(self._runs(cell), ExperimentError).held())
            except ExperimentError as error:
                say(f"{cell} is left to another process: {error}")
                return
            if self.read(cell) is None:  # looked at again: another process may have done it meanwhile
                self._do(cell, say)

    def missing(self) -> list[PlannedCell]:
        """The cells that are neither finished nor failed."""
        return [cell for cell in self.experiment.cells() if self.read(cell) is None]

    def _say_of_others(self, say: Say) -> None:
        others = {path.name for path in (self.path / "cells").glob("*.json")}
        others -= {self._path(cell).name for cell in self.experiment.cells()}
        if others:
            say(
                f"{len(others)} other cells in {self.path} were made by other code, data or settings, or for another "
                "experiment; they are left alone"
            )

    def key(self, cell: PlannedCell) -> str:
        """A hash of all that the cell's result depends on; of data and a source that cannot be had, by their names."""
        data = self._content("data", cell.data, lambda: self.resources.data(cell.data).fingerprint)
        source = self._content("source", cell.source, lambda: self.resources.source(cell.source).fingerprint)
        return result_key({"data": data, "source": source, **self.experiment.settings_of(cell)})

    def _content(self, kind: str, name: str, look: Callable[[], str]) -> str | None:
        if (kind, name) not in self._contents:
            try:
                self._contents[kind, name] = look()
            except TorchsnowError:  # the cells say it
                self._contents[kind, name] = None
        return self._contents[kind, name]

    def _do(self, cell: PlannedCell, say: Say) -> None:
        runs = self._runs(cell)
        try:
            content = run_cell(cell, self.experiment, self.resources, runs, self._lrs(cell))
        except TorchsnowError as error:
            if str(error) not in self._said:  # one data set that is missing is missing for every cell
                say(f"{cell}: {error}")
                self._said.add(str(error))
            content = {**cell.to_dict(), "error": str(error)}
        self._write(cell, content)
        for weights in runs.glob("*/*.safetensors"):  # the tables stay; hundreds of networks would fill the disk
            weights.unlink()

    def _lrs(self, cell: PlannedCell) -> list[float]:
        """All learning rates for the first seed; what it found, for the others."""
        first = replace(cell, seed=self.experiment.seeds[0])
        found = None if cell == first else self.read(first)
        return [found["lr"]] if found and "lr" in found else self.experiment.lrs(cell.method)

    def read(self, cell: PlannedCell) -> dict[str, Any] | None:
        """A finished or failed cell; None where there is none yet. Raises ExperimentError for a damaged file."""
        path = self._path(cell)
        if not path.exists():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ExperimentError(f"{path} is damaged or only half written: {_ADVICE}") from error
        own = {**cell.to_dict(), "key": self.key(cell)}
        if not isinstance(content, dict) or {name: content.get(name) for name in own} != own:
            raise ExperimentError(f"{path} is not of the cell that its name says: {_ADVICE}")
        return content

    def validate_cells(self) -> None:
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
                    shutil.rmtree(self._runs(cell), ignore_errors=True)

    def finish(self, say: Say) -> Results:
        """Measure the costs, and write results.json, results.csv and report.html of all cells that there are.

        Raises ExperimentError when not one is finished.
        """
        with self.owned():
            results = self._results(say)
            validate_finished(results)
            results.save(self.path / "results.json")
            write_cells(results, self.path / "results.csv")
            with without_harm(say, "report.html"):
                report_page(results).save(self.path / "report.html")
        return results

    def _results(self, say: Say) -> Results:
        contents = [content for content in map(self.read, self.experiment.cells()) if content is not None]
        device = self.experiment.torch_device()
        device_name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        return Results.from_dict(
            {
                "schema": SCHEMA,
                "name": self.experiment.name,
                "made": datetime.now(UTC).isoformat(timespec="seconds"),
                "experiment": self.experiment.to_dict(),
                "versions": {name: version(name) for name in ("torchsnow", "torch", "timm")},
                "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {device_name}",
                "cells": [content for content in contents if "error" not in content],
                "failed": [content for content in contents if "error" in content],
                "costs": self._costs(contents, say),
            }
        )

    def _costs(self, contents: Sequence[Mapping[str, Any]], say: Say) -> list[dict[str, Any]]:
        """Measured once, and again when there are new methods, other settings or another code."""
        finished = [content for content in contents if "error" not in content]
        wanted = sorted({(content["source"], content["method"]) for content in finished})
        num_classes = max((content["num_classes"] for content in finished), default=2)
        settings = {name: getattr(self.experiment, name) for name in _OF_COSTS}
        key = result_key({"wanted": wanted, "num_classes": num_classes, **settings})
        path = self.path / "costs.json"
        kept = _read_object(path)
        if kept.get("key") == key:
            return list(kept["costs"])
        costs: list[dict[str, Any]] = []
        for source in dict.fromkeys(source for source, _ in wanted):
            methods = [method for method in self.experiment.methods if (source, method) in wanted]
            costs += measure_costs(self.experiment, source, methods, num_classes, say)
        text = json.dumps({"key": key, "costs": costs}, indent=1, allow_nan=False) + "\n"
        write_atomically(path, text, ExperimentError)
        return costs

    def _name(self, cell: PlannedCell) -> str:
        """A readable name that no other cell has."""
        short = re.sub(r"[^a-z0-9]+", "-", f"{cell.data} {cell.method} {cell.seed}".lower()).strip("-")[-60:]
        return f"{short}-{self.key(cell)[:16]}"

    def _path(self, cell: PlannedCell) -> Path:
        return self.path / "cells" / f"{self._name(cell)}.json"

    def _runs(self, cell: PlannedCell) -> Path:
        return self.path / "runs" / self._name(cell)

    def _write(self, cell: PlannedCell, content: Mapping[str, Any]) -> None:
        text = json.dumps({"key": self.key(cell), **content}, indent=1, allow_nan=False) + "\n"
        write_atomically(self._path(cell), text, ExperimentError)


def _claim(told: str, path: Path, cell: PlannedCell) -> list[str]:
    """Do a cell in a process of a cluster; returns what is to be said."""
    lines: list[str] = []
    _comparison(told, path).claim(cell, lines.append)
    return lines


@lru_cache(1)
def _comparison(told: str, path: Path) -> Comparison:
    """Kept with its source and images for the next cell."""
    return Comparison(Experiment.from_dict(json.loads(told)), path)


def _read_object(path: Path) -> dict[str, Any]:
    """The values of a JSON file that can be made again; empty if it is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
