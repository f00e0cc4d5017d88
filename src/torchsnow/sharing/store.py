"""A hub in an object store, written so that whoever reads there has the old hub or the new one, never half of it.

The task files come first, under their digests; then the index, in one conditional write, which only takes the place of
the index that was there when the push began. Of two pushes at once, one is refused.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchsnow.errors import HubError
from torchsnow.hub import Hub
from torchsnow.hub.folder import (
    INDEX_FILE,
    LOCK_TIMEOUT_S,
    SOURCE_FILE,
    Index,
    decode_index,
    decode_source_info,
    encode_index,
    encode_source_info,
)
from torchsnow.hub.remote import reach
from torchsnow.hub.verify import validate_former
from torchsnow.io.files import write_atomically
from torchsnow.io.lock import LOCK_FILE, locked
from torchsnow.sharing.repository import Pushed, chosen, task_path, validate_none_lost


@dataclass(frozen=True)
class _Seen:
    """A file as it was when it was read: its content, and what the store calls this version of it."""

    content: bytes
    version: str


class Store:
    """A place that fsspec reaches, and to which files can be written on a condition."""

    def __init__(self, url: str) -> None:
        """Raises HubError for a place that cannot be reached, or has no conditional write."""
        self.url = url
        scheme = url.partition(":")[0]
        if scheme not in _SWAPS:
            raise HubError(
                f"cannot push to {url}: torchsnow knows no conditional write there; expected an address that begins "
                f"with one of {', '.join(_SWAPS)}"
            )
        self._swap = _SWAPS[scheme]
        self._has_folders = scheme not in ("s3", "s3a")  # there, what would be made is a bucket
        self._files, self._root = reach(url)

    def read(self, file: str) -> _Seen | None:
        """A file, or None if there is none."""
        with self._asking("read", file):
            try:
                # The version before the content: what changes in between is refused later.
                version = str(self._info(file).get("ETag", ""))
                return _Seen(self._files.cat_file(f"{self._root}/{file}"), version)
            except FileNotFoundError:
                return None

    def put(self, file: str, content: bytes) -> None:
        """Write a file that no index names yet, unless it is there."""
        with self._asking("write", file):
            try:
                if self._info(file)["size"] == len(content):
                    return
            except FileNotFoundError:
                pass
            path = f"{self._root}/{file}"
            if self._has_folders:
                self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
            self._files.pipe_file(path, content)

    def swap(self, file: str, seen: _Seen | None, content: bytes) -> None:
        """Write a file in the place of what was seen there. Raises HubError when that is no longer so."""
        with self._asking("write", file):
            is_done = self._swap(self._files, f"{self._root}/{file}", seen, content)
        if not is_done:
            raise HubError(f"somebody else changed {self.url} meanwhile; nothing was changed by this push, try again")

    def _info(self, file: str) -> Any:
        self._files.invalidate_cache()
        return self._files.info(f"{self._root}/{file}")

    @contextmanager
    def _asking(self, action: str, file: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # the stores raise what they like
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise HubError(
                f"cannot {action} {self.url}/{file} ({reason}); check the address, the connection and your rights. "
                "The hub there is as it was"
            ) from error


def push_to_store(hub: Hub, url: str, names: Collection[str] = (), *, replace: bool = False) -> Pushed:
    """Make a place in an object store hold the named tasks of a hub, by default all.

    Raises HubError for a task that is unknown or damaged; for a hub there that is on another source, or whose tasks
    would be changed or dropped (unless `replace`); when somebody else changed it meanwhile; and when the store refuses
    or cannot be reached. The hub there is as before then.
    """
    store = Store(url)
    entries = chosen(hub.index(), names, f"the hub {hub.folder.path}")
    for name, entry in entries.items():
        validate_former(hub.folder, name, entry)  # what is damaged here shall not be anybody else's
    seen, source = store.read(INDEX_FILE), store.read(SOURCE_FILE)
    former = Index(0, {}) if seen is None else decode_index(seen.content, f"{url}/{INDEX_FILE}")
    if source is not None:
        info = decode_source_info(source.content, f"{url}/{SOURCE_FILE}")
        if difference := info.difference(hub.source_info):
            raise HubError(f"the hub {url} is on another source: {difference}; choose another place")
    if not replace:
        validate_none_lost(f"the hub {url}", former, entries)
    for name, entry in entries.items():
        store.put(task_path(name, entry), hub.folder.task_file(name, entry).read_bytes())
    if source is None:
        store.swap(SOURCE_FILE, None, encode_source_info(hub.source_info))
    store.swap(INDEX_FILE, seen, encode_index(Index(former.generation + 1, entries)))
    return Pushed(url, tuple(entries))


def _swap_s3(files: Any, path: str, seen: _Seen | None, content: bytes) -> bool:
    condition = {"IfNoneMatch": "*"} if seen is None else {"IfMatch": seen.version}
    try:
        files.pipe_file(path, content, **condition)
    except (OSError, ValueError) as error:
        if any(word in f"{error} {error.__cause__}" for word in ("PreconditionFailed", "ConditionalRequestConflict")):
            return False
        raise
    return True


def _swap_where_there_are_locks(files: Any, path: str, seen: _Seen | None, content: bytes) -> bool:
    is_local = "file" in files.protocol
    if is_local:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    with _locked_folder(Path(path).parent) if is_local else _turn:
        now = files.cat_file(path) if files.exists(path) else None
        if now != (None if seen is None else seen.content):
            return False
        if is_local:
            write_atomically(Path(path), content, HubError)
        else:
            files.pipe_file(path, content)
    return True


def _locked_folder(folder: Path) -> AbstractContextManager[None]:
    """As who changes a hub in this folder locks it."""
    return locked(folder / LOCK_FILE, LOCK_TIMEOUT_S, lambda: HubError("another process is changing it"), HubError)


_turn = threading.Lock()  # a store in memory is that of one process
_SWAPS: dict[str, Callable[[Any, str, _Seen | None, bytes], bool]] = {
    **dict.fromkeys(("s3", "s3a"), _swap_s3),
    **dict.fromkeys(("file", "local", "memory"), _swap_where_there_are_locks),
}
