"""What clients send: counted while it arrives, and read strictly when it is there."""

from __future__ import annotations

import asyncio
import base64
import binascii
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from python_multipart.multipart import parse_options_header
from starlette.requests import Request

from torchsnow.data.formats import format_of
from torchsnow.serving.callers import caller
from torchsnow.serving.forms import read_form
from torchsnow.serving.pictures import Picture, picture
from torchsnow.serving.refusal import ClientGone, Refusal
from torchsnow.serving.settings import ServeSettings
from torchsnow.task_file.json_shape import check_shape, parse_json

_MAX_QUOTES = 20_000  # of the texts in a JSON body: two for each
_MAX_STRUCTURE_BYTES = 64 * 2**10  # of a JSON body without its texts
_MAX_FIELD_BYTES = 256
_TO_BASE64 = str.maketrans("-_", "+/", " \t\r\n")
_STOP_S = 1.0  # for a body to arrive, when the server ends
_GRACE_S = 5.0  # for a body to come more slowly than it must


@dataclass(frozen=True)
class Asked:
    """Pictures, the names that the client has for them, the tasks that are asked for (None for all of them), and
    whether the answers shall be explained."""

    images: list[Picture]
    image_names: list[str | None]
    tasks: list[str] | None
    explain: bool


@dataclass(eq=False)
class _Body:
    """One body, as far as it has come. `end_s` is when it must be complete, `due_s` when the client falls behind."""

    caller: str
    end_s: float
    due_s: float
    timer: asyncio.Timeout = field(default_factory=lambda: asyncio.timeout(None))
    size_bytes: int = 0
    is_complete: bool = False
    refusal: Refusal | None = None

    def arrived(self, num_bytes: int, rate: int) -> None:
        """Note some bytes, at the pace of so many a second."""
        self.size_bytes += num_bytes
        self.due_s = min(_now_s() + _GRACE_S, self.due_s + num_bytes / rate)
        self.wait()

    def wait(self) -> None:
        """Wait for more, as long as there is time."""
        self.timer.reschedule(min(self.end_s, self.due_s))

    def refuse(self, refusal: Refusal, end_s: float) -> None:
        """Wait no longer than that."""
        self.refusal, self.end_s = refusal, min(self.end_s, end_s)
        if not self.timer.expired():
            self.wait()


class Bodies:
    """Reads the bodies of requests, and knows how many bytes all of them hold together."""

    def __init__(self, settings: ServeSettings) -> None:
        self._settings = settings
        self._held: set[_Body] = set()
        self._held_bytes = 0
        self._end_s = math.inf

    def end(self) -> None:
        """The server stops: bodies that are still arriving have to be there in a moment."""
        self._end_s = _now_s() + _STOP_S
        for body in self._held:
            if not body.is_complete:
                body.refuse(_stopping(), self._end_s)

    @contextmanager
    def holding(self) -> Iterator[Callable[[Request, int], Awaitable[bytes]]]:
        """The reader of one request's body; its bytes count as held until the block ends.

        The reader takes the request and the most bytes that it may have. It raises Refusal: 413 for more, known before
        they are read where the client says so, 429 when all requests together hold too much and its caller the most,
        408 when the client is too slow, 415 for a compressed body; and ClientGone.
        """
        body = _Body("", 0.0, 0.0)

        async def read(request: Request, max_bytes: int) -> bytes:
            _check_headers(request, max_bytes)
            start_s = _now_s()
            body.caller = caller(request.client)
            body.end_s, body.due_s = start_s + self._settings.body_timeout_s, start_s + _GRACE_S
            self._held.add(body)
            content = bytearray()
            try:
                async with body.timer:
                    body.wait()
                    if self._end_s < math.inf:
                        body.refuse(_stopping(), self._end_s)
                    async for chunk in _chunks(request):
                        if len(content) + len(chunk) > max_bytes:
                            raise _too_large(max_bytes)
                        body.arrived(len(chunk), self._settings.body_rate)
                        self._held_bytes += len(chunk)
                        if self._held_bytes > self._settings.max_held_bytes:
                            self._make_room(body)
                        content += chunk
            except TimeoutError:
                raise body.refusal or Refusal(408, "slow", "the request did not arrive in time") from None
            body.is_complete = True
            return bytes(content)

        try:
            yield read
        finally:
            self._let_go(body)

    def _make_room(self, newest: _Body) -> None:
        """When too much is held, refuse a body that has not arrived yet, of the caller that holds the most.

        Raises Refusal (429) if that is the caller of `newest`, or there is none.
        """
        while self._held_bytes > self._settings.max_held_bytes:
            by_caller: Counter[str] = Counter()
            for body in self._held:
                by_caller[body.caller] += body.size_bytes
            (greediest, most), own = by_caller.most_common(1)[0], by_caller[newest.caller]
            unfinished = [body for body in self._held if body.caller == greediest and not body.is_complete]
            if most == own or not unfinished:
                raise _busy()
            largest = max(unfinished, key=lambda body: body.size_bytes)
            largest.refuse(_busy(), _now_s())
            self._let_go(largest)

    def _let_go(self, body: _Body) -> None:
        if body in self._held:
            self._held.discard(body)
            self._held_bytes -= body.size_bytes


def _busy() -> Refusal:
    return Refusal(429, "busy", "too many requests at once; try again later", 1)


def _stopping() -> Refusal:
    return Refusal(503, "stopping", "the server stops before the request has arrived; try again", 1)


def _now_s() -> float:
    return asyncio.get_running_loop().time()


async def _chunks(request: Request) -> Any:
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        yield message.get("body", b"")
        more = message.get("more_body", False)


def _check_headers(request: Request, max_bytes: int) -> None:
    if request.headers.get("content-encoding", "identity") != "identity":
        raise Refusal(415, "compressed", "compressed bodies are not taken; pictures are compressed already")
    length = request.headers.get("content-length", "0")
    if not length.isascii() or not length.isdigit():
        raise Refusal(400, "bad_request", "the Content-Length is no number")
    if len(length) > 18 or int(length) > max_bytes:
        raise _too_large(max_bytes)


def _too_large(max_bytes: int) -> Refusal:
    return Refusal(413, "too_large", f"more than the {max_bytes} bytes that a request may have")


def read_asked(
    content: bytes, content_type: str, settings: ServeSettings, query: Sequence[tuple[str, str]] = ()
) -> Asked:
    """What a body asks for: a form with files `image` and fields `task` and `explain`; JSON {"images": [base64],
    "tasks": [...], "explain": true}; or one picture as it is, with the tasks in `query`.

    Raises Refusal: 415 for another content type, 400 for a body that is not what it says, 413 for too many images.
    """
    kind, options = parse_options_header(content_type)
    if kind == b"multipart/form-data":
        asked = _form(content, options.get(b"boundary", b""), settings)
    elif kind == b"application/json":
        asked = _json(content, settings)
    elif kind.startswith(b"image/") or kind == b"application/octet-stream":
        asked = _raw(content, query)
    else:
        raise Refusal(415, "content_type", "send multipart/form-data, application/json, or a picture as image/jpeg")
    if not asked.images:
        raise Refusal(400, "no_image", "there is no image in the request; send at least one, named 'image'")
    refuse_many(len(asked.images), settings)
    if asked.tasks is not None and not 0 < len(asked.tasks) <= settings.max_tasks:
        raise Refusal(400, "tasks", f"name 1 to {settings.max_tasks} tasks, or none to ask all of them")
    return asked


def refuse_many(num_images: int, settings: ServeSettings) -> None:
    """Raise Refusal (413) for more images than one request may have."""
    if num_images > settings.max_images:
        raise Refusal(413, "too_many_images", f"{num_images} images; a request may have {settings.max_images}")


def strict_json(content: bytes, max_depth: int) -> Any:
    """The value of a JSON text. Raises Refusal (400) for any other, one nested too deeply or of too many parts."""
    if content.count(b'"') > _MAX_QUOTES:
        raise Refusal(400, "bad_json", f"the JSON has more than {_MAX_QUOTES // 2} texts")
    structure = _without_texts(content)
    if len(structure) > _MAX_STRUCTURE_BYTES:
        raise Refusal(400, "bad_json", f"the JSON has more than {_MAX_STRUCTURE_BYTES} bytes besides its texts")
    depth = 0
    for character in structure:
        depth += (character in b"[{") - (character in b"]}")
        if depth > max_depth:
            raise Refusal(400, "bad_json", f"the JSON is nested more than {max_depth} levels deep")
    try:
        return parse_json(content.decode("utf-8-sig"))  # of bytes it would take UTF-16, which was not looked through
    except ValueError as error:
        raise Refusal(400, "bad_json", "the body is not valid JSON") from error


def _without_texts(content: bytes) -> bytes:
    """What stands between the texts of a JSON text, valid or not, in one look at each byte.

    A pattern for a text would, where none ends, look for the end anew from every quote.
    """
    unescaped = content.replace(b"\\\\", b"").replace(b'\\"', b"")
    return b"".join(unescaped.split(b'"')[::2])


def from_base64(text: str) -> bytes:
    """The bytes that a text stands for: base64 with either alphabet, with or without padding, in lines or in one, and
    behind "data:image/png;base64," or not.

    Raises Refusal (422) for anything else; nothing is ever fetched from an address.
    """
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        if not comma or not head.lower().rstrip().endswith(";base64"):
            raise Refusal(422, "bad_base64", "an image is a data: address without ';base64,'")
    bare = text.translate(_TO_BASE64).rstrip("=")
    try:
        return base64.b64decode(bare + "=" * (-len(bare) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refusal(422, "bad_base64", "an image is not base64; addresses of images are not fetched") from error


def _json(content: bytes, settings: ServeSettings) -> Asked:
    values = strict_json(content, settings.max_json_depth)
    try:
        check_shape({**_UNSAID, **values} if isinstance(values, dict) else values, _SHAPE, "body")
    except ValueError as error:
        raise Refusal(400, "bad_request", str(error)) from error
    refuse_many(len(values["images"]), settings)
    images = [picture(from_base64(text), None, number) for number, text in enumerate(values["images"])]
    return Asked(images, [None] * len(images), values.get("tasks"), values.get("explain", False))


_SHAPE = {"images": [str], "tasks": (None, [str]), "explain": bool}
_UNSAID = {"tasks": None, "explain": False}


def _raw(content: bytes, query: Sequence[tuple[str, str]]) -> Asked:
    fields = dict(query)
    if not fields.keys() <= {"task", "explain"} or fields.get("explain", "true") not in ("true", "false"):
        raise Refusal(400, "bad_request", "the address may have '?task=NAME', several times, and 'explain=true'")
    tasks = [value for name, value in query if name == "task"]
    return Asked([picture(content, None, 0)] if content else [], [None], tasks or None, fields.get("explain") == "true")


def _form(content: bytes, boundary: bytes, settings: ServeSettings) -> Asked:
    images: list[Picture] = []
    image_names: list[str | None] = []
    tasks: list[str] = []
    explain = False
    for part in read_form(content, boundary, settings.max_images + settings.max_tasks + 1):
        is_file = part.file_name is not None
        if part.name == "image" and (is_file or format_of(part.content) is not None):
            images.append(picture(part.content, part.file_name, len(images)))
            image_names.append(part.file_name or None)
        elif part.name == "image":
            raise Refusal(400, "bad_request", "'image' is a file: with curl, -F image=@photo.jpg")
        elif is_file:
            raise Refusal(400, "bad_request", "an unknown file; pictures are named 'image'")
        elif part.name == "task" and len(part.content) <= _MAX_FIELD_BYTES:
            tasks.append(part.content.decode("utf-8", "replace"))
        elif part.name == "explain" and part.content in (b"true", b"false"):
            explain = part.content == b"true"
        else:
            raise Refusal(400, "bad_request", "the fields of the form are 'image', 'task' and 'explain', true or false")
    refuse_many(len(images), settings)
    if len(tasks) > settings.max_tasks:
        raise Refusal(413, "too_many_parts", f"more than {settings.max_tasks} tasks")
    return Asked(images, image_names, tasks or None, explain)
