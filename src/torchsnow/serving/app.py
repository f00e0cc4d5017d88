"""All routes together, and the page at `/`: one file, which may load nothing and talk to nobody but this server."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import cache
from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from torchsnow.serving import admin, open_inference
from torchsnow.serving.asked import Asked, read_asked
from torchsnow.serving.guard import REQUEST_ID, Guard
from torchsnow.serving.openapi import api_page, describe
from torchsnow.serving.refusal import ClientGone, Refusal
from torchsnow.serving.replies import as_json, on_client_gone, on_fault, on_http_error, on_refusal
from torchsnow.serving.service import DEADLINE_HEADER, Service, predictions


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


METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def make_app(service: Service) -> ASGIApp:
    """The ASGI application of a service."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with service.running():
            yield

    offered = [*_routes(service), *open_inference.routes(service)]
    if service.settings.token is not None:
        offered += admin.routes(service)
    app = Starlette(
        routes=offered,
        lifespan=lifespan,
        exception_handlers={
            Refusal: on_refusal,
            ClientGone: on_client_gone,
            HTTPException: on_http_error,
            Exception: on_fault,
        },
    )
    app.router.redirect_slashes = False
    guarded = Guard(app, service.settings, service.metrics)
    return _for_pages(guarded, service.settings.origins) if service.settings.origins else guarded


def _for_pages(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """Lets pages of these sites ask; what admin routes allow, they decide themselves. A page's question whether it may
    (preflight) has no token."""
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=["GET", "POST"],
        allow_headers=["authorization", DEADLINE_HEADER, REQUEST_ID],
        expose_headers=["retry-after", REQUEST_ID],
    )


def _routes(service: Service) -> list[Route]:
    document = describe(service.settings)

    async def predict(request: Request) -> Response:
        kind = request.headers.get("content-type", "")

        def read(content: bytes) -> Asked:
            return read_asked(content, kind, service.settings, request.query_params.multi_items())

        return await service.answer(request, read, predictions, service.live.now.entries.keys())

    async def tasks(request: Request) -> Response:
        return as_json(await asyncio.to_thread(_listing, service))

    async def metrics(request: Request) -> Response:
        return Response(await asyncio.to_thread(service.metrics.text), media_type=METRICS_TYPE)

    async def openapi(request: Request) -> Response:
        return as_json(document)

    async def docs(request: Request) -> Response:
        return api_page(document)

    return [
        Route("/", page),
        Route("/predict", predict, methods=["POST"]),
        Route("/tasks", tasks),
        Route("/metrics", metrics),
        Route("/openapi.json", openapi),
        Route("/docs", docs),
    ]


def _listing(service: Service) -> dict[str, Any]:
    """The tasks with their classes, accuracy and dates, and the names of those that cannot be used, or not again."""
    following = service.following
    rows = []
    for name, listed in sorted(following.listed.items()):
        if name in following.unloaded or name in following.faults:
            continue
        metrics = listed.info.metrics
        found = {split: (metrics.get(split) or {}).get("accuracy") for split in ("val", "test")}
        rows.append(
            {
                "task": name,
                "version": listed.entry.sha256[:12],
                "sha256": listed.entry.sha256,
                "classes": list(listed.info.classes),
                "image_size": listed.info.image_size,
                "crop_mode": listed.info.crop_mode,
                "accuracy": found,
                "added": listed.entry.added,
                "created": listed.info.created,
            }
        )
    return {
        "tasks": rows,
        "unusable": sorted(following.faults),
        "damaged": sorted(following.damaged - following.faults.keys()),
        "source": service.live.hub.source_info.name,
    }
