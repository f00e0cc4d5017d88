"""Checkpoints: the state of a run between two epochs, in one file that is either whole or the one before."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from torchsnow.errors import TrainingError
from torchsnow.io.files import write_atomically
from torchsnow.train.history import Epoch

SCHEMA = 2
_KEY = "torchsnow"  # of the file's metadata
_MODEL, _OPTIMIZER = "model.", "optimizer."


@dataclass(frozen=True)
class Checkpoint:
    """A run after the last epoch of `history`.

    `config` is what was run (method, training settings, data), `model` the method's trainable state, `optimizer` the
    optimiser's memory as flat tensors, and `selection` the method's records, which have their epoch in them.
    """

    config: dict[str, Any]
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    history: list[Epoch] = field(default_factory=list)
    selection: list[dict[str, Any]] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write a .safetensors file atomically. Raises TrainingError when the disk refuses."""
        tensors = {_MODEL + key: tensor for key, tensor in self.model.items()}
        tensors |= {_OPTIMIZER + key: tensor for key, tensor in self.optimizer.items()}
        about = {
            "schema": SCHEMA,
            "config": self.config,
            "history": [asdict(row) for row in self.history],
            "selection": self.selection,
        }
        stored = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        write_atomically(
            path, safetensors.torch.save(stored, {_KEY: json.dumps(about, allow_nan=False)}), TrainingError
        )

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Read what `save` wrote. Raises TrainingError for a file that is missing, damaged or of another kind."""
        try:
            content = path.read_bytes()  # the library's own reader of files refuses paths that are not UTF-8
            tensors = safetensors.torch.load(content)
            header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
            about = json.loads(header["__metadata__"][_KEY])
            if about["schema"] != SCHEMA:
                raise TrainingError(f"its schema is {about['schema']}, and this version reads {SCHEMA}")
            history = [Epoch(**row) for row in about["history"]]
            config, selection = about["config"], about["selection"]
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise TrainingError(f"cannot read the checkpoint {path}: {error}; start the run again") from error
        return cls(config, _below(tensors, _MODEL), _below(tensors, _OPTIMIZER), history, selection)

    def validate_same_config(self, config: Mapping[str, Any], path: Path) -> None:
        """Raise TrainingError unless `config` is what this run was started with."""
        differences = _differences(self.config, dict(config))
        if differences:
            more = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
            raise TrainingError(
                f"cannot resume the run in {path}: it was started with {differences[0]}{more}; "
                "resume with the same method, settings and data, or start a new run in another folder"
            )


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def _differences(then: Any, now: Any, name: str = "") -> list[str]:
    if isinstance(then, dict) and isinstance(now, dict):
        keys = list(dict.fromkeys([*then, *now]))
        return [line for key in keys for line in _differences(then.get(key), now.get(key), f"{name}.{key}".strip("."))]
    return [] if then == now else [f"{name} = {_short(then)}, not {_short(now)}"]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
