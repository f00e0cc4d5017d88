"""Who may do what, and what happens to those who send too much, too slowly, or things that are odd."""

from __future__ import annotations

import ast
import hmac
import http.client
import importlib.util
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from running_server import BEARER, TOKEN, Running, form, picture, running

import torchsnow
from sample_tasks import sample_task
from torchsnow.errors import ServingError
from torchsnow.hub import Hub
from torchsnow.hub.live import LiveHub
from torchsnow.serving import run
from torchsnow.serving.settings import ServeSettings
from torchsnow.task_file import encode_task

ADMIN = [
    ("POST", "/admin/tasks"),
    ("DELETE", "/admin/tasks/a"),
    ("POST", "/v2/repository/models/a/load"),
    ("POST", "/v2/repository/models/a/unload"),
    ("POST", "/admin/tasks/a/rollback"),
]
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")


@pytest.mark.parametrize(("method", "path"), ADMIN)
def test_without_a_token_there_are_no_admin_routes(steady: Running, method: str, path: str) -> None:
    assert steady.call(method, path, b"").status in (404, 405)
    assert not any("admin" in path for path in steady.call("GET", "/openapi.json").json["paths"])


@pytest.mark.parametrize(
    "path", ["/predict", "/tasks", "/metrics", "/docs", "/openapi.json", "/v2", "/nope", "/admin/tasks"]
)
def test_with_a_token_nothing_answers_without_it(sealed: Running, path: str) -> None:
    for given in ({}, {"authorization": "Bearer wrong"}, {"authorization": TOKEN}, {"authorization": f"Basic {TOKEN}"}):
        reply = sealed.call("POST" if path in ("/predict", "/admin/tasks") else "GET", path, None, given)
        assert (reply.status, reply.json["code"]) == (401, "unauthorized")
        assert reply.headers["www-authenticate"] == "Bearer"


def test_with_a_token_the_page_and_the_health_routes_answer_all(sealed: Running) -> None:
    for path in ("/", "/v2/health/live", "/v2/health/ready"):
        assert sealed.call("GET", path).status == 200
    assert sealed.predict([picture()], **BEARER).status == 200


def test_tokens_are_compared_in_constant_time(sealed: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def noting(given: bytes, expected: bytes) -> bool:
        compared.append((given, expected))
        return False

    monkeypatch.setattr(hmac, "compare_digest", noting)
    assert sealed.call("GET", "/tasks", None, BEARER).status == 401
    assert compared == [(TOKEN.encode(), TOKEN.encode())]


@pytest.mark.parametrize("token", ["short", "x" * 15, "with a space in its middle", "ümlaute-are-not-ascii"])
def test_weak_tokens_are_refused(token: str) -> None:
    with pytest.raises(ServingError, match="openssl rand"):
        ServeSettings(token=token)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("path", sorted({path for _, path in ADMIN}))
def test_admin_routes_look_at_host_and_origin_for_every_method(sealed: Running, method: str, path: str) -> None:
    for odd in (
        {"host": "evil.example"},
        {"host": f"evil.example:{sealed.port}"},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"host": f"127.0.0.1:{sealed.port}@evil.example"},
        {"host": ""},
    ):
        reply = sealed.call(method, path, b"", {**BEARER, **odd})
        assert reply.status == 403, (odd, reply.body)


@pytest.mark.parametrize(
    "path", ["/admin%2Ftasks/a", "/%61dmin/tasks/a", "/admin/tasks/%61", "/v2/repository%2fmodels/a/load"]
)
def test_admin_routes_are_guarded_however_they_are_spelled(sealed: Running, path: str) -> None:
    assert sealed.call("POST", path, b"", {**BEARER, "origin": "https://evil.example"}).status == 403


def test_admin_routes_want_a_host(sealed: Running) -> None:
    for hosts in (b"", b"host: 127.0.0.1\r\nhost: evil.example\r\n"):
        with sealed.socket() as client:
            head = b"POST /v2/repository/models/a/load HTTP/1.0\r\nauthorization: Bearer " + TOKEN.encode() + b"\r\n"
            client.sendall(head + hosts + b"\r\n")
            assert client.recv(4096).split()[1] in (b"400", b"403")


def test_admin_routes_answer_their_own_site(sealed: Running) -> None:
    for good in ({}, {"host": "localhost"}, {"origin": f"http://127.0.0.1:{sealed.port}"}):
        assert sealed.call("POST", "/v2/repository/models/a/load", b"", {**BEARER, **good}).status == 200


def test_too_many_bytes_are_refused_before_they_are_read(steady: Running) -> None:
    with steady.socket() as client:
        client.sendall(b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999\r\n\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_too_many_bytes_in_chunks_are_refused_while_they_come(steady: Running) -> None:
    with steady.socket() as client:
        client.sendall(b"POST /predict HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(17):  # the cap is 16 of them, and the end of the body never comes
            client.sendall(b"10000\r\n" + bytes(2**16) + b"\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 413 ")
    steady.wait_until(lambda: steady.service.bodies._held_bytes == 0)


def test_a_body_of_two_lengths_ends_the_connection(steady: Running) -> None:
    """What follows would be a request for one reader, and a part of the body for another."""
    head = b"POST /tasks HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
    with steady.socket() as client:
        client.sendall(head + b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n")
        said = b"".join(iter(lambda: client.recv(4096), b""))
    assert said.startswith(b"HTTP/1.1 400 ")
    assert said.count(b"HTTP/1.1 ") == 1
    assert b"bad_http" in said


def test_all_bodies_together_are_bounded(hub: Hub) -> None:
    with running(LiveHub(hub), max_held_bytes=100_000, body_timeout_s=5) as server:
        with server.socket() as slow:
            slow.sendall(b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 90000\r\n\r\n" + bytes(80_000))
            server.wait_until(lambda: server.service.bodies._held_bytes == 80_000)
            reply = server.predict([bytes(50_000)])
            assert (reply.status, reply.json["code"]) == (429, "busy")
            assert reply.headers["retry-after"] == "1"
        server.wait_until(lambda: server.service.bodies._held_bytes == 0)
        assert server.predict([picture()]).status == 200


def test_images_parts_and_names_are_counted(steady: Running) -> None:
    assert steady.predict([picture()] * 5).status == 413
    body = json.dumps({"images": ["aGk="] * 5})
    assert steady.call("POST", "/predict", body, {"content-type": "application/json"}).status == 413
    assert steady.predict([picture()], ["a"] * 300).status == 413
    body = json.dumps({"images": ["aGk="], "tasks": ["a"] * 300})
    assert steady.call("POST", "/predict", body, {"content-type": "application/json"}).status == 400
    content, kind = form([("image", picture(), "x")])
    many_headers = content.replace(b"\r\n\r\n", b"\r\n" + b"x: y\r\n" * 50 + b"\r\n", 1)
    assert steady.call("POST", "/predict", many_headers, {"content-type": kind}).status == 400


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 500_000,
        b'{"a":' * 100_000,
        b'{"images":' + b"[" * 20 + b"]" * 20 + b"}",
        b'"",' * 300_000,
        b"1," * 200_000,
        b'{"images": ["' + b'\\"' * 19_000 + b"a" * 62_000,
    ],
)
@pytest.mark.parametrize("path", ["/predict", "/v2/models/a/infer"])
def test_json_is_bounded_in_depth_and_parts(steady: Running, body: bytes, path: str) -> None:
    start_s = time.monotonic()
    reply = steady.call("POST", path, body, {"content-type": "application/json"})
    assert (reply.status, reply.json["code"]) == (400, "bad_json") or reply.status == 413
    assert time.monotonic() - start_s < 5


def test_addresses_of_images_are_never_fetched(steady: Running) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.2)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/x.png"
        tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [url]}
        content, kind = form([("image", url.encode(), None)])
        for path, body, content_type in (
            ("/predict", json.dumps({"images": [url]}), "application/json"),
            ("/v2/models/a/infer", json.dumps({"inputs": [tensor]}), "application/json"),
            ("/predict", content, kind),
            ("/predict", form([("image", url.encode(), "x.png")])[0], kind),
        ):
            assert steady.call("POST", path, body, {"content-type": content_type}).status in (400, 415, 422)
        with pytest.raises(TimeoutError):
            listener.accept()


def test_compressed_bodies_are_refused(steady: Running) -> None:
    reply = steady.call("POST", "/predict", b"x", {"content-type": "application/json", "content-encoding": "gzip"})
    assert reply.status == 415


ODD_NAMES = [
    "..",
    "../a",
    "a/../b",
    "..\\a",
    "%2e%2e",
    "%252e%252e",
    "%2e%2e%2fa",
    "a%00",
    "%00",
    "/etc/passwd",
    "%2Fetc%2Fpasswd",
    "C:\\a",
    "a.safetensors",
    "A",
    "a" * 300,
    "%ff",
    "~",
    "$HOME",
    "a;b",
    ".lock",
]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_are_no_tasks(sealed: Running, name: str) -> None:
    hub = sealed.service.live.hub
    path = name.replace("\\", "%5C")
    before = {file: file.read_bytes() for file in hub.folder.path.rglob("*") if file.is_file()}
    for method, start in (
        ("GET", "/v2/models/{}"),
        ("POST", "/v2/models/{}/infer"),
        ("DELETE", "/admin/tasks/{}"),
        ("POST", "/v2/repository/models/{}/load"),
    ):
        assert sealed.call(method, start.format(path), b"", BEARER).status in (400, 404, 405)
    assert sealed.predict([picture()], [name], **BEARER).status in (400, 404)
    assert {file: file.read_bytes() for file in hub.folder.path.rglob("*") if file.is_file()} == before


def test_a_task_that_is_a_symbolic_link_is_not_followed(hub: Hub, tmp_path: Path) -> None:
    folder = hub.folder.path / "tasks" / "a"
    file = next(folder.iterdir())
    outside = tmp_path / "outside.safetensors"
    file.rename(outside)
    file.symlink_to(outside)
    (hub.folder.path / "tasks" / "b").rename(tmp_path / "b")
    (hub.folder.path / "tasks" / "b").symlink_to(tmp_path / "b")
    with running(LiveHub(Hub.open(hub.folder.path, hub.source))) as server:
        assert server.call("GET", "/tasks").json["unusable"] == ["a", "b"]
        assert server.predict([picture()], ["a"]).status == 409
        assert server.predict([picture()], ["c"]).status == 200


def test_a_hard_link_is_read_strictly_and_never_written_through(hub: Hub, tmp_path: Path) -> None:
    outside = tmp_path / "outside.safetensors"
    outside.write_bytes(encode_task(sample_task(hub.source, "a", seed=9)))
    kept = outside.read_bytes()
    file = next((hub.folder.path / "tasks" / "a").iterdir())
    file.unlink()
    os.link(outside, file)  # another content than the index says
    index = hub.folder.path / "index.json"
    os.link(index, tmp_path / "index.json")
    index_before = index.read_bytes()
    with running(LiveHub(Hub.open(hub.folder.path, hub.source)), token=TOKEN) as server:
        assert server.predict([picture()], ["a"], **BEARER).status == 409
        new = encode_task(sample_task(hub.source, "a", seed=3))
        assert server.call("POST", "/admin/tasks?replace=true", new, BEARER).status == 201
        assert server.predict([picture()], ["a"], **BEARER).status == 200
        assert server.call("DELETE", "/admin/tasks/a", None, BEARER).status == 200
    assert outside.read_bytes() == kept
    assert (tmp_path / "index.json").read_bytes() == index_before


def test_errors_hold_no_paths_and_no_traces(guarded: Running, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: object) -> None:
        raise RuntimeError(f"secret {hub.folder.path}")

    monkeypatch.setattr(guarded.service.watcher, "tasks", broken)
    for reply in (
        guarded.predict([picture()], **BEARER),
        guarded.call("POST", "/admin/tasks", b"PK\x03\x04" + bytes(100), BEARER),
        guarded.call("POST", "/admin/tasks", b"\x80\x04" + bytes(100), BEARER),
    ):
        assert reply.status in (422, 500)
        assert set(reply.json) == {"error", "code"}
        for secret in ("secret", "Traceback", ".py", str(hub.folder.path), "/tmp"):
            assert secret not in reply.body.decode()
    assert guarded.call("GET", "/v2/health/live").status == 200


def test_a_slow_body_times_out(steady: Running) -> None:
    with steady.socket() as client:
        client.sendall(b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nx")
        start_s = time.monotonic()
        assert client.recv(4096).startswith(b"HTTP/1.1 408 ")
        assert 0.5 < time.monotonic() - start_s < 10


def test_a_body_that_drips_times_out(steady: Running) -> None:
    with steady.socket() as client:
        client.sendall(b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n")
        client.settimeout(0.1)
        for _ in range(100):
            client.sendall(b"x")
            try:
                assert client.recv(4096).startswith(b"HTTP/1.1 408 ")
                return
            except TimeoutError:
                continue
        raise AssertionError("every byte gave it more time")


def test_a_slow_head_times_out(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "HEADER_TIMEOUT_S", 0.3)
    with running(LiveHub(hub)) as server, server.socket() as silent, server.socket() as slow:
        slow.sendall(b"GET /tasks HTTP/1.1\r\n")
        assert slow.recv(10) == b""
        assert silent.recv(10) == b""
        assert server.call("GET", "/tasks").status == 200


def test_connections_are_counted(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "MAX_CONNECTIONS", 2)
    with running(LiveHub(hub)) as server, server.socket(), server.socket(), server.socket() as third:
        assert third.recv(10) == b""


def test_a_client_that_reads_nothing_is_cut_off(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "WRITE_TIMEOUT_S", 0.3)
    with running(LiveHub(hub)) as server, server.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        try:
            for _ in range(3000):
                client.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        except OSError:
            return
        server.wait_until(lambda: not hung(client))


def hung(client: socket.socket) -> bool:
    try:
        client.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    "line", [b"GET  / HTTP/1.1", b"\x00\xff", b"GET /\x00 HTTP/1.1", b"GET /%zz HTTP/1.1", b"G" * 100_000]
)
def test_what_is_no_http_is_refused(steady: Running, line: bytes) -> None:
    with steady.socket() as client:
        client.sendall(line + b"\r\nhost: x\r\n\r\n")
        reply = http.client.HTTPResponse(client)
        reply.begin()
        assert 400 <= reply.status < 500
        assert reply.headers["content-type"] == "application/json"
        assert set(json.loads(reply.read())) == {"error", "code"}
    assert steady.call("GET", "/v2/health/live").status == 200


def test_a_client_that_hangs_up_harms_nobody(steady: Running) -> None:
    content, kind = form([("image", picture(), "x")])
    head = f"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: {kind}\r\ncontent-length: {len(content)}\r\n\r\n"

    def hang_up(sent: int) -> None:
        with steady.socket() as client:
            client.sendall((head.encode() + content)[:sent])

    threads = [threading.Thread(target=hang_up, args=(sent,)) for sent in (10, 100, 300, 10**6) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert steady.predict([picture()]).status == 200
    steady.wait_until(lambda: b"torchsnow_queue_images 0.0" in steady.call("GET", "/metrics").body)
    assert steady.service.bodies._held_bytes == 0


PICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
CALLS = {"torch.load", "torch.save", "np.load", "numpy.load", "torch.hub.load", "yaml.load", "yaml.unsafe_load"}


def own_files(module: str) -> dict[str, Path]:
    """The modules of this package that a module imports, at its top or in functions, and theirs, and so on."""
    found: dict[str, Path] = {}
    todo = [module]
    while todo:
        name = todo.pop()
        spec = importlib.util.find_spec(name)
        if name in found or spec is None or spec.origin is None:
            continue
        found[name] = Path(spec.origin)
        stub = found[name].with_suffix(".pyi")  # what a package loads at first use
        nodes = [*ast.walk(ast.parse(found[name].read_text()))]
        if stub.exists():
            nodes += [*ast.walk(ast.parse(stub.read_text()))]
        for node in nodes:
            if isinstance(node, ast.ImportFrom) and node.level == 1:
                todo.append(f"{name}.{node.module}")
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("torchsnow"):
                todo.append(str(node.module))
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    if (Path(torchsnow.__file__).parents[1] / inner.replace(".", "/")).with_suffix(".py").exists():
                        todo.append(inner)
    return found


def unpicklers(code: str) -> list[str]:
    """What in a module could unpickle, or run what it is sent; the reader of weights is told not to."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in PICKLERS]
        if isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found += names & CALLS if str(node.module).split(".")[0] not in PICKLERS else names
        if (
            isinstance(node, ast.Call)
            and ast.unparse(node.func) in CALLS
            and "weights_only=True" not in ast.unparse(node)
        ):
            found.append(ast.unparse(node.func))
        if isinstance(node, ast.Name) and node.id in ("eval", "exec", "__import__"):
            found.append(node.id)
    return found


def test_no_pickle_can_be_reached() -> None:
    """Nothing of ours that the server imports unpickles, but for the bundled weights, whose reader is told so."""
    files = own_files("torchsnow.serving.run")
    assert {"torchsnow.task_file.task", "torchsnow.serving.admin", "torchsnow.hub.live"} <= set(files)
    assert {name: unpicklers(file.read_text()) for name, file in files.items() if unpicklers(file.read_text())} == {}


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "import os, pickle.x as y",
        "from dill import loads",
        "from torch import load",
        "def f():\n    import joblib",
        "torch.load(x)",
        "numpy.load(x, allow_pickle=True)",
        "yaml.unsafe_load(x)",
        "eval(x)",
        "__import__(x)",
    ],
)
def test_the_search_for_pickle_finds_it(code: str) -> None:
    assert unpicklers(code)
    assert not unpicklers("import json\njson.loads(x)\ntorch.load(x, weights_only=True)\nyaml.safe_load(x)")


def test_the_server_does_not_import_what_it_does_not_need() -> None:
    code = "import sys, torchsnow.serving.client; print(sorted({'torch', 'starlette', 'uvicorn'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (result.stdout, result.stderr) == ("[]\n", "")
