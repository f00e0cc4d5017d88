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
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from torchsnow.hub.live import LiveHub
from torchsnow.serving.run import bind, make_server
from torchsnow.serving.service import Service
from torchsnow.serving.settings import ServeSettings

TOKEN = "a-token-for-these-tests"
BEARER = {"authorization": f"Bearer {TOKEN}"}


@dataclass(frozen=True)
class Reply:
    """What a server said."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


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
            reply = connection.getresponse()
            return Reply(reply.status, {k.lower(): v for k, v in reply.getheaders()}, reply.read())
        finally:
            connection.close()

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
