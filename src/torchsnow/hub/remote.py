"""A hub that lies elsewhere, in an object store for example: read through a local copy, by whatever fsspec reaches.

The copy is a hub's folder with one file more, origin.json, which says whose copy it is. The index is read again every
few seconds; a task file comes when it is first asked for, and is kept under its digest. So a reader has the old index
or the new one, and files that are what the index says, or an error.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from torchsnow.errors import HubError
from torchsnow.hub.folder import INDEX_FILE, SOURCE_FILE, Entry, Folder, Index, decode_index
from torchsnow.io.files import clear_os_errors, write_atomically
from torchsnow.task_file import content_hash
from torchsnow.task_file.info import MAX_SIZE_BYTES

ORIGIN_FILE = "origin.json"
REFRESH_S = 5.0
"""For so long an index is taken for the present one."""

_URL = re.compile(r"([a-z][a-z0-9+.-]+):/{1,2}(?=.)(.*)", re.DOTALL)
_MAX_JSON_BYTES = 256 * 2**20
_EXAMPLES = {"file": "/data/hub", "local": "/data/hub", "hf": "organisation/name"}
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "hf": "hub"}


def url_of(path: Path | str) -> str | None:
    """The address of a hub that is no folder of this machine, as in "s3://bucket/hub"; None for a folder.

    A `Path` has lost one of the slashes, and gets it back. Raises HubError for an address that names no place.
    """
    found = _URL.fullmatch(str(path))
    if found is None:
        return None
    scheme, rest = found.groups()
    if not rest.strip("/"):
        raise HubError(f"{path} names no place; expected an address as {scheme}://{_EXAMPLES.get(scheme, 'place/hub')}")
    return f"{scheme}://{'/' + rest.lstrip('/') if scheme in ('file', 'local') else rest.lstrip('/')}".rstrip("/")


def validate_local(path: Path | str) -> None:
    """Raise HubError for a place that hubs are only read from."""
    url = url_of(path) or _origin(Path(path))
    if url is not None:
        raise _read_only(url)


def folder_at(path: Path | str) -> Folder:
    """The folder of a hub, or the local copy of one that lies elsewhere. Raises HubError when that is out of reach."""
    url = url_of(path)
    if url is not None:
        return Copy(_copies() / _folder_name(url), url)
    origin = _origin(Path(path))
    return Folder(Path(path)) if origin is None else Copy(Path(path), origin)


class Copy(Folder):
    """The local copy of a hub that lies elsewhere; it is never changed but by what is there."""

    def __init__(self, path: Path, url: str) -> None:
        super().__init__(path)
        self.url = url
        self._files, self._root = reach(url)
        self._read_s: float | None = None  # when the index was read last, by the monotonic clock
        source_info = self._fetch(SOURCE_FILE, _MAX_JSON_BYTES)
        with clear_os_errors("make the folder", path, HubError):
            path.mkdir(parents=True, exist_ok=True)
        write_atomically(path / ORIGIN_FILE, json.dumps({"url": url}, allow_nan=False) + "\n", HubError)
        write_atomically(path / SOURCE_FILE, source_info, HubError)

    def read_index(self) -> Index:
        """The index as it was at most `REFRESH_S` ago. Raises HubError when the place cannot be reached."""
        if self._read_s is None or time.monotonic() - self._read_s > REFRESH_S:
            asked_s = time.monotonic()
            content = self._fetch(INDEX_FILE, _MAX_JSON_BYTES)
            decode_index(content, f"{self.url}/{INDEX_FILE}")  # a damaged one does not take the place of a sound one
            write_atomically(self.index_file, content, HubError)
            self._read_s = asked_s
        return super().read_index()

    def task_file(self, name: str, entry: Entry) -> Path:
        """The file of one version of a task, downloaded unless it is here. Raises HubError for other content than the
        index says."""
        path = super().task_file(name, entry)
        with clear_os_errors("look at", path, HubError):
            if path.exists() and path.stat().st_size == entry.size_bytes:
                return path
            path.parent.mkdir(parents=True, exist_ok=True)
        content = self._fetch(path.relative_to(self.path).as_posix(), min(entry.size_bytes, MAX_SIZE_BYTES))
        if content_hash(content) != entry.sha256:
            raise HubError(
                f"task {name!r} of the hub {self.url} cannot be used: its file has the SHA-256 "
                f"{content_hash(content)[:12]}..., expected {entry.sha256[:12]}...; the other tasks are not affected"
            )
        write_atomically(path, content, HubError)
        return path

    def locked(self) -> AbstractContextManager[None]:
        """Raises HubError: nothing is written there."""
        raise _read_only(self.url)

    def strays(self, index: Index, name: str | None = None) -> Iterator[Path]:
        """As for any folder, but for the note of whose copy it is."""
        return (path for path in super().strays(index, name) if path != self.path / ORIGIN_FILE)

    def _fetch(self, file: str, max_size_bytes: int) -> bytes:
        place = f"{self.url}/{file}"
        try:
            with self._files.open(f"{self._root}/{file}", "rb") as opened:
                content: bytes = opened.read(max_size_bytes + 1)
        except FileNotFoundError as error:
            hint = "it is not a hub" if file in (SOURCE_FILE, INDEX_FILE) else "it was deleted, or not copied yet"
            raise HubError(f"there is no {place}: {hint}") from error
        except Exception as error:  # the stores raise what they like
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise HubError(
                f"cannot read {place} ({reason}); check the address, the connection and your rights"
            ) from error
        if len(content) > max_size_bytes:
            raise HubError(f"{place} has more bytes than the {max_size_bytes} expected; it is not read")
        return content


def _read_only(url: str) -> HubError:
    return HubError(
        f"the hub {url} can only be read: an object store does not let two writers take turns; change a hub in a "
        f"folder and push it there: torchsnow push {url} --hub FOLDER"
    )


def reach(url: str) -> tuple[Any, str]:
    """The file system of an address, and the path on it. Raises HubError."""
    import fsspec

    scheme = url.partition(":")[0]
    try:
        files, root = fsspec.core.url_to_fs(url)
    except ImportError as error:
        extra = _EXTRAS.get(scheme)
        how = f"pip install 'torchsnow[{extra}]'" if extra is not None else str(error)
        raise HubError(f"reading {url} needs a library: {how}") from error
    except Exception as error:  # the stores raise what they like
        raise HubError(f"cannot reach {url}: {error}; expected an address as in s3://bucket/hub") from error
    return files, str(root)


def _origin(path: Path) -> str | None:
    """Whose copy a folder is."""
    try:
        return str(json.loads((path / ORIGIN_FILE).read_text(encoding="utf-8"))["url"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _copies() -> Path:
    folder = os.path.expanduser(os.environ.get("TORCHSNOW_HUBS") or "~/.cache/torchsnow/hubs")
    if folder.startswith("~"):
        raise HubError(f"{folder} is in no home of this machine; name a folder for copies of hubs in TORCHSNOW_HUBS")
    return Path(folder).absolute()


def _folder_name(url: str) -> str:
    words = re.sub(r"[^A-Za-z0-9.]+", "-", url).strip("-.")[-60:]
    return f"{words}-{hashlib.sha256(url.encode()).hexdigest()[:12]}"
