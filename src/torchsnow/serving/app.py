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
from starlette.types import ASGIApp

from torchsnow.serving import admin, open_inference
from torchsnow.serving.api_error import ApiError, ClientGone
from torchsnow.serving.asked import Asked, read_asked
from torchsnow.serving.guard import OPEN_PATHS, REQUEST_ID, Guard
from torchsnow.serving.openapi import (
    FLAG,
    NAMES,
    NUMBER,
    OF_BODY,
    PICTURE,
    TEXT,
    Described,
    Says,
    Schema,
    api_page,
    describe,
    list_of,
    object_of,
)
from torchsnow.serving.replies import as_json, on_api_error, on_client_gone, on_fault, on_http_error
from torchsnow.serving.service import DEADLINE, DEADLINE_HEADER, Service, predictions
from torchsnow.serving.settings import ServeSettings

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@cache
def page_html() -> str:
    """The page as shipped."""
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


def make_app(service: Service) -> ASGIApp:
    """The ASGI application of a service."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with service.running():
            yield

    offered = routes(service)
    app = Starlette(
        routes=offered,
        lifespan=lifespan,
        exception_handlers={
            ApiError: on_api_error,
            ClientGone: on_client_gone,
            HTTPException: on_http_error,
            Exception: on_fault,
        },
    )
    app.router.redirect_slashes = False
    app.state.document = describe(offered, service.settings.token is not None, OPEN_PATHS)
    guarded = Guard(app, service.settings, service.metrics, service.tracing)
    return _for_pages(guarded, service.settings.origins) if service.settings.origins else guarded


def routes(service: Service) -> list[Described]:
    """What is served: admin routes only where there is a token."""
    of_admin = [] if service.settings.token is None else admin.routes(service)
    return [*_own_routes(service), *open_inference.routes(service), *of_admin]


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


def _own_routes(service: Service) -> list[Described]:
    async def predict(request: Request) -> Response:
        kind = request.headers.get("content-type", "")

        def read(content: bytes) -> Asked:
            return read_asked(content, kind, service.settings, request.query_params.multi_items())

        return await service.answer(request, read, predictions, service.live.now.entries.keys())

    async def tasks(request: Request) -> Response:
        return as_json(await asyncio.to_thread(_listing, service))

    async def metrics(request: Request) -> Response:
        return Response(await service.figures(), media_type=METRICS_TYPE)

    async def openapi(request: Request) -> Response:
        return as_json(request.app.state.document)

    async def docs(request: Request) -> Response:
        return api_page(request.app.state.document)

    return [
        Described("GET", "/", page, Says("A page to try pictures on", TEXT, "text/html")),
        Described("POST", "/predict", predict, _of_predict(service.settings)),
        Described("GET", "/tasks", tasks, Says("The tasks, with classes, accuracy and dates", _LISTING)),
        Described("GET", "/metrics", metrics, Says("Figures for Prometheus", TEXT, "text/plain")),
        Described("GET", "/openapi.json", openapi, Says("This document", {"type": "object"})),
        Described("GET", "/docs", docs, Says("The addresses, for people", TEXT, "text/html")),
    ]


def _of_predict(settings: ServeSettings) -> Says:
    version = {"task": TEXT, "version": TEXT, "sha256": TEXT}
    numbers: Schema = {"type": "object", "additionalProperties": NUMBER}
    lead = object_of(
        over=_MAYBE_TEXT, logits=NUMBER, own=NUMBER, bias=NUMBER, ranking=NAMES, taps=numbers, depths=numbers
    )
    maybe_lead = {"anyOf": [lead, {"type": "null"}]}
    of_classes: Schema = {"label": TEXT, "labels": NAMES, "ranking": NAMES, "probabilities": numbers}
    more: Schema = {"unknown_score": _MAYBE_NUMBER, "lead": maybe_lead, "heat": _MAYBE_TEXT}
    answer = object_of(["lead", "heat"], **version, **of_classes, **more)
    failure = object_of(**version, error=TEXT, code=TEXT)
    image = object_of(name=_MAYBE_TEXT, answers=list_of(answer), errors=list_of(failure))
    why = "Whether the answers have a `lead`: what the likeliest class owes to which tap; takes one more source pass"
    where = (
        "Whether the answers have `heat`, the picture with what speaks for the class, as a data: address; "
        f"takes one more source pass for each answer, of which there may be {settings.max_heat_maps}"
    )
    about, tasks = {"explain": why, "heat": where}, list_of(TEXT, settings.max_tasks)
    text_flags = {name: {**TEXT, "enum": ["true", "false"], "description": text} for name, text in about.items()}
    flags = {name: {**FLAG, "description": text} for name, text in about.items()}
    form = object_of(["task", *about], image=list_of(PICTURE, settings.max_images, 1), task=tasks, **text_flags)
    encoded = list_of({**TEXT, "contentEncoding": "base64"}, settings.max_images, 1)
    maybe_tasks = {"anyOf": [{**tasks, "minItems": 1}, {"type": "null"}]}
    body = object_of(["tasks", *about], images=encoded, tasks=maybe_tasks, **flags)
    of_raw = [
        {"name": name, "in": "query", "schema": schema, "description": "Where the body is a picture"}
        for name, schema in {"task": tasks, **text_flags}.items()
    ]
    return Says(
        "What tasks say of pictures; all tasks unless some are named",
        object_of(images=list_of(image), seconds=NUMBER),
        body={"multipart/form-data": form, "application/json": body, "image/*": PICTURE},
        parameters=[DEADLINE, *of_raw],
        errors=(*OF_BODY, 404, 409, 422),
    )


_MAYBE_TEXT, _MAYBE_NUMBER = {"type": ["string", "null"]}, {"type": ["number", "null"]}
_ROW = object_of(
    **dict.fromkeys(("task", "version", "sha256", "crop_mode", "added", "created"), TEXT),
    classes=NAMES,
    image_size={"type": "integer"},
    accuracy=object_of(val=_MAYBE_NUMBER, test=_MAYBE_NUMBER),
)
_LISTING = object_of(tasks=list_of(_ROW), unusable=NAMES, damaged=NAMES, source=TEXT)


def _listing(service: Service) -> dict[str, Any]:
    """The tasks with their classes, accuracy and dates, and the names of those that cannot be used, or not again."""
    watcher = service.watcher
    rows = []
    for name, listed in sorted(watcher.listed.items()):
        if name in watcher.unloaded or name in watcher.faults:
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
        "unusable": sorted(watcher.faults),
        "damaged": sorted(watcher.damaged.keys() - watcher.faults.keys()),
        "source": service.live.hub.source_info.name,
    }
