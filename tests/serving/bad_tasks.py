"""Tasks that no writer of ours would leave, put into a hub behind its back."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import safetensors.torch
import torch

from sample_tasks import sample_task
from torchsnow.hub import Entry, Hub
from torchsnow.task_file import content_hash, encode_task
from torchsnow.task_file import task as storage

OVERFLOW = {"spread": 1e-38, "fc.columns": 1e38}
Change = Callable[[dict[str, torch.Tensor], dict[str, Any]], Any]


def smuggle(hub: Hub, name: str, change: Change) -> None:
    """A task with changed tensors or metadata, as a current task of the hub."""
    content = changed(encode_task(sample_task(hub.source, name)), change)
    entry = Entry(content_hash(content), len(content), 3, "2026-01-01T00:00:00+00:00")
    with hub.folder.locked():
        hub.folder.make_task_folder(name)
        hub.folder.task_file(name, entry).write_bytes(content)
        hub.folder.write_index(hub.index().with_task(name, entry))


def smuggle_overflow(hub: Hub, name: str, patch: pytest.MonkeyPatch) -> None:
    """A task that loads, as if it had been sane on the picture that it was tried on, and overflows on others."""
    patch.setattr(storage, "_try", lambda delta, source: None)
    smuggle(
        hub, name, lambda tensors, values: [tensors[f"head.{key}"].fill_(number) for key, number in OVERFLOW.items()]
    )


def changed(content: bytes, change: Change) -> bytes:
    """A task file with other tensors or metadata."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    tensors, values = safetensors.torch.load(content), json.loads(header["__metadata__"]["torchsnow"])
    change(tensors, values)
    return bytes(safetensors.torch.save(tensors, {"torchsnow": json.dumps(values)}))
