"""One self-contained HTML file: text, tables and pictures, without anything to load from elsewhere."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from torchsnow.errors import TorchsnowError
from torchsnow.io.files import write_atomically

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1d2733; background: #fff; max-width: 72rem; margin: 2rem auto;
  padding: 0 1rem; overflow-wrap: anywhere; }
h1, h2, h3 { line-height: 1.2; margin: 2rem 0 .6rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; }
caption { text-align: left; color: #52606d; padding-bottom: .3rem; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #d9dfe5; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1rem 0; }
img { max-width: 100%; height: auto; }
figcaption { color: #52606d; font-size: .9rem; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: .8rem; }
.gallery figure { margin: 0; }
.gallery img { width: 100%; aspect-ratio: 1; object-fit: contain; background: #eef1f4; }
.gallery figcaption { font-size: .8rem; line-height: 1.35; }
.gallery strong { color: #1d2733; }
"""


@dataclass(frozen=True)
class Thumbnail:
    """A small JPEG, what is said of it in bold, and further lines; `lines` begins with what tells it from others."""

    jpeg: bytes
    title: str
    lines: tuple[str, ...]


class Page:
    """A page that is put together from top to bottom; all text is shown as it is, never as markup."""

    def __init__(self, title: str) -> None:
        self.title = title
        self._parts: list[str] = [f"<h1>{escape(title)}</h1>"]

    def heading(self, text: str, level: int = 2) -> None:
        """A heading of level 2 or below."""
        self._parts.append(f"<h{level}>{escape(text)}</h{level}>")

    def paragraph(self, text: str) -> None:
        """A paragraph of plain text."""
        self._parts.append(f"<p>{escape(text)}</p>")

    def listing(self, items: Sequence[str]) -> None:
        """A bulleted list of plain texts."""
        self._parts.append("<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]], caption: str = "") -> None:
        """A table; the first column is set to the left, the others to the right."""
        head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
        body = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
        title = f"<caption>{escape(caption)}</caption>" if caption else ""
        table = f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        self._parts.append(f'<div class="wide">{table}</div>')

    def picture(self, png: bytes, text: str, caption: str = "") -> None:
        """A PNG inside the page; `text` says what it shows to those who do not see it."""
        data = base64.b64encode(png).decode()
        below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
        image = f'<img alt="{escape(text)}" src="data:image/png;base64,{data}">'
        self._parts.append(f"<figure>{image}{below}</figure>")

    def gallery(self, items: Sequence[Thumbnail]) -> None:
        """Small pictures in rows, as many as fit, with a line in bold and further lines below each."""
        self._parts.append('<div class="gallery">' + "".join(map(_figure, items)) + "</div>")

    def html(self) -> str:
        """The whole page."""
        head = (
            f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(self.title)}</title><style>{_STYLE}</style>"
        )
        body = "\n".join(self._parts)
        return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'

    def save(self, path: Path) -> None:
        """Write the page atomically. Raises TorchsnowError when the disk refuses."""
        write_atomically(path, self.html().encode("utf-8", "surrogateescape"), TorchsnowError)


def _figure(item: Thumbnail) -> str:
    lines = "".join(f"<br>{escape(line)}" for line in item.lines)
    data = base64.b64encode(item.jpeg).decode()
    image = f'<img loading="lazy" alt="{escape(item.lines[0])}" src="data:image/jpeg;base64,{data}">'
    return f"<figure>{image}<figcaption><strong>{escape(item.title)}</strong>{lines}</figcaption></figure>"
