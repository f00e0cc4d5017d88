"""One self-contained HTML file: text, tables and pictures, without anything to load from elsewhere."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from torchsnow.errors import TorchsnowError
from torchsnow.io.files import write_atomically

HTML = Environment(
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=StrictUndefined,
    loader=FileSystemLoader(Path(__file__).with_name("templates")),
)
HTML.filters["one_line"] = lambda text: type(text)(" ".join(text.split()))


class Thumbnail(NamedTuple):
    """Small JPEGs side by side, what is said of them in bold, and further lines; `lines` begins with what tells them
    from others."""

    jpegs: tuple[bytes, ...]
    title: str
    lines: tuple[str, ...]

    @property
    def addresses(self) -> list[str]:
        return [data_address("jpeg", jpeg) for jpeg in self.jpegs]


class Page:
    """A page that is put together from top to bottom; all text is shown literally, never as markup."""

    def __init__(self, title: str) -> None:
        self.title = title
        self._parts: list[Markup] = []

    def add(self, template: str, **values: Any) -> None:
        """What a template gives."""
        self._parts.append(Markup(HTML.get_template(template).render(values)))

    def heading(self, text: str, level: int = 2) -> None:
        """A heading of level 2 or below."""
        self._part("heading", text, level)

    def paragraph(self, text: str) -> None:
        """A paragraph of plain text."""
        self._part("paragraph", text)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]], caption: str = "") -> None:
        """A table; the first column is set to the left, the others to the right."""
        self._part("table", columns, rows, caption)

    def picture(self, png: bytes, text: str, caption: str = "") -> None:
        """A PNG inside the page; `text` says what it shows to those who do not see it."""
        self._part("picture", data_address("png", png), text, caption)

    def gallery(self, items: Sequence[Thumbnail]) -> None:
        """Small pictures in rows, as many as fit, with a line in bold and further lines below each; those of several
        pictures get more room."""
        self._part("gallery", items, any(len(item.jpegs) > 1 for item in items))

    def html(self) -> str:
        """The whole page."""
        return HTML.get_template("page.html.jinja").render(title=self.title, parts=self._parts)

    def save(self, path: Path) -> None:
        """Write the page atomically. Raises TorchsnowError when the disk refuses."""
        write_atomically(path, self.html().encode("utf-8", "surrogateescape"), TorchsnowError)

    def _part(self, kind: str, *values: Any) -> None:
        self._parts.append(Markup(getattr(HTML.get_template("html.jinja").module, kind)(*values)))


def data_address(kind: str, content: bytes) -> str:
    """A picture as an address that holds it."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
