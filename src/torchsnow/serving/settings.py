"""What a server allows, and how it batches."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Self

from torchsnow.data.formats import FORMATS
from torchsnow.data.images import MAX_PIXELS
from torchsnow.errors import ServingError
from torchsnow.serving.certificate import check_certificate

MIN_TOKEN_CHARACTERS = 16
_HOUR_S = 3600.0
_BOUNDS = {
    "max_pixels": (1, 10**9),
    "workers": (1, 256),
    "batch_size": (1, 4096),
    "queue_size": (1, 1_000_000),
    "wait_s": (0, 60),
    "deadline_s": (0.001, _HOUR_S),
    "drain_s": (0, _HOUR_S),
    "decode_processes": (1, 256),
    "decode_timeout_s": (0.001, _HOUR_S),
    "follow_s": (0.001, _HOUR_S),
    "stale_s": (0, _HOUR_S),
    "body_timeout_s": (0.001, _HOUR_S),
    "body_rate": (1, 2**40),
}


@dataclass(frozen=True)
class ServeSettings:
    """Limits and times of a server. Raises ServingError for values that make no sense."""

    workers: int = 1
    """Processes that answer on one port. All other limits are for each of them."""
    batch_size: int = 16
    """Images of one source pass, at most."""
    wait_s: float = 0.005
    """How long the first image of a batch waits for others."""
    queue_size: int = 256
    """Images that may wait; more are answered 429."""
    deadline_s: float = 10.0
    """From the moment that a request is read to its answer; a client may ask for less."""
    drain_s: float = 1.0
    """From SIGTERM until no more connections are taken: for whoever asks for readiness to learn that it is over."""
    decode_processes: int = 2
    decode_timeout_s: float = 5.0
    """For one picture; then its process is killed. Never more than the deadline."""
    follow_s: float = 0.25
    """Between two polls of the hub's folder."""
    stale_s: float = 30.0
    """How much longer than it needs a round of a background loop may take, before the server is no longer ready."""
    token: str | None = None
    """What clients must send as a bearer token. Without one there are no admin routes."""
    hosts: tuple[str, ...] = ("127.0.0.1", "localhost", "[::1]")
    """Names under which admin routes may be called."""

    max_body_bytes: int = 32 * 2**20
    max_held_bytes: int = 256 * 2**20
    """Of the bodies of all requests together; more are answered 429."""
    max_upload_bytes: int = 256 * 2**20
    """Of a task file."""
    formats: tuple[str, ...] = FORMATS
    """Of pictures: by default those that can be trained on."""
    max_pixels: int = MAX_PIXELS
    max_images: int = 16
    max_tasks: int = 256
    """Names of tasks in one request."""
    max_heat_maps: int = 16
    """Answers of one request that may have heat maps: each takes a pass of its own."""
    max_json_depth: int = 16
    body_timeout_s: float = 30.0
    """For a client to send its whole request."""
    body_rate: int = 8 * 2**10
    """Bytes per second at which a body must come, but for a few seconds."""
    traces: bool = False
    """Whether requests are traced for OpenTelemetry; needs the extra `traces`."""
    tls_cert: Path | None = None
    tls_key: Path | None = None
    """Files in PEM: the certificate with its chain, and its key; both for HTTPS, or none."""
    origins: tuple[str, ...] = ()
    """Sites whose pages may ask, or "*" for all; never for admin routes."""
    proxies: tuple[str, ...] = ()
    """Addresses or networks of proxies, whose X-Forwarded-For and X-Forwarded-Proto are believed."""

    def __post_init__(self) -> None:
        for name, (least, most) in _BOUNDS.items():
            value = getattr(self, name)
            if not least <= value <= most:  # nor is it a number, if it is NaN
                raise ServingError(f"{name} is {value}; expected {least:g} to {most:g}")
        unknown = [name for name in self.formats if name not in FORMATS]
        if unknown or not self.formats:
            raise ServingError(f"{unknown[:1] or 'nothing'} is no format; expected some of {', '.join(FORMATS)}")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ServingError("TLS needs both the certificate and its key: --tls-cert FILE --tls-key FILE")
        if self.tls_cert is not None and self.tls_key is not None:
            check_certificate(self.tls_cert, self.tls_key)
        for origin in self.origins:
            if origin != "*" and not re.fullmatch(r"https?://[a-z0-9.:\[\]_-]+", origin):
                raise ServingError(f"{origin!r} is no origin of a page; expected one like https://example.org, or '*'")
        for proxy in self.proxies:
            try:
                ip_network(proxy)
            except ValueError as error:
                raise ServingError(f"the proxy {proxy!r} is no address or network of addresses: {error}") from error
        if self.token is not None and (
            len(self.token) < MIN_TOKEN_CHARACTERS or not all("!" <= c <= "~" for c in self.token)
        ):
            raise ServingError(
                f"the token must be {MIN_TOKEN_CHARACTERS} or more ASCII characters without spaces; "
                "`openssl rand -hex 32` makes a good one"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {name: str(value) if isinstance(value, Path) else value for name, value in vars(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From those."""
        given: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        files = {name: Path(given[name]) for name in ("tls_cert", "tls_key") if given[name] is not None}
        return cls(**{**given, **files})

    @property
    def longest_age_s(self) -> float:
        """The highest age of a background loop with which the server is ready: a pass may take a deadline."""
        return self.stale_s + max(self.deadline_s, self.follow_s)
