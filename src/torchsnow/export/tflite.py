"""TensorFlow Lite's files, which LiteRT runs, image by image."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from torchsnow.engines.backends import quiet_tracing
from torchsnow.export.description import INPUT, KEY
from torchsnow.export.quiet import silence

if TYPE_CHECKING:
    from torchsnow.export.formats import NamedRunner, Written


class _OneInput(nn.Module):
    """A traced network whose input can be given by name, which is the name that it gets in the file."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = self.network(images)
        return outputs


def write_tflite(
    program: ExportedProgram, images: Tensor, names: Sequence[str], description: str, path: Path, how: Written
) -> None:
    """Write a file for one image at a time, (1, 3, S, S), with the description in an archive at its end.

    `images` (B, 3, S, S) are what the program was traced with. Outputs have the names that they have in the program.
    """
    with silence(), quiet_tracing():
        import litert_torch

        model = litert_torch.convert(_OneInput(program.module()), sample_kwargs={INPUT: images[:1]})
        path.write_bytes(model.model_content())
    with zipfile.ZipFile(path, "a") as archive:  # where TensorFlow Lite's own metadata keeps files
        archive.writestr(f"{KEY}.json", description)


def load_tflite(path: Path) -> NamedRunner:
    """Run a file on the CPU: images (B, 3, S, S) -> outputs by name."""
    from ai_edge_litert.interpreter import Interpreter

    with silence():
        run_one = Interpreter(str(path), num_threads=torch.get_num_threads()).get_signature_runner()

    def run(images: Tensor) -> Mapping[str, Tensor]:
        results = [run_one(**{INPUT: image[None].numpy()}) for image in images]
        return {name: torch.cat([torch.from_numpy(one[name]) for one in results]) for name in results[0]}

    return run
