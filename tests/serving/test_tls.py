"""HTTPS, without a proxy in front."""

from __future__ import annotations

import http.client
import shutil
import ssl
import subprocess
from pathlib import Path

import pytest
from running_server import Running, running

from torchsnow.errors import ServingError
from torchsnow.hub import Hub
from torchsnow.hub.live import LiveHub
from torchsnow.serving import certificate
from torchsnow.serving.settings import ServeSettings

OPENSSL = shutil.which("openssl")


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate of its own for localhost, and its key."""
    if OPENSSL is None:
        pytest.skip("openssl is not installed")
    return make_pair(tmp_path / "cert.pem", tmp_path / "key.pem")


def make_pair(cert: Path, key: Path) -> tuple[Path, Path]:
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    more = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    subprocess.run([str(OPENSSL), *words.split(), *more], check=True, capture_output=True, timeout=60)
    return cert, key


def test_a_server_speaks_https(hub: Hub, pair: tuple[Path, Path]) -> None:
    cert, key = pair
    with running(LiveHub(hub), tls_cert=cert, tls_key=key, decode_processes=1) as server:
        context = ssl.create_default_context(cafile=str(cert))
        connection = http.client.HTTPSConnection("127.0.0.1", server.port, timeout=30, context=context)
        connection.request("GET", "/v2/health/live")
        assert connection.getresponse().status == 200
        connection.close()
        with pytest.raises((OSError, http.client.HTTPException)):
            server.call("GET", "/v2/health/live")


def shown(server: Running) -> bytes:
    """The certificate that a new connection gets."""
    return ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate(("127.0.0.1", server.port), timeout=30))


def test_a_renewed_certificate_is_used_for_new_connections(
    hub: Hub, pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Behind links, as those who renew certificates keep them; until both files fit, the former one is used."""
    monkeypatch.setattr(certificate, "_EVERY_S", 0.02)
    cert, key = tmp_path / "live-cert.pem", tmp_path / "live-key.pem"
    newer = make_pair(tmp_path / "cert2.pem", tmp_path / "key2.pem")
    for link, file in zip((cert, key), pair, strict=True):
        link.symlink_to(file)
    first, second = (ssl.PEM_cert_to_DER_cert(file.read_text()) for file in (pair[0], newer[0]))
    with running(LiveHub(hub), tls_cert=cert, tls_key=key, decode_processes=1) as server:
        assert shown(server) == first
        relink(cert, newer[0])
        server.wait_until(lambda: "the new certificate cannot be used" in caplog.text)
        assert shown(server) == first
        assert 'torchsnow_loop_age_seconds{loop="certificate"}' in server.service.metrics.text()
        relink(key, newer[1])
        server.wait_until(lambda: shown(server) == second)
        key.unlink()
        server.wait_until(lambda: caplog.text.count("the new certificate cannot be used") == 2)
        assert shown(server) == second


def relink(link: Path, file: Path) -> None:
    """In one step, as those who renew certificates do it."""
    new = link.with_suffix(".new")
    new.symlink_to(file)
    new.replace(link)


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
