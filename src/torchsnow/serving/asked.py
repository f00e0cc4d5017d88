"""What a request asks for: a form as all kinds of clients send them, strict JSON, or one picture alone."""

from __future__ import annotations

import base64
import binascii
import quopri
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from email.message import Message
from typing import Any
from urllib.parse import unquote

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from torchsnow.data.formats import format_of
from torchsnow.serving.api_error import ApiError
from torchsnow.serving.pictures import Picture, picture
from torchsnow.serving.settings import ServeSettings
from torchsnow.task_file.json_shape import parse_json, validate_shape

_TO_BASE64 = str.maketrans("-_", "+/", " \t\r\n")
_MAX_FIELD_BYTES = 256
_MAX_STRUCTURE_BYTES = 64 * 2**10  # of a JSON body without its texts
_MAX_QUOTES = 20_000  # of the texts in a JSON body: two for each


@dataclass(frozen=True)
class Asked:
    """Pictures, the names that the client has for them, the tasks that are asked for (None for all of them), and
    whether the answers shall be explained, and have heat maps."""

    images: list[Picture]
    image_names: list[str | None]
    tasks: list[str] | None
    explain: bool
    heat: bool


def read_asked(
    content: bytes, content_type: str, settings: ServeSettings, query: Sequence[tuple[str, str]] = ()
) -> Asked:
    """What a body asks for: a form with files `image` and fields `task`, `explain` and `heat`; JSON {"images":
    [base64], "tasks": [...], "explain": true, "heat": true}; or one picture alone, with all else in `query`.

    Raises ApiError: 415 for another content type, 400 for a body that is not what it says, 413 for too many images.
    """
    kind, options = parse_options_header(content_type)
    if kind == b"multipart/form-data":
        asked = _form(content, options.get(b"boundary", b""), settings)
    elif kind == b"application/json":
        asked = _json(content, settings)
    elif kind.startswith(b"image/") or kind == b"application/octet-stream":
        asked = _raw(content, query)
    else:
        raise ApiError(415, "content_type", "send multipart/form-data, application/json, or a picture as image/jpeg")
    if not asked.images:
        raise ApiError(400, "no_image", "there is no image in the request; send at least one, named 'image'")
    validate_count(len(asked.images), settings)
    if asked.tasks is not None and not 0 < len(asked.tasks) <= settings.max_tasks:
        raise ApiError(400, "tasks", f"name 1 to {settings.max_tasks} tasks, or none to ask all of them")
    return asked


def validate_count(num_images: int, settings: ServeSettings) -> None:
    """Raise ApiError (413) for more images than one request may have."""
    if num_images > settings.max_images:
        raise ApiError(413, "too_many_images", f"{num_images} images; a request may have {settings.max_images}")


def strict_json(content: bytes, max_depth: int) -> Any:
    """The value of a JSON text. Raises ApiError (400) for any other, one nested too deeply or of too many parts."""
    if content.count(b'"') > _MAX_QUOTES:
        raise ApiError(400, "bad_json", f"the JSON has more than {_MAX_QUOTES // 2} texts")
    structure = _without_texts(content)
    if len(structure) > _MAX_STRUCTURE_BYTES:
        raise ApiError(400, "bad_json", f"the JSON has more than {_MAX_STRUCTURE_BYTES} bytes besides its texts")
    depth = 0
    for character in structure:
        depth += (character in b"[{") - (character in b"]}")
        if depth > max_depth:
            raise ApiError(400, "bad_json", f"the JSON is nested more than {max_depth} levels deep")
    try:
        return parse_json(content.decode("utf-8-sig"))  # of bytes it would take UTF-16, which was not looked through
    except ValueError as error:
        raise ApiError(400, "bad_json", "the body is not valid JSON") from error


def _without_texts(content: bytes) -> bytes:
    """What stands between the texts of a JSON text, valid or not, in one look at each byte.

    A pattern for a text would, where none ends, look for the end again from every quote.
    """
    unescaped = content.replace(b"\\\\", b"").replace(b'\\"', b"")
    return b"".join(unescaped.split(b'"')[::2])


def from_base64(text: str, number: int = 0) -> bytes:
    """The bytes that a text stands for: base64 with either alphabet, with or without padding, in lines or in one, and
    behind "data:image/png;base64," or not, where it may have escapes as %2B.

    Raises ApiError (422), which names the image by its number, for anything else; nothing is ever fetched from an
    address.
    """
    text = text.strip()
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        if not comma or not head.lower().rstrip().endswith(";base64"):
            raise ApiError(422, "bad_base64", f"the image number {number + 1} is a data: address without ';base64,'")
        text = unquote(text)
    bare = text.translate(_TO_BASE64).rstrip("=")
    try:
        return base64.b64decode(bare + "=" * (-len(bare) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ApiError(
            422, "bad_base64", f"the image number {number + 1} is not base64; addresses of images are not fetched"
        ) from error


def _json(content: bytes, settings: ServeSettings) -> Asked:
    values = strict_json(content, settings.max_json_depth)
    try:
        values = {**_UNSAID, **values} if isinstance(values, dict) else values
        validate_shape(values, _SHAPE, "body")
    except ValueError as error:
        raise ApiError(400, "bad_request", str(error)) from error
    validate_count(len(values["images"]), settings)
    images = [picture(from_base64(text, number), None, number) for number, text in enumerate(values["images"])]
    return Asked(images, [None] * len(images), values["tasks"], values["explain"], values["heat"])


_SHAPE = {"images": [str], "tasks": (None, [str]), "explain": bool, "heat": bool}
_UNSAID = {"tasks": None, "explain": False, "heat": False}
_FLAGS = ("explain", "heat")


def _raw(content: bytes, query: Sequence[tuple[str, str]]) -> Asked:
    tasks = [value for name, value in query if name == "task"]
    flags = {name: value for name, value in query if name != "task"}
    if not flags.keys() <= set(_FLAGS) or not set(flags.values()) <= {"true", "false"}:
        raise ApiError(
            400, "bad_request", "the address may have '?task=NAME', several times, 'explain=true' and 'heat=true'"
        )
    images = [picture(content, None, 0)] if content else []
    return Asked(images, [None], tasks or None, *(flags.get(name) == "true" for name in _FLAGS))


def _form(content: bytes, boundary: bytes, settings: ServeSettings) -> Asked:
    images: list[Picture] = []
    image_names: list[str | None] = []
    tasks: list[str] = []
    flags = dict.fromkeys(_FLAGS, False)
    for part in read_form(content, boundary, settings.max_images + settings.max_tasks + len(flags)):
        is_file = part.file_name is not None
        if part.name == "image" and (is_file or format_of(part.content) is not None):
            images.append(picture(part.content, part.file_name, len(images)))
            image_names.append(part.file_name or None)
        elif part.name == "image":
            raise ApiError(400, "bad_request", "'image' is a file: with curl, -F image=@photo.jpg")
        elif is_file:
            raise ApiError(400, "bad_request", "an unknown file; pictures are named 'image'")
        elif part.name == "task" and len(part.content) <= _MAX_FIELD_BYTES:
            tasks.append(part.content.decode("utf-8", "replace"))
        elif part.name in flags and part.content in (b"true", b"false"):
            flags[part.name] = part.content == b"true"
        else:
            raise ApiError(
                400,
                "bad_request",
                "the fields of the form are 'image', 'task', and 'explain' and 'heat', true or false",
            )
    validate_count(len(images), settings)
    if len(tasks) > settings.max_tasks:
        raise ApiError(413, "too_many_parts", f"more than {settings.max_tasks} tasks")
    return Asked(images, image_names, tasks or None, **flags)


_CODINGS: dict[str, Callable[[bytes], bytes]] = {"base64": base64.b64decode, "quoted-printable": quopri.decodestring}


@dataclass(frozen=True)
class Part:
    """One field of a form; `file_name` is None for what is no file, or has no name."""

    name: str
    file_name: str | None
    content: bytes


def read_form(content: bytes, boundary: bytes, max_parts: int) -> Iterator[Part]:
    """The parts of a multipart/form-data body; what stands before the first and behind the last is passed over.

    Raises ApiError: 400 for a body that is none, 413 for one of more parts.
    """
    try:
        parser = _Parser(boundary, max_parts)  # refuses a boundary that is too long
        parser.parse(_trimmed(content, boundary))
    except FormParserError as error:
        raise ApiError(400, "bad_form", "the body is not a valid multipart form") from error
    for headers, chunks in parser.parts:
        yield _part(headers, b"".join(chunks))


def _trimmed(content: bytes, boundary: bytes) -> bytes:
    """A body from its first delimiter to its last, without a preamble and an epilogue."""
    delimiter = b"--" + boundary
    if not content.startswith(delimiter):
        content = content[content.find(b"\r\n" + delimiter) + 2 :]
    end = content.find(b"\r\n" + delimiter + b"--")
    if not boundary or (end < 0 and not content.startswith(delimiter + b"--")):
        raise ApiError(400, "bad_form", "the form is cut off before its end")
    return content[: max(0, end + 2) + len(delimiter) + 2] + b"\r\n"


class _Parser:
    """Collects what the library's parser finds."""

    def __init__(self, boundary: bytes, max_parts: int) -> None:
        self.parts: list[tuple[dict[str, str], list[bytes]]] = []
        self._max_parts = max_parts
        self._name = self._value = b""
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._add_name,
                "on_header_value": self._add_value,
                "on_header_end": self._end_header,
                "on_part_data": self._add_data,
            },
        )

    def parse(self, content: bytes) -> None:
        self._parser.write(content)
        self._parser.finalize()

    def _begin(self) -> None:
        if len(self.parts) >= self._max_parts:
            raise ApiError(413, "too_many_parts", f"more than {self._max_parts} parts")
        self.parts.append(({}, []))

    def _add_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        self.parts[-1][0][self._name.decode("latin-1").lower()] = self._value.decode("utf-8", "replace")
        self._name = self._value = b""

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        self.parts[-1][1].append(data[start:end])


def _part(headers: dict[str, str], content: bytes) -> Part:
    message = Message()  # knows names that are quoted, escaped, or given as filename*=UTF-8''...
    message["content-disposition"] = headers.get("content-disposition", "").replace("\r", " ").replace("\n", " ")
    name = message.get_param("name", header="content-disposition")
    if not isinstance(name, str):
        raise ApiError(400, "bad_form", "a part of the form has no name")
    coding = headers.get("content-transfer-encoding", "binary").strip().lower()
    if coding not in ("binary", "8bit", "7bit", *_CODINGS):
        raise ApiError(
            400, "bad_form", f"a part of the form is encoded in {coding[:20]!r}; send it without an encoding"
        )
    try:
        return Part(name, message.get_filename(), _CODINGS.get(coding, bytes)(content))
    except binascii.Error as error:
        raise ApiError(400, "bad_form", "a part of the form is not the base64 that it is said to be") from error
