"""How long the server takes to read bodies that were made to be slow, per byte, while they double in size.

    python benchmarks/hostile_bodies.py --largest 4194304

The time per byte of every row should stay level or fall: bodies are refused or read in time linear in their bytes.
Times are CPU time, the best of three.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

from torchsnow.serving.api_error import ApiError
from torchsnow.serving.asked import read_asked
from torchsnow.serving.settings import ServeSettings

SMALLEST_BYTES = 2**14
_PART = b'--b\r\ncontent-disposition: form-data; name="image"; filename="x"\r\n\r\n'
_FIELD = b'--b\r\ncontent-disposition: form-data; name="task"\r\n\r\nx\r\n'
_END = b"\r\n--b--\r\n"
JSON: dict[str, Callable[[int], bytes]] = {
    "a text without an end, full of quotes": lambda n: b'["' + b'\\"' * min(n // 4, 19_000) + b"a" * (n // 2),
    "texts without an end": lambda n: b'"a' * min(n // 2, 19_000) + b"\\" * (n // 2),
    "escapes of backslashes": lambda n: b'{"images": ["' + b"\\\\" * (n // 2) + b'"]}',
    "escapes of characters": lambda n: b'{"images": ["' + b"\\u00e9" * (n // 6) + b'"]}',
    "empty texts": lambda n: b'{"images": [' + b'"",' * (n // 3) + b'""]}',
    "keys, and the last occurs twice": lambda n: b"{" + b"".join(_keys(n // 10)) + b'"x": 0, "x": 0}',
    "brackets": lambda n: b"[" * n,
    "whole numbers": lambda n: b"[" + b",".join([b"1" * 4_300] * (n // 4_301)) + b"]",
    "one fraction": lambda n: b"[0." + b"1" * n + b"]",
}
FORMS: dict[str, Callable[[int], bytes]] = {
    "ends of lines": lambda n: _PART + b"\r\n" * (n // 2) + _END,
    "almost boundaries": lambda n: _PART + b"\r\n--" * (n // 4) + _END,
    "lines before the first part": lambda n: b"\r\n" * (n // 2) + _PART + _END,
    "a long head": lambda n: b"--b\r\ncontent-disposition: " + b'a="\\"";' * (n // 7) + b"\r\n\r\n" + _END,
    "many small fields": lambda n: _FIELD * (n // len(_FIELD)) + b"--b--\r\n",
}


def _keys(number: int) -> Iterator[bytes]:
    return (b'"%d": 0,' % key for key in range(min(number, 9_900)))


def seconds(body: bytes, kind: str) -> float:
    """CPU seconds for one body, whatever becomes of it."""
    settings, found = ServeSettings(), []
    for _ in range(3):
        start_s = time.process_time()
        with suppress(ApiError):
            read_asked(body, kind, settings)
        found.append(time.process_time() - start_s)
    return min(found)


def main() -> None:
    """Print one row per shape, one column per size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--largest", type=int, default=2**22, help="bytes of the largest body")
    largest, sizes = parser.parse_args().largest, [SMALLEST_BYTES]
    while 2 * sizes[-1] <= largest:
        sizes.append(2 * sizes[-1])
    print(f"{'nanoseconds per byte, by KiB':40}", *(f"{size // 1024:8}" for size in sizes))
    for kind, shapes in (("application/json", JSON), ("multipart/form-data; boundary=b", FORMS)):
        for name, make in shapes.items():
            bodies = [make(size) for size in sizes]
            print(f"{name:40}", *(f"{1e9 * seconds(body, kind) / len(body):8.1f}" for body in bodies), flush=True)


if __name__ == "__main__":
    main()
