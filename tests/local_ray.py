"""A Ray cluster on this machine, for tests."""

from __future__ import annotations

import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

# It lives as long as its stdin, and ends no other Ray of this machine, as `ray stop` would.
RAY = """
import sys, ray
started = ray.init(num_cpus=2, object_store_memory=200_000_000, include_dashboard=False, logging_level="error")
print(started.address_info["gcs_address"], flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True)
class Ray:
    """A Ray cluster of two processes; whoever inherits the environment may connect to it."""

    address: str
    pid: int

    def pids(self, name: str) -> list[int]:
        """Its workers with this in their names: children of what the process of the cluster has started."""
        parents, names = {}, {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                names[int(folder.name)] = (folder / "cmdline").read_bytes()
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                pass  # it has ended
        own = [pid for pid, parent in parents.items() if parents.get(parent) == self.pid]
        return [pid for pid in own if names[pid].startswith(b"ray::") and name.encode() in names[pid]]


@contextmanager
def local_ray() -> Iterator[Ray]:
    """Runs until the block ends."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")  # a busy machine needs more than 5
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))  # else Ray would leave one in the home of whoever tests
        with subprocess.Popen([sys.executable, "-c", RAY], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            yield Ray(process.stdout.readline().decode().strip(), process.pid)
            process.stdin.close()
