"""The certificate of an HTTPS server, which is read again when its files change."""

from __future__ import annotations

import asyncio
import os
import ssl
from pathlib import Path

from torchsnow.errors import ServingError
from torchsnow.io.files import clear_os_errors
from torchsnow.serving.logs import log, log_trouble
from torchsnow.serving.loop import Loop

_EVERY_S = 2.0
Stamps = list[tuple[int, int, int]]


def check_certificate(cert: Path, key: Path) -> None:
    """Raise ServingError for files that cannot be used for TLS, before anything slow."""
    for file in (cert, key):
        with clear_os_errors("read", file, ServingError):
            file.read_bytes()
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password="")
    except (ssl.SSLError, ValueError) as error:
        raise ServingError(
            f"{cert} and {key} cannot be used for TLS ({error}); expected a certificate and its key in PEM, unencrypted"
        ) from error


class Certificate:
    """Keeps a server's TLS context up to date while its `loop` runs. Connections that are open keep what they have."""

    def __init__(self, context: ssl.SSLContext, cert: Path, key: Path) -> None:
        self._context, self._cert, self._key = context, cert, key
        self._used = self._bad = _stamps(cert, key)
        self.loop = Loop("certificate", self.poll, _EVERY_S)

    async def poll(self) -> bool:
        """Use the files if they are new. Returns whether they can be used: if not, the former ones still are."""
        stamps = await asyncio.to_thread(_stamps, self._cert, self._key)
        if stamps == self._used:
            return True
        try:
            await asyncio.to_thread(check_certificate, self._cert, self._key)
            self._context.load_cert_chain(self._cert, self._key)
        except (ServingError, OSError) as error:  # half replaced as yet, it may be
            if stamps != self._bad:
                log_trouble("the new certificate cannot be used; the former one still is", reason=str(error))
            self._bad = stamps
            return False
        self._used = self._bad = stamps
        log("a new certificate is used")
        return True


def _stamps(*files: Path) -> Stamps | None:
    """Numbers that change with what the names lead to, for certificates are renewed by other links; None if one is
    missing."""
    try:
        found = [os.stat(file) for file in files]
    except OSError:
        return None
    return [(own.st_ino, own.st_size, own.st_mtime_ns) for own in found]
