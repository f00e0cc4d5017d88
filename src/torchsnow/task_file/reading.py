"""The header of a task file, read strictly and without its numbers."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from torchsnow.errors import TaskFileError, TorchsnowError
from torchsnow.io.files import clear_os_errors
from torchsnow.task_file.info import TaskInfo
from torchsnow.task_file.json_shape import parse_json
from torchsnow.task_file.metadata import decode_info

MAX_SIZE_BYTES = 256 * 2**20
"""Larger files are refused before they are read, unless the caller allows more."""
MAX_HEADER_BYTES = 16 * 2**20
METADATA_KEY = "torchsnow"
_FOREIGN = {b"\x80": "a Python pickle", b"PK": "a zip archive of pickles, as torch.save writes"}


def content_hash(content: bytes) -> str:
    """SHA-256 of a task file's bytes, in hex."""
    return hashlib.sha256(content).hexdigest()


def read_task_info(path: Path | str, max_size_bytes: int = MAX_SIZE_BYTES) -> TaskInfo:
    """What a task file says about itself, without reading its tensors. Raises TaskFileError as `load_task` does."""
    path = Path(path)
    with opened(path, max_size_bytes) as file, naming(path):
        start = file.read(9)
        return decode_header(start + file.read(_header_bytes(start) - 1))


def decode_header(content: bytes) -> TaskInfo:
    """From the file's first bytes: the header's length (8 bytes, little-endian), then the header, in JSON."""
    end = 8 + _header_bytes(content[:9])
    try:
        header = parse_json(content[8:end])
        text = header["__metadata__"][METADATA_KEY]
    except (ValueError, KeyError, TypeError) as error:
        raise TaskFileError(
            "its header does not speak of a task: it was not written by torchsnow, or it is damaged"
        ) from error
    if len(header["__metadata__"]) != 1 or not isinstance(text, str):
        raise TaskFileError(f"its metadata must be one text named {METADATA_KEY!r}, and nothing else")
    return decode_info(text)


def _header_bytes(start: bytes) -> int:
    size_bytes = int.from_bytes(start[:8], "little")
    if start[8:9] == b"{" and size_bytes <= MAX_HEADER_BYTES:
        return size_bytes
    for magic, kind in _FOREIGN.items():
        if start.startswith(magic):
            raise TaskFileError(f"not a .safetensors file but {kind}; it is never unpickled")
    raise TaskFileError("not a .safetensors file, or a damaged one: it does not begin with a header")


@contextmanager
def opened(path: Path, max_size_bytes: int) -> Iterator[BinaryIO]:
    """A task file, open to be read. Raises TaskFileError for what is no file, is too large or cannot be read."""
    with clear_os_errors("read task file", path, TaskFileError):
        if path.exists() and not path.is_file():
            raise TaskFileError(f"task file {path}: this is not a file; expected a .safetensors file")
        with path.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            if size_bytes > max_size_bytes:
                raise TaskFileError(
                    f"task file {path}: it has {size_bytes} bytes, more than the {max_size_bytes} allowed"
                )
            yield file


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of the block as a TaskFileError that names the file."""
    try:
        yield
    except TorchsnowError as error:
        raise TaskFileError(f"task file {path}: {error}") from error
