"""Replies, and how errors look: a sentence and a code, without paths and traces."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from torchsnow.io.shortage import shortage
from torchsnow.serving.api_error import ApiError, ClientGone, api_error_of

HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
)
"""Of every reply."""
_CLOSING = {408, 413, 415}  # what is left of the body is not waited for; after other errors it is read and dropped


def as_json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON reply. All in ASCII: names of files may hold what UTF-8 cannot."""
    return Response(json.dumps(value, allow_nan=False), status, headers, "application/json")


def as_error(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """An error, in the words of the Open Inference Protocol: the text under "error"."""
    closing = {"connection": "close"} if status in _CLOSING else {}
    return as_json({"error": message, "code": code}, status, {**closing, **(headers or {})})


# Handlers are coroutines: Starlette would send plain functions to a thread, which costs more than the reply.


async def on_api_error(request: Request, error: Exception) -> Response:
    """For Starlette: a ApiError as a reply."""
    assert isinstance(error, ApiError)
    return _as_reply(error)


async def on_client_gone(request: Request, error: Exception) -> Response:
    """For Starlette: nobody reads this."""
    assert isinstance(error, ClientGone)
    return as_error(499, "client_gone", "the client has closed the connection")


async def on_http_error(request: Request, error: Exception) -> Response:
    """For Starlette: an unknown address or method."""
    assert isinstance(error, HTTPException)
    codes = {404: "not_found", 405: "method_not_allowed"}
    return as_error(error.status_code, codes.get(error.status_code, "bad_request"), error.detail, error.headers)


async def on_fault(request: Request, error: Exception) -> Response:
    """For Starlette: a bug in torchsnow or a fault of the machine, which the guard logs."""
    of_machine = api_error_of(shortage(error))
    if of_machine is not None:
        return _as_reply(of_machine)
    return as_error(500, "internal", "our mistake; the server's log has it under this reply's X-Request-Id")


def _as_reply(api_error: ApiError) -> Response:
    wait = {} if api_error.retry_after_s is None else {"retry-after": str(api_error.retry_after_s)}
    return as_error(api_error.status, api_error.code, api_error.message, wait)
