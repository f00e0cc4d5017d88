"""Weight files: safetensors, and checkpoints as timm, torch and Lightning write them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from torchsnow.errors import SourceError

CHECKPOINT_SUFFIXES = (".pth", ".pt", ".tar", ".ckpt", ".bin")
_STATES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema", "state_dict", "model_state_dict", "model")
"""Where checkpoints keep weights; averaged ones first, for they are the better ones."""
_PREPROCESSING = ("input_size", "img_size", "mean", "std", "crop_pct", "interpolation")
_OF_NO_USE = "num_batches_tracked"  # a counter of training; old files lack it


def read_weights(file: Path, wanted: Mapping[str, Tensor], name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a file under the names of `wanted`, and what it says of preprocessing, in timm's names.

    A .safetensors file, or a checkpoint (`CHECKPOINT_SUFFIXES`), which torch's weights-only reader reads: nothing in
    it is run. Of a checkpoint's averaged (EMA) and plain weights the averaged ones are taken, and what all names begin
    with ("module.", "backbone.") is left out; so are tensors that are not wanted, the classifier's among them. `name`
    is the network's, for messages. Raises SourceError for a file that cannot be read or does not fit.
    """
    content = _safetensors(file) if file.suffix == ".safetensors" else _checkpoint(file)
    needed = [key for key in wanted if not key.endswith(_OF_NO_USE)]
    places = [(state, prefix) for state in _states(content) for prefix in _prefixes(state, needed[0])]
    state, prefix = max(places, key=lambda place: sum(place[1] + key in place[0] for key in needed))
    missing = sorted(key for key in needed if prefix + key not in state)
    if missing:
        raise SourceError(f"{file} does not fit {name}: it lacks {missing[0]!r} ({len(missing)} tensors in all)")
    found = {key: state.get(prefix + key, tensor) for key, tensor in wanted.items()}
    for key, tensor in wanted.items():
        if found[key].shape != tensor.shape:
            given, expected = tuple(found[key].shape), tuple(tensor.shape)
            raise SourceError(f"{file} does not fit {name}: {key!r} has shape {given}, expected {expected}")
    return found, _preprocessing(content)


def _safetensors(file: Path) -> dict[str, Any]:
    try:
        return dict(safetensors.torch.load_file(file))
    except FileNotFoundError as error:
        raise SourceError(f"no weight file {file}") from error
    except (SafetensorError, OSError) as error:
        raise SourceError(f"{file} is not a readable .safetensors file: {error}") from error


def _checkpoint(file: Path) -> Mapping[str, Any]:
    if file.suffix not in CHECKPOINT_SUFFIXES:
        known = ", ".join((".safetensors", *CHECKPOINT_SUFFIXES))
        raise SourceError(f"{file} is no weight file by its name: expected a file that ends in one of {known}")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # timm keeps its command line in one
            content = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise SourceError(f"no weight file {file}") from error
    except Exception as error:  # readers meet damaged files with nearly every exception there is
        if type(error).__name__ == "UnpicklingError":  # what is refused; its module is not to be imported here
            raise SourceError(
                f"{file} holds more than weights, or is damaged, and is not read: reading it could run code. Save the "
                "weights alone, with safetensors.torch.save_file(model.state_dict(), 'model.safetensors')"
            ) from error
        raise SourceError(f"{file} is not a readable checkpoint: {str(error).partition(chr(10))[0]}") from error
    if not isinstance(content, Mapping):
        raise SourceError(f"{file} holds a {type(content).__name__}; expected weights by name, a model.state_dict()")
    return content


def _states(content: Mapping[str, Any]) -> Iterator[dict[str, Tensor]]:
    """The groups of weights of a file, the preferred one first."""
    for state in (*(content.get(key) for key in _STATES), content):
        if isinstance(state, Mapping):
            yield {key: value for key, value in state.items() if isinstance(value, Tensor)}


def _prefixes(state: Mapping[str, Tensor], first: str) -> list[str]:
    """What may stand before all names, found by one of them: averaged weights and short ones first."""
    ends = (key.removesuffix(first) for key in state if key.endswith(first))
    return sorted({"", *(end for end in ends if end.endswith("."))}, key=lambda end: ("ema" not in end, len(end)))


def _preprocessing(content: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint of timm's training says of how images were prepared."""
    args = content.get("args")
    known = vars(args) if isinstance(args, argparse.Namespace) else {}
    found = {key: known[key] for key in _PREPROCESSING if known.get(key) is not None}
    return {key: value for key, value in found.items() if value != "random"}  # an interpolation of training alone
