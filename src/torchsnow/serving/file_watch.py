"""Task files that are changed behind the hub's back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torchsnow.errors import HubError
from torchsnow.hub import Entry, Hub
from torchsnow.io.files import Stamp, file_stamp
from torchsnow.serving.logs import log, log_trouble


@dataclass(frozen=True)
class _Seen:
    entry: Entry
    file: Path
    stamp: Stamp


class FileWatch:
    """Reports files that are not what the index says any more, once, and again when they are sound.

    What was loaded from a file before goes on answering; it is not loaded again. `damaged` are the names of such tasks.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._seen: dict[str, _Seen] = {}
        self.damaged: frozenset[str] = frozenset()

    def look(self, entries: Mapping[str, Entry]) -> None:
        """Compare the files of these tasks, which were sound when they were given first, with what they were."""
        self._seen = {name: seen for name, seen in self._seen.items() if entries.get(name) == seen.entry}
        self.damaged &= self._seen.keys()
        for name, entry in entries.items():
            seen = self._seen.get(name)
            file = self._hub.folder.task_file(name, entry) if seen is None else seen.file
            stamp = file_stamp(file)
            if seen is not None and stamp != seen.stamp:
                self._check(name, entry)
            self._seen[name] = _Seen(entry, file, stamp)

    def _check(self, name: str, entry: Entry) -> None:
        try:
            self._hub.version(name, entry)
        except HubError as error:
            # A file that is still being written is seen half done, and then once more.
            if name not in self.damaged:
                log_trouble("the file of a task is damaged", task=name, reason=str(error))
            self.damaged |= {name}
            return
        if name in self.damaged:
            log("the file of a task is sound again", task=name)
            self.damaged -= {name}
