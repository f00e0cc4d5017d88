"""Time and memory as they are measured everywhere: side by side, and in processes of their own."""

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
from pathlib import Path

import torch

from torchsnow.errors import ExperimentError

Step = Callable[[], object]
Progress = Callable[[], None]
"""Called after every step."""


def silent() -> None:
    """The progress that nobody watches."""


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
