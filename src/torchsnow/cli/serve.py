"""`torchsnow serve`: a hub as a service."""

from __future__ import annotations

import importlib.util
import os
import sys
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from torchsnow.cli.config_file import take_config
from torchsnow.cli.data_options import HUB, HubFolder, with_option_groups
from torchsnow.cli.output import say

if TYPE_CHECKING:
    from torchsnow.serving.settings import ServeSettings

TOKEN_VARIABLE = "TORCHSNOW_TOKEN"
_PACKAGES = ("starlette", "uvicorn", "h11", "python_multipart", "prometheus_client")


@dataclass(frozen=True)
class ServerOptions:
    """What a server may do, see `with_option_groups`."""

    token_file: Annotated[
        Path | None, typer.Option(help=f"File with the token that clients must send; or set {TOKEN_VARIABLE}.")
    ] = None
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Name under which admin routes may be called; may be repeated.")
    ] = None
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(help="Site whose pages may ask, as https://example.org, or '*' (CORS); may be repeated."),
    ] = None
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate with its chain, in PEM; for HTTPS.")] = None
    tls_key: Annotated[Path | None, typer.Option(help="The certificate's key, in PEM.")] = None
    proxy: Annotated[
        list[str] | None,
        typer.Option(help="Address or network of a proxy, which says who calls (X-Forwarded-For); may be repeated."),
    ] = None
    workers: Annotated[int, typer.Option(help="Processes that answer on the port, each with its own source.")] = 1
    batch_size: Annotated[int, typer.Option(help="Images of one source pass, at most.")] = 16
    wait_ms: Annotated[float, typer.Option(help="How long an image waits for others.")] = 5.0
    queue: Annotated[int, typer.Option(help="Images that may wait; more get status 429.")] = 256
    deadline_s: Annotated[float, typer.Option(help="Longest time to an answer.")] = 10.0
    drain_s: Annotated[
        float, typer.Option(help="From SIGTERM until no more connections are taken, while readiness is false.")
    ] = 1.0
    format: Annotated[
        list[str] | None, typer.Option(help="Format that pictures may be in, as JPEG; may be repeated. By default all.")
    ] = None
    max_megapixels: Annotated[float, typer.Option(help="Of one picture; larger ones are refused.")] = 50.0
    traces: Annotated[
        bool, typer.Option("--traces", help="Trace requests for OpenTelemetry; needs the extra 'traces'.")
    ] = False

    def settings(self, host: str) -> ServeSettings:
        """For a server that listens on `host`. Raises ServingError for values that make no sense."""
        from torchsnow.serving.settings import ServeSettings
        from torchsnow.serving.tracing import refuse_without_traces

        if self.traces:
            refuse_without_traces()
        return ServeSettings(
            workers=self.workers,
            batch_size=self.batch_size,
            wait_s=self.wait_ms / 1000,
            queue_size=self.queue,
            deadline_s=self.deadline_s,
            drain_s=self.drain_s,
            formats=tuple(name.upper() for name in self.format) if self.format else ServeSettings.formats,
            max_pixels=round(1e6 * self.max_megapixels) if isfinite(self.max_megapixels) else 0,
            token=read_token(self.token_file),
            proxies=tuple(self.proxy or ()),
            origins=tuple(origin.lower().rstrip("/") for origin in self.allow_origin or ()),
            traces=self.traces,
            tls_cert=self.tls_cert,
            tls_key=self.tls_key,
            hosts=(*ServeSettings.hosts, *(name.lower() for name in (_in_header(host), *(self.allow_host or ())))),
        )


@with_option_groups
def serve(
    *,
    hub: HubFolder = HUB,
    config: Annotated[
        Path | None,
        typer.Option(help="YAML file with options by name, as 'batch-size: 8'.", callback=take_config, is_eager=True),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 is any free one.")] = 8000,
    options: ServerOptions,
    ray: Annotated[
        str | None, typer.Option(help="Ray cluster to answer on: HOST:PORT, 'auto' or 'local'; needs the extra 'ray'.")
    ] = None,
    replicas: Annotated[str, typer.Option(help="On Ray: processes that answer; 1-4 is as many as are needed.")] = "1",
    gpus: Annotated[float, typer.Option(help="On Ray: GPUs of each replica; 0.25 is four replicas on one.")] = 0.0,
    device: Annotated[str, typer.Option(help="'auto', 'cpu', 'cuda' or 'cuda:1'.")] = "auto",
) -> None:
    """Answer over HTTP for all tasks of a hub, and follow its folder.

    Tasks that are trained, replaced or removed meanwhile answer, or no longer
    do, within seconds. Logs go to stderr, one JSON object a line. SIGTERM lets
    what was accepted finish.

    Every option may be in a file (--config), or in the environment, as
    TORCHSNOW_SERVE_BATCH_SIZE; what the command line says counts first, then
    the environment.

    Example: torchsnow serve --hub my-hub --port 8000
    """
    validate_installed()
    from torchsnow.errors import ServingError
    from torchsnow.hub import Hub
    from torchsnow.serving.logs import write_logs
    from torchsnow.serving.workers import Workers, bind

    settings = options.settings(host)
    if ray is not None:
        from torchsnow.serving.ray import application, serve_on

        if options.workers > 1 or options.proxy:
            raise ServingError(f"{'--workers' if options.workers > 1 else '--proxy'} is not for --ray: see --replicas")
        serve_on(ray, application(hub, device, settings, replicas, gpus), host, port, settings, gpus)
        return
    if replicas != "1" or gpus:
        raise ServingError(f"{'--gpus' if gpus else '--replicas'} is for --ray; on one machine --workers 2 are two")
    opened = Hub.open(hub)
    with bind(host, port) as listener:
        write_logs()
        if sys.stdout.isatty():
            address = _address(host, listener.getsockname()[1], options.tls_cert is not None)
            say(f"open {address} in a browser; Ctrl-C ends it")
        if options.workers > 1:
            Workers(hub, device, settings, listener).run()
            return
        from torchsnow.serving.run import answer  # here: who starts workers needs no torch

        answer(opened, device, settings, listener)


def _address(host: str, port: int, tls: bool) -> str:
    """Where a browser on this machine finds the page."""
    near = "localhost" if host in ("0.0.0.0", "::") else host  # what others listen on is no address
    return f"{'https' if tls else 'http'}://{_in_header(near)}:{port}/"


def _in_header(host: str) -> str:
    """An address as a Host header has it."""
    return f"[{host}]" if ":" in host else host


def read_token(file: Path | None) -> str | None:
    """The token from a file or the environment. Raises ServingError for a file that cannot be read or is empty."""
    from torchsnow.errors import ServingError
    from torchsnow.io.files import clear_os_errors

    if file is None:
        return os.environ.get(TOKEN_VARIABLE) or None
    with clear_os_errors("read the token", file, ServingError):
        token = file.read_text("utf-8", "replace").strip()
    if not token:
        raise ServingError(f"the token file {file} is empty; `openssl rand -hex 32` makes a good token")
    return token


def validate_installed() -> None:
    """Raise ServingError unless what a server needs is installed."""
    from torchsnow.errors import ServingError

    missing = [package for package in _PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        raise ServingError(f"a server needs {', '.join(missing)}: pip install 'torchsnow[serve]'")
