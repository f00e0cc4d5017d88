"""A hub in a repository of the Hugging Face Hub: the same files, one commit for each push.

README.md                     the model card
source.json, index.json       as in a hub's folder, without former versions
tasks/NAME/SHA256.safetensors one task file each

A repository holds what was pushed last; its own history keeps the rest.
"""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchsnow.errors import HubError, TaskFileError
from torchsnow.hub import Entry, Hub, is_hub, validate_local
from torchsnow.hub.folder import (
    INDEX_FILE,
    SOURCE_FILE,
    TASKS_FOLDER,
    Index,
    IndexFile,
    encode_index,
    encode_source_info,
    read_source_info,
)
from torchsnow.hub.hub import load_described
from torchsnow.hub.verify import validate_former
from torchsnow.sharing.card import model_card
from torchsnow.source import Source
from torchsnow.task_file import SourceInfo, Task, load_task
from torchsnow.task_file.info import MAX_SIZE_BYTES

CARD = "README.md"
_MAX_JSON_BYTES = 64 * 2**20
_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)


@dataclass(frozen=True)
class Pushed:
    """What a push left: the address of the commit, and the tasks that the repository has now."""

    url: str
    tasks: tuple[str, ...]


@dataclass(frozen=True)
class Pulled:
    """What a pull added to a hub, and which tasks it had already in the same version; `commit` is where from."""

    commit: str
    added: tuple[str, ...]
    unchanged: tuple[str, ...]


class Repository:
    """A repository at one commit; `sizes` are the bytes of every file by path, None where the Hub does not say."""

    def __init__(self, name: str, revision: str | None = None, *, make: bool = False, private: bool = False) -> None:
        """With `make` the repository is made if there is none. Raises HubError when it cannot be reached."""
        if not _NAME.fullmatch(name):
            raise HubError(f"{name[:80]!r} cannot be a repository; expected ORGANISATION/NAME, or USER/NAME")
        self.name = name
        self._api = _hub_api()
        with self._asking("reach"):
            if make:
                self._api.create_repo(name, private=private, exist_ok=True)
            found = self._api.model_info(name, revision=revision, files_metadata=True)
        self.commit = str(found.sha)
        self.sizes: dict[str, int | None] = {file.rfilename: file.size for file in found.siblings or ()}

    def read(self, path: str, folder: Path, max_size_bytes: int) -> Path:
        """A file of the repository, downloaded into a folder. Raises HubError for one that is missing or too large."""
        if path not in self.sizes:
            raise HubError(f"the repository {self.name} has no {path}: it was not pushed by torchsnow")
        size_bytes = self.sizes[path]
        if size_bytes is not None and size_bytes > max_size_bytes:
            raise HubError(
                f"{path} of the repository {self.name} has {size_bytes} bytes, more than the {max_size_bytes} allowed"
            )
        with self._asking(f"download {path} of"):
            return Path(self._api.hf_hub_download(self.name, path, revision=self.commit, cache_dir=folder))

    def describe(self, folder: Path) -> tuple[SourceInfo, Index]:
        """The source and the tasks of the hub in the repository. Raises HubError unless it holds one."""
        source_file = self.read(SOURCE_FILE, folder, _MAX_JSON_BYTES)
        index_file = self.read(INDEX_FILE, folder, _MAX_JSON_BYTES)
        try:
            return read_source_info(source_file), IndexFile(index_file).read()
        except HubError as error:
            raise HubError(f"the repository {self.name} holds no sound hub: {error}") from error

    def commit_files(self, files: Mapping[str, Path | bytes], message: str) -> str:
        """Make the repository hold these files and no other tasks, in one commit; its address.

        Raises HubError when the repository has changed since it was looked at.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        gone = [path for path in self.sizes if path.startswith(f"{TASKS_FOLDER}/") and path not in files]
        changes: list[Any] = [CommitOperationAdd(path, content) for path, content in sorted(files.items())]
        changes += [CommitOperationDelete(path) for path in sorted(gone)]
        with self._asking("write to"):
            done = self._api.create_commit(self.name, changes, commit_message=message, parent_commit=self.commit)
        return str(done.commit_url)

    @contextmanager
    def _asking(self, action: str) -> Iterator[None]:
        try:
            yield
        # Its errors come from the Hub, the network, the disk and the library's own checks.
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise HubError(
                f"cannot {action} the repository {self.name} of the Hugging Face Hub ({reason}): check its name, the "
                "connection and your token (`hf auth login`, or HF_TOKEN); if somebody else changed it, try again"
            ) from error


def push(
    hub: Hub,
    repository: str,
    names: Collection[str] = (),
    *,
    licence: str | None = None,
    private: bool = False,
    replace: bool = False,
) -> Pushed:
    """Make a repository hold the named tasks of a hub, by default all, with a model card, in one commit.

    The repository is made if there is none. `licence` is an identifier of the Hub's, such as "apache-2.0". Raises
    HubError for a task that is unknown or damaged; for a repository that holds something else, or tasks that would be
    changed or dropped (unless `replace`); when somebody else changed it meanwhile; and when the Hub refuses or cannot
    be reached. The repository is as before then.
    """
    entries = chosen(hub.index(), names, f"the hub {hub.folder.path}")
    infos = {name: hub.info(name) for name in entries}
    for name, entry in entries.items():
        validate_former(hub.folder, name, entry)  # what is damaged here shall not be anybody else's
    with tempfile.TemporaryDirectory() as folder:
        there = Repository(repository, make=True, private=private)
        _validate_no_loss(there, entries, hub.source_info, Path(folder), replace=replace)
        files: dict[str, Path | bytes] = {
            CARD: model_card(repository, hub.source_info, infos, entries, licence).encode(),
            SOURCE_FILE: encode_source_info(hub.source_info),
            INDEX_FILE: encode_index(Index(1, entries)),
            **{task_path(name, entry): hub.folder.task_file(name, entry) for name, entry in entries.items()},
        }
        what = f"{len(entries)} tasks" if len(entries) > 1 else f"the task {next(iter(entries))}"
        return Pushed(there.commit_files(files, f"Push {what}"), tuple(entries))


def pull(
    repository: str,
    hub_path: Path,
    names: Collection[str] = (),
    *,
    revision: str | None = None,
    replace: bool = False,
    source: Source | None = None,
) -> Pulled:
    """Add the named tasks of a repository, by default all, to a hub, which is made if there is none.

    Every file is compared with its SHA-256 and read as strictly as any task file, all of them before the first one is
    added. Without `source`, the one that the repository names is loaded. `revision` is a branch, tag or commit. Raises
    HubError for a repository that is no hub, another source than the hub's, a file that is damaged or too large, a
    name that is taken (unless `replace`), and when the Hub cannot be reached.
    """
    validate_local(hub_path)
    hub = Hub.open(hub_path, source) if is_hub(hub_path) else None
    if hub is None:
        Hub.validate_vacant(hub_path)
    there = Repository(repository, revision)
    with tempfile.TemporaryDirectory() as folder:
        info, index = there.describe(Path(folder))
        entries = chosen(index, names, f"the repository {repository}")
        own = hub.infos() if hub is not None else {}
        wanted = {name: entry for name, entry in entries.items() if name not in own or own[name].sha256 != entry.sha256}
        if not replace and (taken := sorted(set(wanted) & set(own))):
            raise HubError(
                f"the hub {hub_path} has another version of {', '.join(taken)}; replace it with --replace, or name "
                "other tasks with --task"
            )
        difference = None if hub is None else info.difference(hub.source_info)  # before anything is loaded
        if difference is None:
            source = hub.source if hub is not None else source or load_described(info)
            difference = info.difference(SourceInfo.of(source))
        if difference is not None or source is None:
            raise HubError(f"the tasks of {repository} belong to another source: {difference}")
        tasks = [_read_task(there, name, entry, source, Path(folder)) for name, entry in wanted.items()]
    hub = hub or Hub.create(hub_path, source)
    for task in tasks:
        hub.add(task, replace)
    return Pulled(there.commit, tuple(wanted), tuple(name for name in entries if name not in wanted))


def _read_task(there: Repository, name: str, entry: Entry, source: Source, folder: Path) -> Task:
    path = task_path(name, entry)
    try:
        task = load_task(there.read(path, folder, MAX_SIZE_BYTES), source, entry.sha256)
        if task.name != name:
            raise TaskFileError(f"it holds the task {task.name!r}")
    except TaskFileError as error:
        raise HubError(f"task {name!r} of the repository {there.name} cannot be used: {error}") from error
    return task


def _validate_no_loss(
    there: Repository, entries: Mapping[str, Entry], source: SourceInfo, folder: Path, *, replace: bool
) -> None:
    """Raise HubError for a repository of something else, or one whose tasks a push would change or drop."""
    known = {CARD, SOURCE_FILE, INDEX_FILE, ".gitattributes"}
    others = [path for path in there.sizes if path not in known and not path.startswith(f"{TASKS_FOLDER}/")]
    if others or (CARD in there.sizes and INDEX_FILE not in there.sizes):
        held = (others or [CARD])[0]
        raise HubError(f"the repository {there.name} holds something else ({held}); choose another name, for a new one")
    if INDEX_FILE not in there.sizes or replace:
        return
    info, index = there.describe(folder)
    if difference := info.difference(source):
        raise HubError(f"the repository {there.name} is on another source: {difference}; replace it with --replace")
    validate_none_lost(f"the repository {there.name}", index, entries)


def validate_none_lost(where: str, index: Index, entries: Mapping[str, Entry]) -> None:
    """Raise HubError when these entries would change or drop tasks of an index."""
    lost = [name for name, entry in index.tasks.items() if name not in entries or entries[name].sha256 != entry.sha256]
    if lost:
        raise HubError(
            f"{where} has tasks that this would change or drop: {', '.join(sorted(lost))}; replace what it holds with "
            "--replace, or choose another place"
        )


def chosen(index: Index, names: Collection[str], where: str) -> dict[str, Entry]:
    """The named entries of an index, or all. Raises HubError for a name that there is not, or none at all."""
    unknown = sorted(set(names) - set(index.tasks))
    if unknown or not index.tasks:
        what = f"no task {unknown[0]!r}" if unknown else "no tasks yet"
        raise HubError(f"{where} has {what}; it has: {', '.join(sorted(index.tasks)[:20]) or 'none'}")
    return {name: index.tasks[name] for name in sorted(names or index.tasks)}


def task_path(name: str, entry: Entry) -> str:
    """Where the file of a task is, below the place of its hub."""
    return f"{TASKS_FOLDER}/{name}/{entry.sha256}.safetensors"


def _hub_api() -> Any:
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise HubError("push and pull need the library huggingface_hub: pip install 'torchsnow[hub]'") from error
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries are many lines; ours is one sentence
    return HfApi(library_name="torchsnow")
