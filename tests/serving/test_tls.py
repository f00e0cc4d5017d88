"""HTTPS, without a proxy in front."""

from __future__ import annotations

import http.client
import shutil
import ssl
import subprocess
from pathlib import Path

import pytest
from running_server import running

from torchsnow.errors import ServingError
from torchsnow.hub import Hub
from torchsnow.hub.live import LiveHub
from torchsnow.serving.settings import ServeSettings

OPENSSL = shutil.which("openssl")


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate of its own for localhost, and its key."""
    if OPENSSL is None:
        pytest.skip("openssl is not installed")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    words = [
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
    ]
    more = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    subprocess.run([OPENSSL, *words, *more], check=True, capture_output=True, timeout=60)
    return cert, key


def test_a_server_speaks_https(hub: Hub, pair: tuple[Path, Path]) -> None:
    cert, key = pair
    with running(LiveHub(hub), tls_cert=cert, tls_key=key) as server:
        context = ssl.create_default_context(cafile=str(cert))
        connection = http.client.HTTPSConnection("127.0.0.1", server.port, timeout=30, context=context)
        connection.request("GET", "/v2/health/live")
        assert connection.getresponse().status == 200
        connection.close()
        with pytest.raises((OSError, http.client.HTTPException)):
            server.call("GET", "/v2/health/live")


def test_what_cannot_be_used_for_tls(pair: tuple[Path, Path], tmp_path: Path) -> None:
    cert, key = pair
    (tmp_path / "text").write_text("no PEM")
    for files, words in (
        ((cert, None), "both the certificate and its key"),
        ((None, key), "both the certificate and its key"),
        ((key, cert), "cannot be used for TLS"),
        ((cert, tmp_path / "text"), "cannot be used for TLS"),
        ((cert, tmp_path / "none"), "cannot read .*no such file"),
    ):
        with pytest.raises(ServingError, match=words):
            ServeSettings(tls_cert=files[0], tls_key=files[1])
