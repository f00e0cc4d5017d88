"""Loads a server on this machine and checks what it answers.

    python benchmarks/serve_load.py mixed --seconds 60
    python benchmarks/serve_load.py speed --seconds 12 --rounds 3
    python benchmarks/serve_load.py overload --seconds 60

Servers run in processes of their own on the first core, the load comes from the second; all with one thread.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from torchsnow.data import eval_transform, read_image
from torchsnow.delta import Delta, DeltaSpec
from torchsnow.hub import Hub
from torchsnow.methods import PRESETS
from torchsnow.model import SnowModel
from torchsnow.source import Framing, Source, load_source
from torchsnow.task_file import Task, content_hash, encode_task, make_task

SERVER = [sys.executable, "-c", "from torchsnow.cli import main; main()", "serve"]
NUM_CLASSES = 10
TOLERANCE = 1e-3  # of probabilities: batches of other sizes round differently


def sample_task(source: Source, name: str, seed: int, image_size: int) -> Task:
    """A task with weights of its own, as small as those of a trained one: of the default's shape, and each fourth a
    narrow copy of the source."""
    torch.manual_seed(seed)
    spec = PRESETS["default"].spec_for(source, NUM_CLASSES) if seed % 4 else DeltaSpec(NUM_CLASSES)
    delta = Delta(source, spec).freeze(source).eval()
    return make_task(source, delta, name, [f"class {i}" for i in range(NUM_CLASSES)], Framing(image_size))


def pictures(number: int, size: int) -> list[bytes]:
    """JPEG files of smooth noise, `size` pixels wide and high."""
    generator, files = np.random.default_rng(0), []
    for _ in range(number):
        small = Image.fromarray(generator.integers(0, 255, (8, 8, 3), dtype=np.uint8))
        file = io.BytesIO()
        small.resize((size, size), Image.Resampling.BICUBIC).save(file, "JPEG")
        files.append(file.getvalue())
    return files


def form(image: bytes, tasks: list[str]) -> bytes:
    """A whole POST /predict for one image."""
    parts = b"".join(f'--b\r\ncontent-disposition: form-data; name="task"\r\n\r\n{n}\r\n'.encode() for n in tasks)
    body = b'--b\r\ncontent-disposition: form-data; name="image"; filename="x"\r\n\r\n' + image + b"\r\n" + parts
    body += b"--b--\r\n"
    head = "POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: multipart/form-data; boundary=b\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


class Connection:
    """One connection that is kept while the server keeps it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.writer: asyncio.StreamWriter | None = None

    async def send(self, request: bytes) -> tuple[int, Any]:
        """The status and the JSON of a reply."""
        if self.writer is None:
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port, limit=2**22)
        self.writer.write(request)
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.split("content-length: ")[1].split("\r\n")[0])
        body = await self.reader.readexactly(length)
        if "connection: close" in head:
            self.close()
        return int(head.split()[1]), json.loads(body)

    def close(self) -> None:
        """End the connection."""
        if self.writer is not None:
            self.writer.close()
            self.writer = None


class Process:
    """A server in a process of its own, pinned to the first core; ready when the block begins."""

    def __init__(self, command: list[str], port: int) -> None:
        self.command, self.port = command, port
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process

    def __enter__(self) -> Process:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        cores = sorted(os.sched_getaffinity(0))
        self.process = subprocess.Popen(
            self.command,
            env=environment,
            stderr=self.log,
            preexec_fn=lambda: os.sched_setaffinity(0, {int(os.environ.get("SERVER_CORE", cores[0]))}),
        )
        end = time.monotonic() + 180
        while time.monotonic() < end and self.process.poll() is None:
            try:
                if (
                    asyncio.run(Connection(self.port).send(b"GET /v2/health/ready HTTP/1.1\r\nhost: x\r\n\r\n"))[0]
                    == 200
                ):
                    return self
            except (OSError, asyncio.IncompleteReadError):
                time.sleep(0.2)
        self.log.seek(0)
        raise RuntimeError(f"the server does not start: {self.log.read()[-2000:]}")

    def __exit__(self, *given: object) -> None:
        self.process.terminate()
        self.process.wait(30)
        self.log.close()

    def memory_mb(self) -> float:
        """Resident memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024


def make_hub(folder: Path, args: argparse.Namespace, num_tasks: int) -> Hub:
    """A hub of tasks named t0, t1 and so on."""
    hub = Hub.create(folder / "hub", load_source(args.source, "random"))
    for number in range(num_tasks):
        hub.add(sample_task(hub.source, f"t{number}", number, args.image_size))
    return hub


def command(hub: Hub, port: int, *words: str) -> list[str]:
    """The command line of a server."""
    return [*SERVER, "--hub", str(hub.folder.path), "--port", str(port), *words]


async def closed_loop(port: int, seconds: float, workers: int, request: Callable[[], bytes]) -> tuple[int, float]:
    """Requests answered 200 and the seconds that passed, with so many clients that ask one after the other."""
    answered, end, start = 0, time.monotonic() + seconds, time.monotonic()

    async def work() -> None:
        nonlocal answered
        connection = Connection(port)
        while time.monotonic() < end:
            status, reply = await connection.send(request())
            assert status in (200, 429), (status, reply)
            answered += status == 200
            await asyncio.sleep(0.5 * (status == 429))
        connection.close()

    await asyncio.gather(*(work() for _ in range(workers)))
    return answered, time.monotonic() - start


def mixed(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """16 tasks asked for at random, while every second a task is added, one replaced and one removed."""
    hub = make_hub(folder, args, 16)
    images = pictures(8, 80)
    pixels = torch.stack(
        [
            eval_transform(hub.source.input_config, Framing(args.image_size))(read_image(io.BytesIO(image)))
            for image in images
        ]
    )
    references: dict[tuple[str, str], list[list[float]]] = {}

    def note(task: Task, sha256: str) -> None:
        with torch.no_grad():
            references[task.name, sha256] = SnowModel(hub.source, task.delta)(pixels).softmax(1).tolist()

    for name, entry in hub.infos().items():
        note(hub.task(name), entry.sha256)
    counts = {"requests": 0, "answers": 0, "failed": 0, "wrong": 0, "changes": 0}
    steady, versions = [f"t{number}" for number in range(16)], set()
    extra: list[str] = []
    late_s: list[float] = []

    async def ask(port: int, end: float) -> None:
        connection, chance = Connection(port), random.Random()
        while time.monotonic() < end:
            row, names = chance.randrange(len(images)), chance.sample(steady, chance.randint(1, 4))
            status, reply = await connection.send(form(images[row], names))
            counts["requests"] += 1
            if status != 200:
                counts["failed"] += 1
                print(status, reply, file=sys.stderr)
                continue
            answers = reply["images"][0]["answers"]
            counts["wrong"] += sorted(names) != sorted(answer["task"] for answer in answers)
            for answer in answers:
                versions.add((answer["task"], answer["sha256"]))
                expected = references[answer["task"], answer["sha256"]][row]
                given = [answer["probabilities"][f"class {i}"] for i in range(NUM_CLASSES)]
                counts["answers"] += 1
                counts["wrong"] += max(abs(a - b) for a, b in zip(given, expected, strict=True)) > TOLERANCE
        connection.close()

    def change(second: int) -> None:
        """One task added, one of the sixteen replaced, one of the added removed."""
        for name, replace in ((f"new{second}", False), (f"t{second % 16}", True)):
            task = sample_task(hub.source, name, 1000 + second, args.image_size)
            note(task, content_hash(encode_task(task)))
            hub.add(task, replace=replace)
        extra.append(f"new{second}")
        if len(extra) > 3:
            hub.remove(extra.pop(0))
        counts["changes"] += 3

    async def until_it_answers(port: int, name: str) -> float:
        start_s, connection = time.monotonic(), Connection(port)
        while (await connection.send(form(images[0], [name])))[0] != 200:
            await asyncio.sleep(0.05)
        connection.close()
        return time.monotonic() - start_s

    async def main(port: int) -> None:
        end = time.monotonic() + args.seconds
        askers = [asyncio.ensure_future(ask(port, end)) for _ in range(args.clients)]
        second = 0
        while time.monotonic() < end:
            next_s = time.monotonic() + 1
            await asyncio.to_thread(change, second)
            late_s.append(await until_it_answers(port, f"new{second}"))
            second += 1
            await asyncio.sleep(max(0, next_s - time.monotonic()))
        await asyncio.gather(*askers)

    with Process(command(hub, args.port), args.port) as server:
        asyncio.run(main(args.port))
        code = server.process.poll()
    return {
        **counts,
        "versions_seen": len(versions),
        "seconds_until_a_new_task_answers": {"median": statistics.median(late_s), "largest": max(late_s)},
        "server_died": code is not None,
    }


def speed(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Images per second: the server, the bare hub, and a plain server with a network per task, in turns."""
    hub = make_hub(folder, args, 8)
    names, images = hub.names(), pictures(16, args.image_size)
    everything = [form(image, []) for image in images]
    single = [form(image, [names[i % len(names)]]) for i, image in enumerate(images)]
    plain = [sys.executable, str(Path(__file__).with_name("plain_server.py")), args.source, str(args.port + 1)]
    workers, words = 2 * args.batch_size, ("--batch-size", str(args.batch_size), "--deadline-s", "120")
    found: dict[str, list[float]] = {}
    with Process(command(hub, args.port, *words), args.port), Process(plain, args.port + 1):
        for _ in range(args.rounds):
            rounds: list[tuple[str, Callable[[], Awaitable[tuple[int, float]]]]] = [
                (
                    "served, one task",
                    lambda: closed_loop(args.port, args.seconds, workers, lambda: random.choice(single)),
                ),
                (
                    "served, 8 tasks",
                    lambda: closed_loop(args.port, args.seconds, workers, lambda: random.choice(everything)),
                ),
                (
                    "plain, 8 networks",
                    lambda: closed_loop(args.port + 1, args.seconds, 2, lambda: random.choice(everything)),
                ),
            ]
            for what, measure in rounds:
                number, seconds = asyncio.run(measure())
                found.setdefault(what, []).append(number / seconds)
            for what, own in (("bare, one task", 1), ("bare, 8 tasks", 8)):
                found.setdefault(what, []).append(bare(hub, args, own))
            print({what: round(values[-1], 2) for what, values in found.items()}, file=sys.stderr)
    middle = {what: statistics.median(values) for what, values in found.items()}
    return {
        "images_per_s": found,
        "served / bare, one task": middle["served, one task"] / middle["bare, one task"],
        "served / bare, 8 tasks": middle["served, 8 tasks"] / middle["bare, 8 tasks"],
        "served / plain, 8 tasks": middle["served, 8 tasks"] / middle["plain, 8 networks"],
    }


def bare(hub: Hub, args: argparse.Namespace, tasks_per_image: int) -> float:
    """Images per second of the hub without a server, on the servers' core."""
    script = (
        "import sys, time, torch; from torchsnow.hub import Hub; from torchsnow.hub.live import LiveHub\n"
        "torch.set_num_threads(1); live = LiveHub(Hub.open(sys.argv[1])); batch, size, own = map(int, sys.argv[2:5])\n"
        "images, names = torch.randn(batch, 3, size, size), sorted(live.now.entries)\n"
        "asked = [[names[(i + j) % len(names)] for j in range(own)] for i in range(batch)]\n"
        "live.route(images, asked); start, number = time.monotonic(), 0\n"
        "while time.monotonic() < start + float(sys.argv[5]): live.route(images, asked); number += batch\n"
        "print(number / (time.monotonic() - start))"
    )
    given = [str(hub.folder.path), args.batch_size, args.image_size, tasks_per_image, args.seconds]
    cores = sorted(os.sched_getaffinity(0))
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, given)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: os.sched_setaffinity(0, {int(os.environ.get("SERVER_CORE", cores[0]))}),
    )
    return float(done.stdout)


def overload(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Three times as many requests as can be answered, and what becomes of them."""
    hub = make_hub(folder, args, 4)
    requests = [form(image, [f"t{i % 4}"]) for i, image in enumerate(pictures(16, args.image_size))]
    deadline_s, statuses, latencies = 2.0, {}, []

    async def one(port: int) -> None:
        connection, start_s = Connection(port), time.monotonic()
        try:
            status, reply = await asyncio.wait_for(connection.send(random.choice(requests)), 30)
            what = f"{status} {reply['code']}" if status != 200 else "200"
        except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
            status, what = 0, type(error).__name__
        statuses[what] = statuses.get(what, 0) + 1
        if status == 200:
            latencies.append(time.monotonic() - start_s)
        connection.close()

    async def flood(port: int, per_s: float) -> list[float]:
        start_s, sent, memory, running = time.monotonic(), 0, [], set()
        while time.monotonic() < start_s + args.seconds:
            while sent < per_s * (time.monotonic() - start_s):
                running.add(task := asyncio.ensure_future(one(port)))
                task.add_done_callback(running.discard)
                sent += 1
            memory.append(server.memory_mb())
            await asyncio.sleep(0.01)
        stop_s = time.monotonic()
        meanwhile.append(len(latencies))
        while (await Connection(port).send(requests[0]))[0] != 200:
            await asyncio.sleep(0.1)
        recovery.append(time.monotonic() - stop_s)
        await asyncio.gather(*running)
        return memory

    recovery: list[float] = []
    meanwhile: list[int] = []
    words = ("--batch-size", str(args.batch_size), "--deadline-s", str(deadline_s), "--queue", "64")
    with Process(command(hub, args.port, *words), args.port) as server:
        number, seconds = asyncio.run(
            closed_loop(args.port, 10, args.batch_size * 3 // 2, lambda: random.choice(requests))
        )
        capacity = number / seconds
        before = server.memory_mb()
        memory = asyncio.run(flood(args.port, 3 * capacity))
        after = server.memory_mb()
    ordered = sorted(latencies)
    return {
        "capacity_per_s": capacity,
        "answered_per_s_meanwhile": meanwhile[0] / args.seconds,
        "statuses": statuses,
        "deadline_s": deadline_s,
        "latency_s": {
            "median": statistics.median(ordered),
            "p99": ordered[int(0.99 * len(ordered))],
            "max": ordered[-1],
        },
        "memory_mb": {"before": before, "largest": max(memory), "after": after},
        "first_answer_after_s": recovery[0],
    }


def main() -> None:
    """Run one scenario and print its figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario", choices=["mixed", "speed", "overload"])
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--source", default="resnet50")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--clients", type=int, default=8, help="that ask one after the other, in `mixed`")
    parser.add_argument("--port", type=int, default=8765)
    args = parser.parse_args()
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[-1]})
    with tempfile.TemporaryDirectory() as folder:
        found = {"mixed": mixed, "speed": speed, "overload": overload}[args.scenario](args, Path(folder))
    print(json.dumps({"scenario": args.scenario, **vars(args), **found}, indent=1))


if __name__ == "__main__":
    main()
