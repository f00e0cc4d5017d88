"""What many tasks and many requests cost: a model, a simulation, and this machine, as docs/scale.md reports them.

    python benchmarks/scale.py measure FOLDER [--source bundled --image-size 128 --tasks 100 --resident 40]
    python benchmarks/scale.py table COSTS.json

`measure` makes a hub of copies of one task in FOLDER, which must be new; fits the costs of a pass, a task, an answer
and a load on calls that hit the cache or miss it; then answers a trace of requests with Zipf popularity, and prints how
far model and simulation are from what that took. `table` prints the model for larger hubs.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
from scipy.optimize import brentq, nnls

BATCH = 8
TASKS_PER_IMAGE = 2
EXPONENT = 1.0  # of Zipf's law


@dataclass(frozen=True)
class Costs:
    """Seconds of one core: a pass over one image in a batch of `BATCH`, a task in a batch, an answer, a load from disk.

    `task_bytes` is what a loaded task takes, `entry_bytes` what the index has of it.
    """

    pass_s: float
    task_s: float
    answer_s: float
    load_s: float
    task_bytes: float
    entry_bytes: float


def popularity(num_tasks: int, exponent: float = EXPONENT) -> np.ndarray:
    """The share of requests for each task, the most popular first."""
    shares = 1 / np.arange(1, num_tasks + 1) ** exponent
    return np.asarray(shares / shares.sum())


def hit_rate(shares: np.ndarray, room: int) -> float:
    """Of a cache that forgets what was used longest ago, with room for so many tasks (Che, Tung and Wang, 2002)."""
    if room >= len(shares):
        return 1.0
    characteristic = brentq(lambda t: (1 - np.exp(-shares * t)).sum() - room, 1e-9, 1e15)
    return float((shares * (1 - np.exp(-shares * characteristic))).sum())


def modelled_s(costs: Costs, shares: np.ndarray, room: int) -> float:
    """Seconds per image, by formula."""
    asked = BATCH * TASKS_PER_IMAGE
    distinct = float((1 - (1 - shares) ** asked).sum())
    missed = asked * (1 - hit_rate(shares, room))
    return costs.pass_s + TASKS_PER_IMAGE * costs.answer_s + (distinct * costs.task_s + missed * costs.load_s) / BATCH


def trace(shares: np.ndarray, num_batches: int, seed: int = 0) -> list[list[list[int]]]:
    """Batches of images, each with the tasks that it asks for."""
    generator = np.random.default_rng(seed)
    size = (num_batches, BATCH, TASKS_PER_IMAGE)
    return [[sorted(set(image)) for image in batch] for batch in generator.choice(len(shares), size, p=shares).tolist()]


def simulated_s(
    costs: Costs, batches: Sequence[Sequence[Sequence[int]]], room: int, warm_up: int
) -> tuple[float, float]:
    """Seconds per image, and the share of tasks in batches that are in memory, request by request; the first `warm_up`
    batches fill the cache, and do not count."""
    cache: OrderedDict[int, None] = OrderedDict()
    total_s, looked_up, missed = 0.0, 0, 0
    for number, batch in enumerate(batches):
        if number == warm_up:
            total_s, looked_up, missed = 0.0, 0, 0
        asked = list(dict.fromkeys(task for image in batch for task in image))
        answers = sum(map(len, batch))
        total_s += costs.pass_s * len(batch) + costs.task_s * len(asked) + costs.answer_s * answers
        for task in asked:
            looked_up += 1
            if task not in cache:
                missed += 1
                total_s += costs.load_s
            cache[task] = None
            cache.move_to_end(task)
            if len(cache) > room:
                cache.popitem(last=False)
    return total_s / sum(map(len, batches[warm_up:])), 1 - missed / looked_up


def measure(folder: Path, source_name: str, image_size: int, num_tasks: int, room: int, num_batches: int) -> None:
    import torch

    from torchsnow import Delta, DeltaSpec, Framing, Hub, load_source, make_task
    from torchsnow.hub.cache import size_of
    from torchsnow.hub.live import LiveHub
    from torchsnow.methods import make_method

    torch.set_num_threads(1)
    source = load_source(source_name, "random" if source_name.startswith("test_") else "pretrained")
    spec: DeltaSpec = make_method("snow", source, 10, "default", 0).model.delta.spec  # type: ignore[union-attr]
    delta = Delta(source, spec).freeze(source).eval()
    task = make_task(source, delta, "task-0000", [f"class {i}" for i in range(10)], Framing(image_size))
    hub = Hub.create(folder, source)
    names = [f"task-{number:04}" for number in range(num_tasks)]
    for name in names:
        hub.add(replace(task, name=name))
    task_bytes = size_of(task)
    images = torch.randn(BATCH, 3, image_size, image_size)

    def seconds(live: LiveHub, batch: Sequence[Sequence[int]]) -> float:
        start_s = time.perf_counter()
        live.route(images, [[names[number] for number in image] for image in batch])
        return time.perf_counter() - start_s

    live = LiveHub(hub)
    settings = [(d, k) for d in (1, 2, 4, 8, 16) for k in (1, 2) if k <= d <= BATCH * k]
    kinds = [[[(i * k + j) % d for j in range(k)] for i in range(BATCH)] for d, k in settings]
    rows = [[BATCH, len({task for image in kind for task in image}), sum(map(len, kind))] for kind in kinds]
    rounds = [[seconds(live, kind) for kind in kinds] for _ in range(16)][1:]  # the first one loads the tasks
    times = np.median(np.array(rounds), axis=0)
    pass_s, task_s, answer_s = nnls(np.array(rows, float), times)[0].tolist()
    cold_s = median(seconds(LiveHub(hub), kinds[-1]) for _ in range(5))
    load_s = (cold_s - float(times[-1])) / rows[-1][1]
    entry_bytes = hub.folder.index_file.stat().st_size / num_tasks
    costs = Costs(pass_s, task_s, answer_s, load_s, task_bytes, entry_bytes)

    shares = popularity(num_tasks)
    batches = trace(shares, num_batches)
    live = LiveHub(hub, cache_bytes=room * task_bytes)
    warm_up = num_batches // 2
    measured_s = sum([seconds(live, batch) for batch in batches][warm_up:]) / (BATCH * (num_batches - warm_up))
    simulated, in_memory = simulated_s(costs, batches, room, warm_up)
    modelled = modelled_s(costs, shares, room)
    print(json.dumps({
        "source": source_name, "image_size": image_size, "tasks": num_tasks, "room": room, "batches": num_batches,
        **asdict(costs), "measured_s": measured_s, "simulated_s": simulated, "modelled_s": modelled,
        "in_memory": in_memory, "simulated_over_measured": simulated / measured_s,
        "modelled_over_measured": modelled / measured_s,
    }, indent=1))  # fmt: skip


def table(costs: Costs, memory_bytes: float = 32e9) -> None:
    """One line for each size of a hub: what a machine with so much memory for tasks does."""
    room = int(memory_bytes / costs.task_bytes)
    print("| tasks | tasks, GB | index, MB | in memory | ms an image | images/s of a core | cores for 100 images/s |")
    print("|---|---|---|---|---|---|---|")
    for num_tasks in (1_000, 10_000, 100_000, 1_000_000):
        shares = popularity(num_tasks)
        each_s = modelled_s(costs, shares, room)
        sizes = f"{num_tasks * costs.task_bytes / 1e9:,.1f} | {num_tasks * costs.entry_bytes / 1e6:,.1f}"
        speed = f"{1e3 * each_s:.1f} | {1 / each_s:.1f} | {100 * each_s:,.1f}"
        print(f"| {num_tasks:,} | {sizes} | {hit_rate(shares, room):.1%} | {speed} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    measuring = verbs.add_parser("measure")
    measuring.add_argument("folder", type=Path)
    measuring.add_argument("--source", default="bundled")
    measuring.add_argument("--image-size", type=int, default=128)
    measuring.add_argument("--tasks", type=int, default=100)
    measuring.add_argument("--resident", type=int, default=40)
    measuring.add_argument("--batches", type=int, default=80)
    tabling = verbs.add_parser("table")
    tabling.add_argument("costs", type=Path)
    given = parser.parse_args()
    if given.verb == "measure":
        measure(given.folder, given.source, given.image_size, given.tasks, given.resident, given.batches)
    else:
        values = json.loads(given.costs.read_text())
        table(Costs(**{name: values[name] for name in Costs.__dataclass_fields__}))
