"""A small client, with nothing but the standard library."""

from __future__ import annotations

import json
import re
import secrets
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from torchsnow.errors import ServingError
from torchsnow.io.files import clear_os_errors

_MAX_REPLY_BYTES = 64 * 2**20


class Client:
    """Asks a server for predictions.

    `url` is the server's, as in "http://127.0.0.1:8000"; `token` what it wants as a bearer token. Raises ServingError
    for an address of another kind.
    """

    def __init__(self, url: str, token: str | None = None, timeout_s: float = 30.0) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ServingError(f"{url!r} is no address of a server; expected one like http://127.0.0.1:8000")
        self.url, self.timeout_s = url.rstrip("/"), timeout_s
        self._headers = {} if token is None else {"authorization": f"Bearer {token}"}

    def predict(
        self,
        images: Sequence[Path | str | bytes],
        tasks: Iterable[str] | None = None,
        on_bad: Callable[[dict[str, Any]], None] | None = None,
    ) -> list[list[dict[str, Any]]]:
        """For each image, given as a file or its bytes, the answers of the named tasks, by default of all.

        An answer has the keys `task`, `version`, `sha256`, `label`, `labels` (that one alone, or in a task of several
        labels an image those that reach their thresholds), `ranking` (the classes, the most likely first),
        `probabilities` (by class) and `unknown_score` (above 1, the image is unlike the task's own; None where that is
        not known). A task that failed for an image is passed to `on_bad`, with the keys `task`,
        `version`, `sha256`, `error` and `code`, and the others answer; without `on_bad`, ServingError is raised, as it
        is with the server's reason, or when it cannot be reached.
        """
        boundary = secrets.token_hex(16)
        parts = [_picture(image, f"number {number}") for number, image in enumerate(images, 1)]
        parts += [_part("task", name.encode()) for name in tasks or ()]
        body = b"".join(f"--{boundary}\r\n".encode() + part for part in parts) + f"--{boundary}--\r\n".encode()
        reply = self._call("/predict", body, f"multipart/form-data; boundary={boundary}")
        for failure in (failure for image in reply["images"] for failure in image.get("errors", ())):
            if on_bad is None:
                raise ServingError(f"the task {failure['task']!r} has no answer: {failure['error']}")
            on_bad(failure)
        return [image["answers"] for image in reply["images"]]

    def tasks(self) -> list[dict[str, Any]]:
        """The server's tasks: name, version, classes, accuracy and dates. Raises ServingError as `predict` does."""
        found: list[dict[str, Any]] = self._call("/tasks")["tasks"]
        return found

    def _call(self, path: str, body: bytes | None = None, content_type: str = "") -> Any:
        headers = {**self._headers, **({"content-type": content_type} if body is not None else {})}
        request = urllib.request.Request(self.url + path, body, headers)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout_s) as reply:
                return json.loads(reply.read(_MAX_REPLY_BYTES), parse_constant=_reject_constant)
        except urllib.error.HTTPError as error:
            with error:
                raise ServingError(f"the server {self.url} refused: {_reason(error)}") from error
        except (OSError, HTTPException, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            raise ServingError(f"the server {self.url} cannot be used: {reason}") from error


def _picture(image: Path | str | bytes, number: str) -> bytes:
    content, name = (image, number) if isinstance(image, bytes) else (_read(Path(image)), Path(image).name)
    escaped = re.sub(r'["\r\n]', lambda found: quote(found[0]), name)
    return _part("image", content, f' filename="{escaped}"')


def _part(name: str, content: bytes, more: str = "") -> bytes:
    separator = ";" if more else ""
    return (
        f'content-disposition: form-data; name="{name}"{separator}{more}\r\n\r\n'.encode("utf-8", "replace")
        + content
        + b"\r\n"
    )


def _read(path: Path) -> bytes:
    with clear_os_errors("read the image", path, ServingError):
        return path.read_bytes()


def _reject_constant(text: str) -> None:
    raise ValueError(f"its reply holds {text}, which is no JSON")


def _reason(error: urllib.error.HTTPError) -> str:
    try:
        return f"{json.loads(error.read(2**16))['error']} ({error.code})"
    except (OSError, ValueError, KeyError, TypeError):
        return f"status {error.code}"
