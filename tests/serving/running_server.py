"""A server of this process, in a thread, and a plain way to call it."""

from __future__ import annotations

import http.client
import io
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import jsonschema
import numpy as np
from PIL import Image
from starlette.routing import compile_path

from sample_tasks import sample_task
from torchsnow.hub import Hub
from torchsnow.hub.live import LiveHub
from torchsnow.serving.app import routes
from torchsnow.serving.guard import OPEN_PATHS
from torchsnow.serving.openapi import describe
from torchsnow.serving.run import _server, make_server
from torchsnow.serving.service import Service
from torchsnow.serving.settings import ServeSettings
from torchsnow.serving.siblings import Place
from torchsnow.serving.starting import Starting
from torchsnow.serving.workers import bind
from torchsnow.source import Source

TOKEN = "a-token-for-these-tests"
BEARER = {"authorization": f"Bearer {TOKEN}"}


def make_hub(path: Path, source: Source) -> Hub:
    """A hub with the tasks "a", "b" and "c", of 2, 3 and 4 classes."""
    hub = Hub.create(path, source)
    for seed, name in enumerate("abc"):
        task = sample_task(source, name, seed=seed, num_classes=seed + 2)
        hub.add(replace(task, metrics={"test": {"accuracy": 0.75}}, unknown_above=1e-3 if name == "b" else None))
    return hub


@dataclass(frozen=True)
class Reply:
    """What a server said."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def json_or_none(self) -> Any:
        """For replies of any kind: an empty object for what is none."""
        found = self.json if self.headers.get("content-type") == "application/json" and self.body else {}
        return found if isinstance(found, dict) else {}


@dataclass(frozen=True)
class Running:
    """A server that runs, and its service."""

    port: int
    service: Service

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def call(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, dict(headers or {}))
            given = connection.getresponse()
            reply = Reply(given.status, {k.lower(): v for k, v in given.getheaders()}, given.read())
        finally:
            connection.close()
        if self.service is not None:
            check_documented(self.service, method, path, reply)
        return reply

    def predict(self, images: Sequence[bytes], tasks: Sequence[str] = (), **headers: str) -> Reply:
        body, kind = form([("image", image, "x.png") for image in images] + [("task", t.encode(), None) for t in tasks])
        return self.call("POST", "/predict", body, {"content-type": kind, **headers})

    def socket(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def wait_until(self, holds: Any, seconds: float = 10.0) -> None:
        end = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < end, "it never came to hold"
            time.sleep(0.02)


def check_documented(service: Service, method: str, path: str, reply: Reply) -> None:
    """Every reply of every test is what the server's document says: its status, its content type, its shape."""
    document = document_of(service)
    path = unquote(path.partition("?")[0])
    found = [own for own in document["paths"] if compile_path(own)[0].match(path)]
    operation = document["paths"][found[0]].get(method.lower()) if found else None
    if operation is None or reply.json_or_none.get("code") in ("method_not_allowed", "not_found"):
        return
    if reply.status == 403:  # of admin routes and what looks like one
        return
    said = operation["responses"][str(reply.status)]["content"]
    kind = reply.headers["content-type"].partition(";")[0]
    if kind == "application/octet-stream":  # the binary extension of the protocol
        return
    schema = {**said[kind]["schema"], "components": document["components"]}
    if kind == "application/json":
        jsonschema.validate(reply.json, schema, jsonschema.Draft202012Validator)


@lru_cache(8)
def document_of(service: Service) -> Any:
    return describe(routes(service), service.settings.token is not None, OPEN_PATHS)


@contextmanager
def running(live: LiveHub, **settings: Any) -> Iterator[Running]:
    """A server that answers until the block ends."""
    service = Service(live, ServeSettings(**settings))
    server = make_server(service)
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            yield Running(port, service)
        finally:
            server.should_exit = True
            thread.join(30)
    assert not thread.is_alive()


@contextmanager
def starting(
    load: Any, place: Place | None = None, listener: socket.socket | None = None, **settings: Any
) -> Iterator[tuple[Running, Starting]]:
    """A server whose hub is loaded as the test says; one of several workers, on their port, if that is given."""
    given = ServeSettings(**settings)

    def give_up() -> None:
        server.should_exit = True

    app = Starting(load, given, give_up, place)
    server = _server(app, given, app)
    with listener or bind("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not server.started:
                time.sleep(0.01)
            yield Running(listener.getsockname()[1], None), app  # type: ignore[arg-type]
        finally:
            server.should_exit = True
            thread.join(30)
    assert not thread.is_alive()


def form(parts: Sequence[tuple[str, bytes, str | None]]) -> tuple[bytes, str]:
    """A multipart body of (field, content, file name) and its content type."""
    body = b""
    for field, content, file in parts:
        head = f'content-disposition: form-data; name="{field}"' + (f'; filename="{file}"' if file else "")
        body += f"--limit\r\n{head}\r\n\r\n".encode() + content + b"\r\n"
    return body + b"--limit--\r\n", "multipart/form-data; boundary=limit"


def picture(seed: int = 0, size: tuple[int, int] = (40, 50), mode: str = "RGB", kind: str = "PNG") -> bytes:
    """A noisy picture in a file."""
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind)
    return file.getvalue()
