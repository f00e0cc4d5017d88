"""What is measured, and how: times side by side, peak memory in a process of its own."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from torchsnow.errors import ExperimentError
from torchsnow.source import Precision, Source, load_source

Step = Callable[[], object]
Progress = Callable[[], None]
"""Called after every step."""


def silent() -> None:
    """The progress that nobody watches."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Batches of square images through networks on one source; picklable, for processes of their own.

    `backend`, a name in `BACKENDS`, is for serving, `precision`, that of the source pass, for training; `device` is
    "cpu" or "cuda".
    """

    source: str
    weights: str
    image_size: int
    batch_size: int
    device: str
    backend: str = "eager"
    precision: Precision = "fp32"
    num_classes: int = 10

    def load_source(self) -> Source:
        """A source of its own at every call, on the CPU. Raises SourceError."""
        return load_source(self.source, self.weights, self.precision)

    def images(self) -> Tensor:
        """A random batch, on the device."""
        return torch.randn(self.batch_size, 3, self.image_size, self.image_size, device=self.device)


def median_times_s(steps: Mapping[str, Step], rounds: int, progress: Progress = silent) -> dict[str, float]:
    """Median seconds of every step, taken step by step within each round; a round before the first is not counted.

    A step must have finished its work when it returns. Raises ExperimentError for fewer rounds than 1.
    """
    if rounds < 1:
        raise ExperimentError(f"rounds is {rounds}; expected a whole number of 1 or more")
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds + 1):
        for name, step in steps.items():
            start_s = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - start_s)
            progress()
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def wait_for(device: str) -> None:
    """Return when all that was started on a device is done."""
    if device == "cuda":
        torch.cuda.synchronize()


def peak_bytes(device: str, prepare: Callable[[], Step], *, whole: bool) -> int:
    """Peak memory of a step, in a process of its own.

    It counts from before `prepare`, which makes the step, or, unless `whole`, from after it. On the CPU it is
    resident memory; on CUDA what torch's allocator gave out. `prepare` must be picklable. Raises what `prepare` and
    the step raise, and ExperimentError when the process dies, as it does when memory runs out.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        try:
            return executor.submit(_peak_bytes, device, prepare, whole, torch.get_num_threads()).result()
        except BrokenProcessPool as error:
            raise ExperimentError("the process that measures its memory was killed; memory may be short") from error


def _peak_bytes(device: str, prepare: Callable[[], Step], whole: bool, num_threads: int) -> int:
    torch.set_num_threads(num_threads)
    before = _held_bytes(device)
    step = prepare()
    if not whole:
        _forget_peak(device)
        before = _held_bytes(device)
    step()
    return max(0, (torch.cuda.max_memory_allocated() if device == "cuda" else _status_bytes("VmHWM")) - before)


def _held_bytes(device: str) -> int:
    return torch.cuda.memory_allocated() if device == "cuda" else _status_bytes("VmRSS")


def _forget_peak(device: str) -> None:
    """Give back what is free, and let the peak count from here."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return
    with suppress(AttributeError):  # a C library without it keeps free memory resident, and the step seems cheaper
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):  # where it is forbidden, the peak of `prepare` counts too
        Path("/proc/self/clear_refs").write_text("5")


def _status_bytes(field: str) -> int:
    """A line of the process's status, of this program alone: `getrusage` would start from its parent's peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
