"""How a hub of many tasks behaves: times and memory, as docs/hub.md reports them.

    python benchmarks/hub_capacity.py FOLDER [NUM_TASKS]

makes a hub of copies of one small task in FOLDER, which must be new, and prints what it measured.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from torchsnow import Delta, DeltaSpec, Framing, Hub, load_source, make_task

CYCLES = 1000


def main(folder: Path, num_tasks: int) -> None:
    source = load_source("test_resnet", weights="random")
    delta = Delta(source, DeltaSpec(3)).freeze(source).eval()
    task = make_task(source, delta, "task-0000", ("cat", "dog", "fox"), Framing(64))
    hub = Hub.create(folder, source)
    adding = [seconds(lambda n=n: hub.add(replace(task, name=f"task-{n:04}"))) for n in range(num_tasks)]
    size_kb = hub.infos()["task-0000"].size_bytes / 1e3
    index_kb = hub.folder.index_file.stat().st_size / 1e3
    print(f"{num_tasks} tasks of {size_kb:.0f} kB; index.json {index_kb:.0f} kB")
    print(f"add: first 20 {1e3 * median(adding[:20]):.1f} ms, last 20 {1e3 * median(adding[-20:]):.1f} ms")
    index = hub.folder.read_index()
    report("replace the index", lambda: hub.folder.write_index(index))
    report("open and list", lambda: Hub.open(folder).names())
    report("list again, nothing changed", hub.names)
    images = torch.zeros(1, 3, 64, 64)
    names = hub.names()[:8]
    report("predict with 8 tasks, the first time", lambda: hub.predict(images, names), 1)
    report("predict with 8 tasks", lambda: hub.predict(images, names))
    print(f"verify: {seconds(hub.verify):.1f} s")
    bounded = Hub.open(folder, source, cache_bytes=20_000_000)
    before = resident_set_bytes()
    print(f"load all, 20 MB resident: {seconds(lambda: load_each(bounded)):.1f} s")
    kept = len(bounded.cache.names())
    print(f"  {kept} tasks stay, {bounded.cache.size_bytes / 1e6:.1f} MB; process {grown_mb(before):+.1f} MB")
    cycle(hub, task, CYCLES // 10)  # what the allocator keeps for good
    before = resident_set_bytes()
    for done in range(CYCLES // 5, CYCLES + 1, CYCLES // 5):
        cycle(hub, task, CYCLES // 5)
        print(f"after {done} cycles of add, predict, replace, remove: process {grown_mb(before):+.1f} MB")
    start = time.perf_counter()
    cleanup = hub.gc()
    print(f"gc: {cleanup.num_files} files, {cleanup.size_bytes / 1e6:.1f} MB, {time.perf_counter() - start:.2f} s")


def load_each(hub: Hub) -> None:
    """One after the other, as predictions of single tasks would."""
    for name in hub.names():
        hub.task(name)


def cycle(hub: Hub, task: Any, times: int) -> None:
    """Tasks that come, answer, are replaced and go."""
    images = torch.zeros(1, 3, 64, 64)
    for number in range(times):
        name = f"guest-{number % 50:02}"
        hub.add(replace(task, name=name))
        hub.predict(images, [name])
        hub.add(replace(task, name=name, image_size=32), replace=True)
        hub.predict(images, [name])
        hub.remove(name)


def report(what: str, action: Callable[[], Any], times: int = 20) -> None:
    """Print the median time of an action."""
    print(f"{what}: {1e3 * median(seconds(action) for _ in range(times)):.2f} ms")


def seconds(action: Callable[[], Any]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def resident_set_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def grown_mb(before: int) -> float:
    return (resident_set_bytes() - before) / 1e6


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1000)
