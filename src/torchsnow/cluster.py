"""Calls on a Ray cluster: whichever of its processes is free takes the next one. Needs the extra `ray`."""

from __future__ import annotations

import importlib.util
import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

from torchsnow.errors import ClusterError, TorchsnowError

_CONNECT_S = 10.0


class Call(NamedTuple):
    """The arguments of a call, and the number of the one that must have ended before it, if any, lower than its own."""

    arguments: tuple[Any, ...]
    after: int | None = None


class Cluster:
    """A cluster to which this process is connected. Its machines have the same files under the same paths."""

    def __init__(self, num_cpus: int, num_gpus: int) -> None:
        self._num_cpus, self.num_gpus = num_cpus, num_gpus

    def num_calls(self, device: str) -> int:
        """How many calls there can be at once: one for each GPU, or CPU where there is none or `device` is "cpu"."""
        return max(1, self._num_cpus if device == "cpu" else self.num_gpus or self._num_cpus)

    def spread(
        self, function: Callable[..., Any], calls: Sequence[Call], device: str
    ) -> Iterator[tuple[int, Any | TorchsnowError]]:
        """Make the calls, and give the number and the result of each as it ends, an error of ours as a result.

        A call whose process or machine dies is made again, three times; what it does must stand that. Each runs in the
        folder of this process, and has a GPU for itself where there are any, unless `device` is "cpu".
        """
        import ray

        num_gpus = 1 if device != "cpu" and self.num_gpus else 0
        remote = ray.remote(num_cpus=1, num_gpus=num_gpus, max_retries=3)(_call)
        refs: list[Any] = []
        for call in calls:
            before = () if call.after is None else (refs[call.after],)  # Ray waits for it, as for any argument
            refs.append(remote.remote(function, Path.cwd(), call.arguments, *before))
        numbers = {ref: number for number, ref in enumerate(refs)}
        running = refs
        while running:
            (ended,), running = ray.wait(running, num_returns=1)
            yield numbers[ended], _result(ended)


@contextmanager
def cluster(address: str) -> Iterator[Cluster]:
    """Be connected to a cluster: HOST:PORT, "auto" for that of this machine, "local" for a new one of its own.

    Raises ClusterError without Ray, or when there is none at that address.
    """
    validate_ray()
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
    host, _, port = address.rpartition(":")
    try:
        if port.isdecimal() and "://" not in address:
            socket.create_connection((host, int(port)), _CONNECT_S).close()  # Ray would try for minutes
        ray.init(address, logging_level="error", log_to_driver=False)
    except (OSError, OverflowError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ClusterError(
            f"cannot reach the Ray cluster {address!r} ({reason}); expected HOST:PORT, 'auto' for that of "
            "this machine, or 'local' for a new one; if it asks for a token, RAY_AUTH_TOKEN must hold that"
        ) from error
    try:
        resources = ray.cluster_resources()
        with redirect_stdout(sys.stderr):  # Ray prints there which workers died, in the middle of what is for programs
            yield Cluster(int(resources.get("CPU", 0)), int(resources.get("GPU", 0)))
    finally:
        ray.shutdown()


def validate_ray() -> None:
    """Raise ClusterError unless Ray is installed."""
    if importlib.util.find_spec("ray") is None:
        raise ClusterError("a cluster needs Ray: pip install 'torchsnow[ray]'")


def _call(function: Callable[..., Any], folder: Path, arguments: Sequence[Any], *before: Any) -> Any:
    os.chdir(folder)
    try:
        return function(*arguments)
    except TorchsnowError as error:
        return error


def _result(ref: Any) -> Any:
    import ray

    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        if not isinstance(error.cause, ray.exceptions.RayError):
            raise error.cause from error  # a mistake of ours
        return _died(error.cause)
    except ray.exceptions.RayError as error:
        return _died(error)


def _died(error: Exception) -> ClusterError:
    reason = (str(error).splitlines() or [""])[0]
    return ClusterError(f"its process died again and again ({type(error).__name__}: {reason})")
