"""Multipart forms, as all kinds of clients send them."""

from __future__ import annotations

import base64
import binascii
import quopri
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.message import Message

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser

from torchsnow.serving.refusal import Refusal

_CODINGS: dict[str, Callable[[bytes], bytes]] = {"base64": base64.b64decode, "quoted-printable": quopri.decodestring}


@dataclass(frozen=True)
class Part:
    """One field of a form; `file_name` is None for what is no file, or has no name."""

    name: str
    file_name: str | None
    content: bytes


def read_form(content: bytes, boundary: bytes, max_parts: int) -> Iterator[Part]:
    """The parts of a multipart/form-data body; what stands before the first and behind the last is passed over.

    Raises Refusal: 400 for a body that is none, 413 for one of more parts.
    """
    parser = _Parser(boundary, max_parts)
    try:
        parser.parse(_trimmed(content, boundary))
    except FormParserError as error:
        raise Refusal(400, "bad_form", "the body is not a valid multipart form") from error
    for headers, chunks in parser.parts:
        yield _part(headers, b"".join(chunks))


def _trimmed(content: bytes, boundary: bytes) -> bytes:
    """A body from its first delimiter to its last, without a preamble and an epilogue."""
    delimiter = b"--" + boundary
    if not content.startswith(delimiter):
        content = content[content.find(b"\r\n" + delimiter) + 2 :]
    end = content.find(b"\r\n" + delimiter + b"--")
    if not boundary or (end < 0 and not content.startswith(delimiter + b"--")):
        raise Refusal(400, "bad_form", "the form is cut off before its end")
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
            raise Refusal(413, "too_many_parts", f"more than {self._max_parts} parts")
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
        raise Refusal(400, "bad_form", "a part of the form has no name")
    coding = headers.get("content-transfer-encoding", "binary").strip().lower()
    if coding not in ("binary", "8bit", "7bit", *_CODINGS):
        raise Refusal(400, "bad_form", f"a part of the form is encoded in {coding[:20]!r}; send it as it is")
    try:
        return Part(name, message.get_filename(), _CODINGS.get(coding, bytes)(content))
    except binascii.Error as error:
        raise Refusal(400, "bad_form", "a part of the form is not the base64 that it is said to be") from error
