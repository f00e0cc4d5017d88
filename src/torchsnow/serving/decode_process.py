"""A process that decodes pictures for a server. It can be killed, as a thread cannot, and may crash by itself.

On stdin comes a line of JSON and the bytes of a picture, on stdout goes a line of JSON and its pixels. Nothing is
pickled, so a decoder that a picture has taken over can tell the server nothing but pixels and words.
"""

from __future__ import annotations

import json
import signal
import sys
from typing import Any, BinaryIO

from torchsnow.data.images import Cut, format_of
from torchsnow.io.shortage import shortage
from torchsnow.serving.logs import log_fault, write_logs
from torchsnow.serving.pictures import Picture, decode
from torchsnow.serving.refusal import Refusal, refusal_of

READY = b"ready\n"
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
_FAILED = "this image could not be decoded; the server's log says why"


def main() -> None:
    """Decode until stdin ends."""
    for stop in STOP_SIGNALS:  # they may be meant for the whole group, but the server has to drain
        signal.signal(stop, signal.SIG_IGN)
    write_logs()
    format_of(b"")  # loads Pillow's readers now rather than for the first picture
    requests, replies = sys.stdin.buffer, sys.stdout.buffer
    replies.write(READY)
    replies.flush()
    while line := requests.readline():
        given = json.loads(line)
        # Should the server be gone, and nobody there to kill this process, it ends all the same.
        signal.alarm(given["seconds"])
        _answer(given, requests.read(given["bytes"]), replies)
        signal.alarm(0)


def _answer(given: dict[str, Any], content: bytes, replies: BinaryIO) -> None:
    pixels: list[bytes] = []
    refused: Refusal | None = None
    try:
        cuts = [Cut(*numbers) for numbers in given["cuts"]]
        pixels = decode(Picture(content, given["called"]), cuts, given["max_pixels"], given["formats"])
    except Refusal as error:
        refused = error
    except Exception as error:
        log_fault("a picture failed", error)
        refused = refusal_of(shortage(error)) or Refusal(500, "internal", _FAILED)
    refusal = refused and [refused.status, refused.code, refused.message]
    if refused and refusal and refused.retry_after_s is not None:
        refusal.append(refused.retry_after_s)
    replies.write(json.dumps(refusal, allow_nan=False).encode() + b"\n" + b"".join(pixels))
    replies.flush()
