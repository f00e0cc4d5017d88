"""Core ML's packages, which any system writes and macOS runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.export import ExportedProgram, default_decompositions

from torchsnow.engines.backends import quiet_tracing
from torchsnow.export.description import INPUT, KEY
from torchsnow.export.quiet import silence
from torchsnow.io.files import reserve

if TYPE_CHECKING:
    from torchsnow.export.formats import NamedRunner, Written

MOST_IMAGES = 64
"""The largest batch: Core ML wants to know one."""

_GRAPH_BYTES = 2**23  # a graph without its weights has fewer


def write_coreml(
    program: ExportedProgram, images: Tensor, names: Sequence[str], description: str, path: Path, how: Written
) -> None:
    """Write a folder `path`, a package for iOS 15, macOS 12 and later; with `how.half`, it computes in fp16 too.

    `images` (B, 3, S, S) are what the program was traced with; `names` are of its outputs, in their order.
    """
    weights_bytes = sum(tensor.nbytes for tensor in program.state_dict.values())
    # Its own word on a full disk is of an unknown error. It writes twice: without the description, and with it.
    reserve(path.parent, 2 * (weights_bytes + _GRAPH_BYTES))
    with silence(), quiet_tracing():
        import coremltools

        unknown_to_it = torch.ops.aten.addcmul.default
        model = coremltools.convert(
            program.run_decompositions({unknown_to_it: default_decompositions()[unknown_to_it]}),
            inputs=[coremltools.TensorType(INPUT, (coremltools.RangeDim(1, MOST_IMAGES), *images.shape[1:]))],
            outputs=[coremltools.TensorType(name) for name in names],
            compute_precision=coremltools.precision.FLOAT16 if how.half else coremltools.precision.FLOAT32,
            skip_model_load=True,
            package_dir=str(path.with_name(f"plain-{path.name}")),
        )
        model.user_defined_metadata[KEY] = description
        model.save(str(path))


def load_coreml(path: Path) -> NamedRunner:
    """Run a package on macOS, on the CPU: images (B, 3, S, S) -> outputs by name."""
    with silence():
        import coremltools

        model = coremltools.models.MLModel(str(path), compute_units=coremltools.ComputeUnit.CPU_ONLY)

    def run(images: Tensor) -> Mapping[str, Tensor]:
        outputs = model.predict({INPUT: images.numpy()})
        return {name: torch.from_numpy(value) for name, value in outputs.items()}

    return run
