"""Pictures, numbers and the page that holds them, collected and then written into one folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from torchsnow.io.files import clear_os_errors, refuse_unwritable, write_atomically
from torchsnow.pages import Page
from torchsnow.plots import png_bytes

PAGE, NUMBERS = "index.html", "subscription.json"


class Gallery:
    """A page, the PNG files of its pictures, and JSON numbers beside it."""

    def __init__(self, title: str) -> None:
        self.page = Page(title)
        self.numbers: dict[str, Any] = {}
        self._pictures: dict[str, bytes] = {}

    def picture(self, name: str, figure: Figure, text: str, caption: str) -> None:
        """Add a figure to the page and, as the file `name`, to the folder; `text` is for who does not see it."""
        self._pictures[name] = png_bytes(figure)
        self.page.picture(self._pictures[name], text, caption)

    def save(self, folder: Path) -> list[Path]:
        """Write everything into an existing folder, file by file atomically, the page last.

        Other files of the folder are left alone. Raises TorchsnowError when the disk refuses.
        """
        for name, content in self._pictures.items():
            write_atomically(folder / name, content)
        write_atomically(folder / NUMBERS, json.dumps(self.numbers, indent=1, allow_nan=False) + "\n")
        self.page.save(folder / PAGE)
        return [folder / name for name in (*self._pictures, NUMBERS, PAGE)]


def make_folder(folder: Path) -> None:
    """Make the folder if it is missing. Raises TorchsnowError when that cannot be, or nothing be written there."""
    with clear_os_errors("make the folder", folder):
        folder.mkdir(parents=True, exist_ok=True)
    refuse_unwritable(folder)
