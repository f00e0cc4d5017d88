"""Changing the hub over the network. These routes exist only where a token is set."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from starlette.requests import Request
from starlette.responses import Response

from torchsnow.errors import TaskFileError, TorchsnowError
from torchsnow.hub import Entry
from torchsnow.io.shortage import system_shortage
from torchsnow.serving.api_error import ApiError, api_error_of
from torchsnow.serving.logs import log, log_fault, log_trouble
from torchsnow.serving.openapi import OF_BODY, TEXT, Described, Says, object_of
from torchsnow.serving.replies import as_json
from torchsnow.serving.service import Service
from torchsnow.task_file import load_task

ADMIN_PATHS = ("/admin/", "/v2/repository/models/")
_OF_CHANGE = (403, 404, 409)


def routes(service: Service) -> list[Described]:
    """Upload, remove and roll back; load and unload of the repository extension."""

    async def upload(request: Request) -> Response:
        replace = request.query_params.get("replace", "false")
        if replace not in ("true", "false"):
            raise ApiError(400, "bad_request", "replace is 'true' or 'false'")
        with service.bodies.holding() as read_body:
            content = await read_body(request, service.settings.max_upload_bytes)
            name, entry = await _changing(service, lambda: _add(service, content, replace == "true"))
        return as_json({"task": name, "sha256": entry.sha256}, 201)

    async def remove(request: Request) -> Response:
        name = request.path_params["name"]
        _validate_known(service, name)
        await _changing(service, lambda: service.live.hub.remove(name))
        return as_json({"removed": name})

    async def roll_back(request: Request) -> Response:
        name = request.path_params["name"]  # of a task that is there, or was
        if name not in await asyncio.to_thread(service.live.hub.former):
            _validate_known(service, name)
        entry = await _changing(service, lambda: service.live.hub.rollback(name))
        return as_json({"task": name, "sha256": entry.sha256})

    def offering(offered: bool) -> Callable[[Request], Any]:
        async def route(request: Request) -> Response:
            name = request.path_params["name"]
            await service.poll()
            await service.offer(name, offered)
            log("task loaded" if offered else "task unloaded", task=name)
            return as_json({})

        return route

    version, model = object_of(task=TEXT, sha256=TEXT), "/v2/repository/models/{name}"
    file = {"application/octet-stream": {**TEXT, "format": "binary"}}
    whether = {"name": "replace", "in": "query", "schema": {**TEXT, "enum": ["true", "false"]}}
    of_upload = Says(
        "Add a task file, or replace a task",
        version,
        status=201,
        body=file,
        parameters=[whether],
        errors=(403, 409, 422, *OF_BODY),
    )
    of_removal = Says("Remove a task", object_of(removed=TEXT), errors=_OF_CHANGE)
    of_rollback = Says("Put a task's former version back", version, errors=_OF_CHANGE)
    again, no_longer = "Offer a task again", "Offer a task no longer, until it is loaded"
    return [
        Described("POST", "/admin/tasks", upload, of_upload),
        Described("DELETE", "/admin/tasks/{name}", remove, of_removal),
        Described("POST", "/admin/tasks/{name}/rollback", roll_back, of_rollback),
        Described("POST", f"{model}/load", offering(True), Says(again, object_of(), errors=_OF_CHANGE)),
        Described("POST", f"{model}/unload", offering(False), Says(no_longer, object_of(), errors=_OF_CHANGE)),
    ]


async def _changing(service: Service, change: Callable[[], Any]) -> Any:
    """Change the hub in a thread, and take the change over before the client is told of it."""
    try:
        result = await asyncio.to_thread(change)
    except (TorchsnowError, OSError, MemoryError) as error:
        _raise_api_error(error, service)
    try:
        await service.poll()
    except Exception as error:  # the change is made, and the next poll takes it over
        log_fault("a change was not taken over yet", error)
    return result


def _raise_api_error(error: Exception, service: Service) -> NoReturn:
    """Say why the hub was not changed: 503 for what is this machine's fault, 422 for a bad file, 409 for the rest."""
    of_machine = api_error_of(system_shortage(error))
    if of_machine is not None:
        log_fault("the hub was not changed", error)
        raise of_machine from error
    if isinstance(error, TaskFileError):
        log_trouble("an upload was refused", reason=str(error))
        raise ApiError(422, "bad_task_file", f"this hub cannot take the upload: {error}") from error
    log_trouble("the hub was not changed", reason=str(error))
    why = _without_path(str(error), service.live.hub.folder.path)
    raise ApiError(409, "not_changed", f"the hub was not changed: {why}") from error


def _add(service: Service, content: bytes, replace: bool) -> tuple[str, Entry]:
    """Check a task file outside the hub, then add it; returns its name and what the index says of it."""
    hub = service.live.hub
    with tempfile.TemporaryDirectory(prefix="torchsnow-upload-") as folder:
        file = Path(folder) / "task.safetensors"
        file.write_bytes(content)
        try:
            task = load_task(file, hub.source, max_size_bytes=service.settings.max_upload_bytes)
        except TaskFileError as error:
            raise TaskFileError(str(error).removeprefix(f"task file {file}: ").replace(folder, "")) from error
    if task.name in hub.names() and not replace:
        raise ApiError(409, "exists", f"there is a task {task.name!r} already; send replace=true to replace it")
    return task.name, hub.add(task, replace=replace)


def _without_path(words: str, hub: Path) -> str:
    """What a message says without telling where the hub is."""
    words = words.replace(f"the hub {hub}", "the hub").replace(f"{hub}/", "")
    return words.replace(str(hub), "the hub") if hub.is_absolute() else words


def _validate_known(service: Service, name: str) -> None:
    if name not in service.live.now.entries:
        raise ApiError(404, "unknown_task", "there is no task of this name; GET /tasks lists those there are")
