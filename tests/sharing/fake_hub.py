"""A small Hugging Face Hub on this machine: as much of its HTTP as the library needs to push and pull models."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class FakeHub:
    """Repositories by name: their commits, oldest first, each a hash and its files. `url` is where it answers."""

    url: str = ""
    repositories: dict[str, list[tuple[str, dict[str, bytes]]]] = field(default_factory=dict)

    def files(self, name: str) -> dict[str, bytes]:
        """The files of the last commit, to be changed by tests."""
        return self.repositories[name][-1][1]

    def commit(self, name: str, files: dict[str, bytes]) -> str:
        commits = self.repositories.setdefault(name, [])
        sha = hashlib.sha1(f"{name} {len(commits)}".encode()).hexdigest()
        commits.append((sha, files))
        return sha

    def at(self, name: str, revision: str) -> tuple[str, dict[str, bytes]]:
        commits = self.repositories[name]
        return next((one for one in commits if one[0] == revision), commits[-1])


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub

    def do_POST(self) -> None:
        path = urlsplit(self.path).path
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            if name in self.hub.repositories:
                return self.answer(409, {"error": "You already created this model repo", "url": f"/{name}"})
            self.hub.commit(name, {".gitattributes": b""})
            return self.answer(200, {"url": f"{self.hub.url}/{name}", "name": name, "id": "1"})
        name = "/".join(path.split("/")[3:5])
        if "/preupload/" in path:
            modes = [{**f, "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]]
            return self.answer(200, {"files": modes})
        if "/commit/" in path:
            return self.change(name, [json.loads(line) for line in body.splitlines()])
        return self.answer(200, {})

    def change(self, name: str, lines: list[dict[str, Any]]) -> None:
        sha, files = self.hub.at(name, "main")
        files = dict(files)
        for line in lines:
            value = line["value"]
            if line["key"] == "header" and value.get("parentCommit", sha) != sha:
                return self.answer(412, {"error": "A commit has happened since."})
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            if line["key"] == "deletedFile":
                del files[value["path"]]
        new = self.hub.commit(name, files)
        return self.answer(200, {"commitUrl": f"{self.hub.url}/{name}/commit/{new}", "commitOid": new})

    def list_folder(self, folder: str, files: dict[str, bytes]) -> None:
        """What is in a folder, not below it."""
        below = {path.removeprefix(f"{folder}/") for path in files if not folder or path.startswith(f"{folder}/")}
        folders = {path.partition("/")[0] for path in below if "/" in path}
        start = f"{folder}/" if folder else ""
        found: list[Any] = [{"type": "directory", "path": start + name, "oid": "0" * 40} for name in folders]
        for name in below - {path for path in below if "/" in path}:
            found.append({"type": "file", "path": start + name, "size": len(files[start + name]), "oid": "0" * 40})
        if not below:
            return self.answer(404, {"error": "no such folder"}, {"X-Error-Code": "EntryNotFound"})
        return self.answer(200, found)

    def do_GET(self) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        is_api = parts[0] == "api"
        name = "/".join(parts[2:4] if is_api else parts[:2])
        if name not in self.hub.repositories:
            return self.answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        sha, files = self.hub.at(name, parts[5] if is_api and len(parts) > 5 else parts[3] if not is_api else "main")
        if is_api and parts[4:5] == ["tree"]:
            return self.list_folder("/".join(parts[6:]), files)
        if is_api:
            siblings = [{"rfilename": path, "size": len(content)} for path, content in files.items()]
            return self.answer(200, {"_id": "1", "id": name, "sha": sha, "siblings": siblings, "private": False})
        content = files["/".join(parts[4:])]
        headers = {"X-Repo-Commit": sha, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
        return self.answer(200, content, headers)

    do_HEAD = do_GET  # noqa: N815

    def answer(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *given: Any) -> None:
        pass


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """A hub that answers on a free port until the end of the block."""
    hub = FakeHub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield hub
        server.shutdown()
        thread.join()
