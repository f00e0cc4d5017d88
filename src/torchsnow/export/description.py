"""What an exported file says about itself: its tasks, its preprocessing, its source."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from torchsnow.errors import CompileError
from torchsnow.source import Framing, InputConfig
from torchsnow.task_file import SourceInfo, Task

SCHEMA = 3
INPUT = "images"
KEY = "torchsnow"  # under which every format keeps the description

# Pillow's names of the interpolations that Pillow and torchvision have in common.
_INTERPOLATIONS = {name: name for name in ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")} | {
    "nearest-exact": "nearest"
}


def describe(
    tasks: Iterable[Task],
    outputs: Mapping[str, str],
    unknown_outputs: Mapping[str, str],
    hashes: Mapping[str, str],
    source_info: SourceInfo,
    framing: Framing,
    version: str,
    quantized: Mapping[str, Any] | None,
) -> str:
    """One JSON document. `outputs`, `unknown_outputs` (of the tasks that have one) and `hashes` (SHA-256 of the task
    files) are by task; `version` is torchsnow's; `quantized` says on what the file was calibrated, None for fp32."""
    document = {
        "schema_version": SCHEMA,
        "torchsnow": version,
        "input": INPUT,
        "preprocessing": preprocessing(source_info.input_config, framing),
        "quantized": quantized,
        "source": {
            "name": source_info.name,
            "weights": source_info.weights,
            "fingerprint": source_info.fingerprint,
        },
        "tasks": [
            {
                "name": task.name,
                "output": outputs[task.name],
                "unknown_output": unknown_outputs.get(task.name),
                "classes": list(task.classes),
                "thresholds": None if task.thresholds is None else list(task.thresholds),
                "sha256": hashes[task.name],
                "trained_at_image_size": task.image_size,
            }
            for task in tasks
        ],
    }
    return json.dumps(document, allow_nan=False)


def preprocessing(config: InputConfig, framing: Framing) -> dict[str, Any]:
    """From an RGB picture to the input, in Pillow's terms: what `eval_transform` does.

    With `crop` "squash" both sides are resized to `resize_size` pixels, with "center" the shorter one, with "border"
    the longer one, in the middle of a square in the colour of `mean`; then the centre of `image_size` x `image_size`
    pixels is cropped. Pixels are scaled to 0..1, and normalised by `mean` and `std` per channel. Before all that,
    16-bit greys are spread from `grey_range` to 0..255.
    """
    if config.interpolation not in _INTERPOLATIONS:
        raise CompileError(
            f"the source resizes by {config.interpolation!r}; expected one of {', '.join(_INTERPOLATIONS)}"
        )
    return {
        "image_size": framing.image_size,
        "resize_size": framing.resize_size(config.crop_pct),
        "interpolation": _INTERPOLATIONS[config.interpolation],
        "crop": framing.crop_mode,
        "grey_range": list(framing.grey_range),
        "mean": list(config.mean),
        "std": list(config.std),
    }


def output_names(wanted: Iterable[str], identifiers: bool, others: Iterable[str] = ()) -> dict[str, str]:
    """The name of every output by the one that is wanted for it, such as its task's: that one unless it is taken, or
    for `identifiers` one of letters, digits and "_" only."""
    taken, names = {INPUT, *others}, {}
    for task in wanted:
        plain = _identifier(task) if identifiers else task
        name, number = plain, 2
        while name in taken:
            name, number = f"{plain}_{number}", number + 1
        taken.add(name)
        names[task] = name
    return names


def _identifier(task: str) -> str:
    """As ONNX wants its names: a task's name has only "." and "-" besides letters, digits and "_"."""
    name = re.sub(r"\W", "_", task)
    return f"_{name}" if name[0].isdigit() else name
