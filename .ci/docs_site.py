"""Pages of the docs site that lie outside docs/, and links that are right in the repository, made right on the site."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
OUTSIDE = {"README.md": "index.md"} | {
    name: name
    for name in ("CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", "benchmarks/README.md")
    + ("deploy/Caddyfile", "deploy/nginx.conf")
}


def on_files(files: Files, config: Any) -> Files:
    for name, uri in OUTSIDE.items():
        files.append(File.generated(config, uri, content=(ROOT / name).read_text()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """docs/ is the root of the site: other folders are beside its pages, not above them."""
    inner = page.file.src_uri.count("/")
    if inner:
        return markdown.replace("](../docs/", "](../")
    return re.sub(r"\]\((docs/|\.\./)", "](", markdown)
