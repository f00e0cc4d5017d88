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
    token: str

    def pids(self, name: str) -> list[int]:
        """Its processes with this in their names."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                words, environment = ((folder / file).read_bytes() for file in ("cmdline", "environ"))
                if words.startswith(b"ray::") and name.encode() in words and self.token.encode() in environment:
                    found.append(int(folder.name))
            except OSError:
                pass  # it has ended
        return found


@contextmanager
def local_ray() -> Iterator[Ray]:
    """Runs until the block ends."""
    with pytest.MonkeyPatch.context() as patch:
        token = secrets.token_hex(32)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", token)  # else Ray would leave one in the home of whoever tests
        with subprocess.Popen([sys.executable, "-c", RAY], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            yield Ray(process.stdout.readline().decode().strip(), token)
            process.stdin.close()
