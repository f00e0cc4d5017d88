"""The page at `/`: one file, which may load nothing and talk to nobody but this server."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response


@cache
def page_html() -> str:
    """The page as it is shipped."""
    return files("torchsnow.serving").joinpath("page.html").read_text("utf-8")


@cache
def policy() -> str:
    """The content security policy: the page's own script and style, by their hashes, and nothing else."""
    script, style = (_hash(kind) for kind in ("script", "style"))
    return (
        f"default-src 'none'; script-src {script}; style-src {style}; img-src blob: data:; connect-src 'self'; "
        "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    )


async def page(request: Request) -> Response:
    """GET /"""
    return HTMLResponse(page_html(), headers={"content-security-policy": policy()})


def _hash(kind: str) -> str:
    (content,) = re.findall(f"<{kind}>(.*?)</{kind}>", page_html(), re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
