"""Long runs against a server and its hub, in pieces: each continues where the last one, finished or stopped, left off.

    python benchmarks/endurance.py fuzz --until 20000     # damaged requests: no 5xx, health answers within a second
    python benchmarks/endurance.py kills --until 200      # train, resume, hub verbs and server killed at random moments
    python benchmarks/endurance.py changes --until 100000 # answers checked while tasks come, change and go
    python benchmarks/endurance.py steady --until 10000   # memory, files and threads of one server

What was found is in the file of `--state`, which is read first. Exit code 1 if anything was found that should not be.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from hostile_bodies import FORMS, JSON
from serve_load import Connection, Process, command, form, make_hub, mixed, pictures, sample_task
from torchsnow.source import load_source
from torchsnow.task_file import encode_task

TORCHSNOW = [sys.executable, "-c", "from torchsnow.cli import main; main()"]
HEALTH = b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n"
TOKEN = "a-token-of-the-endurance-runs"
IMAGES = pictures(2, 40)
MAX_KEPT_BYTES = 2**16
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
        said = {name: len(value) if name in ("bad", "kept") else value for name, value in self.found.items()}
        print(json.dumps(said), flush=True)


def request(line: str, kind: str, content: bytes) -> bytes:
    """A whole request; its length is put in when it is sent."""
    return f"{line} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: {kind}\r\n\r\n".encode() + content


def first_requests() -> list[bytes]:
    """Where the noise begins: good requests of all kinds, and bodies that were once slow to read."""
    found = [form(IMAGES[0], ["t0"]), form(IMAGES[1], ["t1", "nobody"])]
    picture = Image.open(io.BytesIO(IMAGES[0]))
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "JPEG2000", "AVIF"):
        file = io.BytesIO()
        picture.save(file, kind, **({"progressive": True} if kind == "JPEG" else {}))
        found.append(request("POST /predict?task=t0&explain=true", "image/x", file.getvalue()))
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(IMAGES[0]).decode()]}
    asked = json.dumps({"inputs": [tensor], "outputs": [{"name": "label"}]}).encode()
    found.append(request("POST /v2/models/t0/infer", "application/json", asked))
    found += [request("POST /predict", "application/json", make(2**14)) for make in JSON.values()]
    found += [request("POST /predict", "multipart/form-data; boundary=b", make(2**14)) for make in FORMS.values()]
    paths = ("/v2/repository/index", "/admin/tasks", "/admin/tasks/t9/rollback", "/v2/repository/models/t1/load")
    found += [request(f"POST {path}", "x", b"{}") for path in paths]
    return found + [request(f"GET {path}", "x", b"") for path in ("/tasks", "/metrics", "/v2/models/%2e%2e", "/docs")]


def changed(chance: random.Random, corpus: list[bytes]) -> bytes:
    """One of the requests, damaged at a place or two: bytes replaced, taken away, put in, repeated a few or very many
    times, or taken from another request."""
    head, _, body = chance.choice(corpus).partition(b"\r\n\r\n")
    if chance.random() < 0.1:
        head = chance.choice(corpus).partition(b"\r\n\r\n")[0]
    for _ in range(chance.choice((0, 1, 1, 2, 8))):
        of_head = chance.random() < 0.15 or not body
        given = head if of_head else body
        at, size = chance.randrange(len(given) or 1), chance.choice((0, 1, 1, 2, 4, 16, 64))
        other = chance.choice(corpus).partition(b"\r\n\r\n")[2]
        start = chance.randrange(len(other) or 1)
        put = chance.choice((chance.randbytes(size), b"\xff" * size, bytes(size), other[start : start + size]))
        repeated = given[at : at + size] * chance.choice((2, 16, 20_000 // (1 + size)))
        given = given[:at] + chance.choice((put, repeated, b"")) + given[at + chance.choice((0, size)) :]
        head, body = (given, body) if of_head else (head, given)
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith((b"content-length", b"connection"))]
    lines += [b"authorization: bearer " + TOKEN.encode(), b"connection: close"]
    lines.append(b"content-length: %d" % (len(body) + chance.choice((0, 0, 0, 0, 0, -1))))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def said(reply: bytes) -> tuple[int, str]:
    """The worst status of a reply and of those behind it, and what the first says without what is in numbers and
    quotes. Raises ValueError for an error that is not in JSON."""
    head, _, body = reply.partition(b"\r\n\r\n")
    statuses = [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", reply)]
    words = head.split(b"\r\n")[0].decode()
    if statuses[0] >= 400:
        (length,) = re.findall(rb"content-length: (\d+)", head.lower())
        words = str(statuses[0]) + re.sub(r"'.*'|\d+", "", json.loads(body[: int(length)])["error"])[:80]
    return max(statuses), words


def fuzz(args: argparse.Namespace, state: State, folder: Path) -> None:
    """Pieces of 500 requests to one server. A request that is answered in words that no other was, is one of those
    that the next ones are made from; whatever is found is kept with its request."""
    hub, found = make_hub(folder, args, 2), state.found
    kept: dict[str, str] = found.setdefault("kept", {})

    async def look(worst_s: list[float]) -> None:
        while True:
            start_s = time.monotonic()
            status, _ = await Connection(args.port).send(HEALTH)
            assert status == 200, status
            worst_s.append(time.monotonic() - start_s)
            await asyncio.sleep(0.05)

    async def one(given: bytes) -> tuple[int, str]:
        reader, writer = await asyncio.open_connection("127.0.0.1", args.port)
        try:
            writer.write(given)
            return said(await asyncio.wait_for(reader.read(), 30))
        except ConnectionError:  # refused before all was sent, and the reply was lost: the next will tell
            return 400, "reset"
        finally:
            writer.close()

    async def piece(number: int) -> None:
        corpus = [*first_requests(), *map(base64.b64decode, kept.values())]
        chance, worst_s, counts = random.Random(number), [0.0], Counter[str]()
        looking, bad = asyncio.ensure_future(look(worst_s)), []
        for _ in range(50):
            given = [changed(chance, corpus) for _ in range(10)]
            for own, reply in zip(given, await asyncio.gather(*map(one, given), return_exceptions=True), strict=True):
                status, words = reply if isinstance(reply, tuple) else (0, repr(reply))
                counts[str(status)] += 1
                text = base64.b64encode(own).decode()
                if not status or status >= 500:
                    bad.append([number, words, text])
                elif words not in kept and words != "reset" and len(own) < MAX_KEPT_BYTES:
                    kept[words] = text
        if looking.done() or max(worst_s) > 1:
            bad.append([number, "health", repr(looking.exception()) if looking.done() else max(worst_s)])
        looking.cancel()
        state.add(500, bad, most_health_s=max(worst_s), **counts)

    os.environ["TORCHSNOW_TOKEN"] = TOKEN
    with Process(command(hub, args.port), args.port) as server:
        while found["done"] < args.until:
            asyncio.run(piece(found["done"] // 500))
            assert server.process.poll() is None, "the server died"


def upload(port: int, contents: list[bytes], process: subprocess.Popen[bytes]) -> None:
    """Replace a task through a server, again and again, until it ends."""
    head = f"POST /admin/tasks?replace=true HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: bearer {TOKEN}\r\n"

    async def send() -> None:
        connection = Connection(port)
        for content in contents:
            await connection.send(f"{head}content-length: {len(content)}\r\n\r\n".encode() + content)

    while process.poll() is None:
        try:
            asyncio.run(send())
        except (OSError, EOFError):
            time.sleep(0.1)


def kills(args: argparse.Namespace, state: State, folder: Path) -> None:
    """One kill after the other, each at a moment of the time that its command takes; what is there then must be whole.
    Commands that ended before their kill are counted too, and do not count as kills."""
    photos = folder / "photos"
    for row, colour in enumerate(("red", "green", "blue")):
        (photos / colour).mkdir(parents=True)
        for number in range(12):
            pixel = tuple(200 if channel == row else number * 9 for channel in range(3))
            Image.new("RGB", (32, 32), pixel).save(photos / colour / f"{number}.png")
    hub, lasts_s = make_hub(folder, args, 2), {}
    hub.add(sample_task(hub.source, "kept", 7, args.image_size))
    contents = [encode_task(sample_task(hub.source, "t0", seed, args.image_size)) for seed in (8, 9)]
    own, finished = ["--hub", str(hub.folder.path)], {"kept"}
    os.environ["TORCHSNOW_TOKEN"] = TOKEN
    while state.found["done"] < args.until:
        number = int(state.found.get("runs", 0))
        for name in ("t0", "t1"):  # for every command to have something to do
            hub.add(sample_task(hub.source, name, number, args.image_size), replace=name in hub.names())
        chance, name = random.Random(number), f"n{number // 6}"
        run = folder / f"run-{name}"
        train = ["train", str(photos), "--task", name, "--out", str(run), "--epochs", "6", *own]
        train += ["--image-size", str(args.image_size), *(["--resume"] if run.exists() else [])]
        verbs = [["hub", "gc"], ["hub", "rollback", "t0"], ["hub", "remove", "t1"], ["serve", "--port", str(args.port)]]
        words = train if chance.random() < 0.4 and name not in finished else [*chance.choice(verbs), *own]
        what = " ".join(words[: 2 if words[0] == "hub" else 1]) + (" --resume" if "--resume" in words else "")
        start_s = time.monotonic()
        process = subprocess.Popen([*TORCHSNOW, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        if words[0] == "serve":
            threading.Thread(target=upload, args=(args.port, contents, process)).start()
        try:
            _, errors = process.communicate(timeout=chance.uniform(0.3, 1.05) * lasts_s.get(what, args.longest_s))
            lasts_s[what] = time.monotonic() - start_s
        except subprocess.TimeoutExpired:
            process.kill()
            _, errors = process.communicate()
        code = process.returncode
        finished |= {name} if words[0] == "train" and code == 0 else set()
        problems = [problem.message for problem in hub.verify() if problem.task is not None]  # strays harm nobody
        problems += [f"{lost} is gone" for lost in (finished | {"t0"}) - set(hub.names())]
        if code not in (0, -signal.SIGKILL):
            problems.append(f"exit code {code}: {errors.decode()[-500:]}")
        bad = [[number, what, *problems]] if problems else []
        state.add(int(code == -signal.SIGKILL), bad, runs=1, **{what: 1})


def changes(args: argparse.Namespace, state: State, folder: Path) -> None:
    """Pieces of a minute of `serve_load.py mixed`."""
    while state.found["done"] < args.until:
        with tempfile.TemporaryDirectory(dir=folder) as own:
            found = mixed(args, Path(own))
        bad = [found] if found["wrong"] or found["failed"] or found["server_died"] else []
        state.add(found["requests"], bad, answers=found["answers"], changes=found["changes"], seconds=args.seconds)


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
    parser.add_argument(
        "--longest-s", type=float, default=15, help="until a kill, at most, of what does not end before"
    )
    parser.add_argument("--seconds", type=float, default=60, help="of one piece of `changes`")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--port", type=int, default=8766)
    args = parser.parse_args()
    load_source(args.source, "random")
    state = State(args.state, args.scenario)
    with tempfile.TemporaryDirectory() as folder:
        try:
            scenarios[args.scenario](args, state, Path(folder))
        except Exception as error:  # whatever it was, a later piece must not hide it
            traceback.print_exc()
            state.add(0, [repr(error)])
    return 1 if state.found["bad"] else 0


if __name__ == "__main__":
    sys.exit(main())
