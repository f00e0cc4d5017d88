"""Long runs against a server and its hub, in pieces: each continues where the last one, finished or stopped, left off.

    python benchmarks/endurance.py fuzz --until 20000     # damaged requests: no 5xx, health answers within a second
    python benchmarks/endurance.py kills --until 200      # train, resume, hub verbs and server killed at random moments
    python benchmarks/endurance.py changes --until 100000 # answers checked while three tasks a second come and go
    python benchmarks/endurance.py steady --until 10000   # memory, files and threads of one server

What was found is in the file of `--state`, which is read first. Exit code 1 if anything was found that should not be.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from serve_load import Connection, Process, command, form, make_hub, mixed, pictures, sample_task
from torchsnow.hub import Hub
from torchsnow.source import load_source

TORCHSNOW = [sys.executable, "-c", "from torchsnow.cli import main; main()"]
HEALTH = b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n"
TOKEN = "a-token-of-the-endurance-runs"
IMAGES = pictures(4, 40)
Found = dict[str, Any]


class State:
    """What was found so far, by scenario; written after every piece."""

    def __init__(self, path: Path, scenario: str) -> None:
        self.path, self._all = path, json.loads(path.read_text()) if path.exists() else {}
        self.found: Found = self._all.setdefault(scenario, {"done": 0, "bad": []})

    def add(self, number: int, bad: list[Any], **figures: float) -> None:
        """A piece is done: numbers of figures are summed, those named `most_` are the largest."""
        self.found["done"] += number
        self.found["bad"] += bad
        for name, value in figures.items():
            former = self.found.get(name, 0)
            self.found[name] = max(former, value) if name.startswith("most_") else former + value
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self._all, indent=1) + "\n")
        temporary.replace(self.path)
        print(json.dumps({**self.found, "bad": len(self.found["bad"])}), flush=True)


def requests(chance: random.Random) -> bytes:
    """A whole request that is right, or nearly: of any route, its body damaged at a place or two."""
    image = chance.choice(IMAGES)
    body = form(image, chance.choice([[], ["t0"], ["t1", "nobody"]]))
    head, _, content = body.partition(b"\r\n\r\n")
    data = json.dumps({"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": ["aGk="]}]}).encode()
    kind = chance.randrange(6)
    paths = ("/v2/models/t0/infer", "/v2/repository/index", "/admin/tasks", "/tasks", "/metrics", "/v2/models/%2e%2e/x")
    if kind:
        content = chance.choice((data, image, b'{"images": ["' + b'\\"' * 5000, b"PK" + image, b""))
        head = f"{chance.choice(('POST', 'GET', 'BREW'))} {chance.choice(paths)} HTTP/1.1\r\nhost: 127.0.0.1".encode()
        head += f"\r\ncontent-type: {chance.choice(('application/json', 'image/png', 'x'))}".encode()
    lines = [line for line in head.split(b"\r\n") if not line.startswith(b"content-length")]
    changed = bytearray(content)
    for _ in range(chance.choice((0, 1, 2, 8)) if changed else 0):
        at = chance.randrange(len(changed))
        changed[at : at + chance.randrange(4)] = chance.randbytes(chance.randrange(4))
    lines += [b"content-length: %d" % len(changed), b"authorization: bearer " + TOKEN.encode(), b"connection: close"]
    return b"\r\n".join(lines) + b"\r\n\r\n" + bytes(changed)


def fuzz(args: argparse.Namespace, state: State, folder: Path) -> None:
    """Pieces of 500 requests to one server; the same piece has the same requests."""
    hub, worst_s = make_hub(folder, args, 2), [0.0]

    async def look() -> None:
        while True:
            start_s = time.monotonic()
            status, _ = await Connection(args.port).send(HEALTH)
            assert status == 200
            worst_s.append(time.monotonic() - start_s)
            await asyncio.sleep(0.05)

    async def one(request: bytes) -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", args.port)
        writer.write(request)
        reply = await asyncio.wait_for(reader.read(), 30)
        writer.close()
        return int(reply.split()[1])

    async def piece(number: int) -> None:
        chance, looking = random.Random(number), asyncio.ensure_future(look())
        given = [requests(chance) for _ in range(500)]
        said: list[Any] = []
        for start in range(0, len(given), 10):
            said += await asyncio.gather(*map(one, given[start : start + 10]), return_exceptions=True)
        if looking.done():
            looking.result()
        looking.cancel()
        bad = [[number, i, str(own)] for i, own in enumerate(said) if not isinstance(own, int) or own >= 500]
        bad += [[number, "health", max(worst_s)]] if max(worst_s) > 1 else []
        counts = Counter(str(own) for own in said)
        state.add(len(given), bad, most_health_s=max(worst_s), **counts)
        worst_s[:] = [0.0]

    os.environ["TORCHSNOW_TOKEN"] = TOKEN
    with Process(command(hub, args.port), args.port) as server:
        while state.found["done"] < args.until:
            asyncio.run(piece(state.found["done"] // 500))
            assert server.process.poll() is None, "the server died"


def kills(args: argparse.Namespace, state: State, folder: Path) -> None:
    """One kill a piece; what is there afterwards must be whole."""
    photos = folder / "photos"
    for row, colour in enumerate(("red", "green", "blue")):
        (photos / colour).mkdir(parents=True)
        for number in range(12):
            pixel = tuple(200 if channel == row else number * 9 for channel in range(3))
            Image.new("RGB", (32, 32), pixel).save(photos / colour / f"{number}.png")
    hub = make_hub(folder, args, 3)
    hub.add(sample_task(hub.source, "t0", 9, args.image_size), replace=True)
    tiny = ["--source", args.source, "--weights", "random", "--image-size", str(args.image_size), "--epochs", "6"]
    at = ["--hub", str(hub.folder.path)]
    while state.found["done"] < args.until:
        number = state.found["done"]
        chance, run = random.Random(number), ["--task", f"n{number // 4}", "--out", str(folder / f"run{number // 4}")]
        train = ["train", str(photos), *run, *tiny[4:], *at]
        verbs = [["gc"], ["rollback", "t0"], ["remove", "t1"]]
        words = chance.choice((train, [*train, "--resume"], ["hub", *chance.choice(verbs), *at]))
        words = chance.choice((words, words, words, ["serve", "--port", str(args.port), *at]))
        before = set(Hub.open(hub.folder.path).names())
        process = subprocess.Popen([*TORCHSNOW, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(chance.uniform(0, args.longest_s))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        code = process.wait()
        problems = [problem.message for problem in hub.verify() if problem.task is not None]  # strays harm nobody
        lost = before - set(hub.names()) - {"t1"}
        bad = [[number, words[0], *problems, *lost]] if problems or lost else []
        state.add(1, bad, killed=code == -signal.SIGKILL, **{words[0]: 1})


def changes(args: argparse.Namespace, state: State, folder: Path) -> None:
    """Pieces of a minute of `serve_load.py mixed`."""
    while state.found["done"] < args.until:
        with tempfile.TemporaryDirectory(dir=folder) as own:
            found = mixed(args, Path(own))
        bad = [found] if found["wrong"] or found["failed"] or found["server_died"] else []
        state.add(found["requests"], bad, answers=found["answers"], changes=found["changes"])


def steady(args: argparse.Namespace, state: State, folder: Path) -> None:
    """One server, a tenth as many changes as requests, in one go: its figures after a tenth, and at the end."""
    hub, image = make_hub(folder, args, 4), pictures(1, 40)[0]
    figures: list[dict[str, float]] = []

    async def ask(number: int) -> None:
        connection = Connection(args.port)
        for i in range(number):
            status, reply = await connection.send(form(image, [f"t{i % 4}"]))
            assert status == 200, reply
        connection.close()

    with Process(command(hub, args.port), args.port) as server:
        process = Path(f"/proc/{server.process.pid}")
        for piece in range(10):
            for i in range(args.until // 100):
                asyncio.run(ask(10))
                task = sample_task(hub.source, "t3", 1000 * piece + i, args.image_size)
                hub.add(task, replace=True)
            files, threads = len(list((process / "fd").iterdir())), len(list((process / "task").iterdir()))
            figures.append({"memory_mb": server.memory_mb(), "files": files, "threads": threads})
            print(figures[-1], flush=True)
            hub.gc()
    first, last = figures[0], figures[-1]
    grown = [name for name in first if last[name] > 1.1 * first[name] + 2]
    state.add(args.until, [[grown, figures]] if grown else [], **{f"most_{name}": last[name] for name in last})


def main() -> int:
    """Run one scenario until so many are done."""
    scenarios: dict[str, Callable[[argparse.Namespace, State, Path], None]] = {
        "fuzz": fuzz,
        "kills": kills,
        "changes": changes,
        "steady": steady,
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario", choices=scenarios)
    parser.add_argument("--until", type=int, required=True, help="requests or kills in all")
    parser.add_argument("--state", type=Path, default=Path("endurance.json"))
    parser.add_argument("--source", default="test_resnet")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--longest-s", type=float, default=15, help="until a kill")
    parser.add_argument("--seconds", type=float, default=60, help="of one piece of `changes`")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--port", type=int, default=8766)
    args = parser.parse_args()
    load_source(args.source, "random")
    state = State(args.state, args.scenario)
    with tempfile.TemporaryDirectory() as folder:
        scenarios[args.scenario](args, state, Path(folder))
    return 1 if state.found["bad"] else 0


if __name__ == "__main__":
    sys.exit(main())
