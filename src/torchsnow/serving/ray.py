"""A hub served by replicas on a Ray cluster: the application of a single process in each, behind Ray Serve's proxy.

`torchsnow serve --hub my-hub --ray auto --replicas 1-4` does it, and so does
`serve run torchsnow.serving.ray:app hub=my-hub replicas=1-4`.
"""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from torchsnow.cluster import cluster, validate_ray
from torchsnow.errors import ServingError
from torchsnow.hub import Hub
from torchsnow.hub.live import LiveHub
from torchsnow.hub.remote import url_of
from torchsnow.serving.app import make_app
from torchsnow.serving.logs import log, write_logs
from torchsnow.serving.pictures import STOP_SIGNALS
from torchsnow.serving.service import Service
from torchsnow.serving.settings import ServeSettings
from torchsnow.serving.siblings import ASK_S, Siblings
from torchsnow.train import torch_device

NAME = "torchsnow"
"""Of the application and of its one deployment."""
HELD_TASKS = 400
"""How many tasks a replica is sought for by name: what `torchsnow.hub.live.CACHE_BYTES` hold of a ResNet-50's."""
_END_S = 5.0  # more than the longest answer takes


class HubReplica:
    """One replica, with a source of its own. What one is asked about all of them, it asks the others."""

    def __init__(self, hub: str, device: str, settings: Mapping[str, Any]) -> None:
        write_logs()
        opened = Hub.open(hub)
        opened.source.to(torch_device(device))
        self._service = Service(LiveHub(opened), ServeSettings.from_dict(settings), _Replicas(self.hear))

    def __serve_build_asgi_app__(self) -> ASGIApp:  # by which name Ray Serve finds it
        from ray import serve

        answer = make_app(self._service)

        @serve.multiplexed(max_num_models_per_replica=HELD_TASKS)  # type: ignore[untyped-decorator]
        async def hold(task: str) -> str:
            return task  # the hub loads it; this tells Ray where it will be

        async def answer_and_hold(scope: Scope, receive: Receive, send: Send) -> None:
            task = serve.get_multiplexed_model_id()
            if task in self._service.live.now.entries:
                await hold(task)
            await answer(scope, receive, send)

        return answer_and_hold

    async def hear(self, question: Mapping[str, Any]) -> Any:
        """Answer what a replica asks."""
        return await self._service.hear(question)

    def check_health(self) -> None:
        """Raises ServingError when this replica is to be replaced."""
        if not self._service.is_alive():
            raise ServingError("a background loop or a decoder is stuck")


class _Replicas(Siblings):
    async def ask(self, timeout_s: float = ASK_S, **question: Any) -> list[Any]:
        """What every replica says that is there by now; None for one that does not answer."""
        from ray import serve
        from ray.exceptions import RayError
        from ray.serve.exceptions import RayServeException

        try:
            own = serve.get_replica_context()
            asked = serve.get_deployment_handle(own.deployment, own.app_name).broadcast("hear", question)
            replies = await asked.results_async(timeout_s=timeout_s, return_exceptions=True)
        except (TimeoutError, RayError, RayServeException):
            return [None]
        return [None if isinstance(reply, Exception) else reply for reply in replies]


def application(hub: Path, device: str, settings: ServeSettings, replicas: str = "1", gpus: float = 0.0) -> Any:
    """The application for `ray.serve.run`: `replicas` as "2", or "1-4" for as many as the load needs; `gpus` of each,
    0.25 for four on one GPU. Raises ServingError for numbers that cannot be."""
    validate_ray()
    from ray import serve

    least, most = _replicas(replicas)
    if not isinstance(gpus, int | float) or not 0 <= gpus <= 8:
        raise ServingError(f"gpus is {gpus!r}; expected a number from 0 to 8, as 0.5")
    place = str(hub if url_of(hub) else hub.absolute())
    Hub.open(place)  # what is no hub is refused here
    deployment = serve.deployment(
        serve.ingress()(HubReplica),
        name=NAME,
        max_ongoing_requests=settings.queue_size,  # the replica itself says when it has too many
        autoscaling_config={
            "min_replicas": least,
            "max_replicas": most,
            "target_ongoing_requests": settings.batch_size,  # as many fill a source pass
        },
        ray_actor_options={"num_cpus": 1, "num_gpus": gpus},
        graceful_shutdown_timeout_s=settings.deadline_s + _END_S,
    )
    return deployment.bind(place, device, settings.to_dict())


def app(told: dict[str, str]) -> Any:
    """The application for `serve run torchsnow.serving.ray:app hub=FOLDER`; `replicas`, `gpus` and `device` may be told
    as well, and settings by their names, as `batch_size=8`. Raises ServingError for what cannot be."""
    given = dict(told)
    if "hub" not in given:
        raise ServingError("no hub is named; expected hub=FOLDER")
    hub, device, replicas = given.pop("hub"), given.pop("device", "auto"), given.pop("replicas", "1")
    gpus = _value(given.pop("gpus", "0"))
    if unknown := sorted(given.keys() - ServeSettings().to_dict()):
        raise ServingError(f"a server has no setting {unknown[0]!r}; it has: {', '.join(ServeSettings().to_dict())}")
    settings = {name: _value(text) for name, text in given.items()}
    return application(
        Path(hub), device, ServeSettings.from_dict({**ServeSettings().to_dict(), **settings}), replicas, gpus
    )


def serve_on(address: str, application: Any, host: str, port: int, settings: ServeSettings, gpus: float = 0.0) -> None:
    """Serve on the cluster at an address until SIGTERM or SIGINT, then let its replicas finish what they accepted.

    Raises ServingError where Ray Serve does not come up or this machine has less than the `gpus` of a replica, and
    ClusterError where there is no cluster.
    """
    write_logs()
    stop = threading.Event()
    with cluster(address) as machines:
        if address == "local" and gpus > machines.num_gpus:  # another cluster may still get some
            raise ServingError(f"each replica is to have {gpus:g} GPUs, and this machine has {machines.num_gpus}")
        from ray import serve
        from ray.exceptions import RayError

        for number in STOP_SIGNALS:  # after Ray, which has handlers of its own
            signal.signal(number, lambda *given: stop.set())
        http = {"host": host, "port": port, "ssl_certfile": settings.tls_cert, "ssl_keyfile": settings.tls_key}
        try:
            serve.start(
                http_options={name: str(value) if isinstance(value, Path) else value for name, value in http.items()}
            )
            serve.run(application, name=NAME)
        except (RayError, RuntimeError, TimeoutError) as error:
            reason = (str(error).splitlines() or [""])[0]
            raise ServingError(
                f"Ray Serve did not come up on the cluster {address!r} ({type(error).__name__}: {reason}); where its "
                "proxy needs long to start, set RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S in the cluster's environment"
            ) from error
        log("serving", address=[host, port], admin=settings.token is not None)
        stop.wait()
        serve.delete(NAME)
    log("stopped")


def _replicas(text: str) -> tuple[int, int]:
    least, _, most = text.partition("-")
    with suppress(ValueError):
        if 1 <= int(least) <= int(most or least) <= 1000:
            return int(least), int(most or least)
    raise ServingError(f"replicas is {text!r}; expected a number as 2, or a range as 1-4")


def _value(text: str) -> Any:
    """A setting from the command line: a number or a list in JSON, or else the words themselves."""
    try:
        return json.loads(text)
    except ValueError:
        return text
