"""The formats of an exported hub: how each is written, and how its own runtime runs it."""

from __future__ import annotations

import importlib.util
import io
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from torchsnow.engines import BACKENDS, Program, validate_backend
from torchsnow.engines.backends import clear_compiler_errors, onnx_session, quiet_tracing
from torchsnow.engines.engine import Reader
from torchsnow.errors import CompileError
from torchsnow.export.coreml import MOST_IMAGES, load_coreml, write_coreml
from torchsnow.export.description import INPUT, KEY
from torchsnow.export.tflite import load_tflite, write_tflite
from torchsnow.io.files import reserve
from torchsnow.source import FeatureMaps
from torchsnow.source.grid import Grid


class Written(NamedTuple):
    """How a file is written: `half` stores its weights in 16 bits, `opset` is ONNX's, by default the exporter's."""

    half: bool = False
    opset: int | None = None


NamedRunner = Callable[[Tensor], Mapping[str, Tensor]]
"""Images (B, 3, H, W) -> logits and unknown scores by the name of the output."""

_GRAPH_BYTES = 2**20  # a graph without its weights has fewer
ONNX_LIMIT_BYTES = 2**31 - _GRAPH_BYTES  # protobuf's limit


class Network(nn.Module):
    """A program as it is exported: images (B, 3, H, W) to logits (B, num_classes) by name, for any B, and to unknown
    scores (B,) of the deltas whose `scores` are a name and the distance from where on an image is unknown.

    It holds only what that needs: not the source itself, but its pass for these deltas.
    """

    def __init__(
        self, program: Program, names: Sequence[str], scores: Sequence[tuple[str, float] | None], image_size: int
    ) -> None:
        super().__init__()
        self.source_pass, self.readers = program.source.plan(program.request), program.readers
        self._request, self._outputs = program.request, list(zip(names, scores, strict=True))
        self._dims = {name: tap.dim for name, tap in program.source.taps.items()}
        self._sizes = []
        for number, (of_taps, size) in enumerate(program.source.grid_inputs(program.request, (image_size, image_size))):
            self._sizes.append((len(of_taps), size))
            for at, idx in enumerate(of_taps):
                self.register_buffer(f"channels_{number}_{at}", idx)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        request = self._request
        wanted = [
            ([getattr(self, f"channels_{number}_{at}") for at in range(count)], size)
            for number, (count, size) in enumerate(self._sizes)
        ]
        values = iter(self.source_pass(images, *wanted))
        features = FeatureMaps(
            images,
            self._dims,
            taps={name: next(values) for name in request.taps},
            grids={reduction: Grid(idx, *next(values)) for reduction, idx in request.grids.items()},
            last=next(values) if request.last else None,
        )
        outputs: dict[str, Tensor] = {}
        for (name, score), reader in zip(self._outputs, self.readers, strict=True):
            assert isinstance(reader, Reader)
            outputs[name], distances = reader.with_distance(features)
            if score is not None and distances is not None:
                outputs[score[0]] = distances / score[1]
        return outputs

    @property
    def names(self) -> list[str]:
        """Of its outputs, in their order."""
        return [one for name, score in self._outputs for one in (name, *(score or ())[:1])]


def traced(network: Network, images: Tensor) -> ExportedProgram:
    """A network as torch.export sees it, for batches of any size. Raises CompileError when it cannot."""
    with clear_compiler_errors("torch.export cannot take this network"), quiet_tracing(), torch.no_grad():
        return torch.export.export(network, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))


class Format(NamedTuple):
    """`write` puts a traced network and its description into a file of `suffix`, and what `companions` name next to
    it; `load` makes its runtime run that file. `identifiers`: names of outputs have no "." or "-"; `package`
    is what the extra of the format's name installs; `runs_here`: its runtime exists for this system;
    `batch` says how many images it takes."""

    name: str
    suffix: str
    runtime: str
    write: Callable[[ExportedProgram, Tensor, Sequence[str], str, Path, Written], None]
    load: Callable[[Path], NamedRunner]
    companions: tuple[str, ...] = ()
    identifiers: bool = False
    package: str = ""
    runs_here: bool = True
    batch: str = "B"

    def files(self, path: Path) -> list[Path]:
        """All files of an export, the one that names it last."""
        return [*(path.with_suffix(suffix) for suffix in self.companions), path]


def _write_onnx(
    program: ExportedProgram, images: Tensor, names: Sequence[str], description: str, path: Path, how: Written
) -> None:
    size_bytes = sum(tensor.nbytes for tensor in program.state_dict.values())
    if size_bytes > ONNX_LIMIT_BYTES:
        raise CompileError(
            f"its weights have {size_bytes / 1e9:.1f} GB, and an ONNX file holds 2 GB; export fewer tasks (--task), "
            "or another format"
        )
    with quiet_tracing():
        onnx_program = torch.onnx.export(
            program, (images,), input_names=[INPUT], dynamo=True, verbose=False, opset_version=how.opset
        )
    assert onnx_program is not None
    opset = onnx_program.model.opset_imports[""]
    if how.opset not in (None, opset):
        raise CompileError(f"this network cannot be written in ONNX opset {how.opset}; it can in {opset}")
    _name_outputs(onnx_program.model.graph, names)
    onnx_program.model.metadata_props[KEY] = description
    model = onnx_program.model_proto
    if how.half:
        _halve(model.graph)
    path.write_bytes(model.SerializeToString())


def _halve(graph: Any) -> None:
    """Store weights in 16 bits, and let the runtime bring them back to 32 when it loads them."""
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for weight in [one for one in graph.initializer if one.data_type == TensorProto.FLOAT]:
        values = numpy_helper.to_array(weight)
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if values.size > 1 and np.isfinite(half).all():
            name = weight.name
            weight.CopyFrom(numpy_helper.from_array(half, f"{name}.fp16"))
            casts.append(helper.make_node("Cast", [weight.name], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _name_outputs(graph: Any, names: Sequence[str]) -> None:
    """Give the outputs these names; an inner value that has one of them, such as "relu", gets another."""
    for node in graph:
        for value in node.outputs:
            if value.name in names:
                value.name = f"inner.{value.name}"
    for value, name in zip(graph.outputs, names, strict=True):
        value.name = name


def _load_onnx(path: Path) -> NamedRunner:
    session = onnx_session(str(path))
    names = [output.name for output in session.get_outputs()]

    def run(images: Tensor) -> Mapping[str, Tensor]:
        outputs = session.run(names, {INPUT: images.numpy()})
        return {name: torch.from_numpy(output) for name, output in zip(names, outputs, strict=True)}

    return run


def _write_openvino(
    program: ExportedProgram, images: Tensor, names: Sequence[str], description: str, path: Path, how: Written
) -> None:
    with quiet_tracing():
        import openvino

        model = openvino.convert_model(program)
    model.reshape(openvino.PartialShape([-1, *images.shape[1:]]))
    model.inputs[0].get_tensor().set_names({INPUT})
    for output, name in zip(model.outputs, names, strict=True):
        output.get_tensor().set_names({name})
    save_openvino(model, description, path, half=how.half)


def save_openvino(model: Any, description: str, path: Path, half: bool = False) -> None:
    """Write a model with its description, in the precision that it has or with weights of 16 bits."""
    import openvino

    model.set_rt_info(description, [KEY])
    constants = [op.output(0) for op in model.get_ops() if op.get_type_name() == "Constant"]
    size_bytes = sum(math.prod(one.get_shape()) * one.get_element_type().size for one in constants)
    reserve(path.parent, _GRAPH_BYTES + size_bytes)  # OpenVINO's own word on a full disk is about iostreams
    openvino.save_model(model, path, compress_to_fp16=half)


def _load_openvino(path: Path) -> NamedRunner:
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    names = [output.get_any_name() for output in compiled.outputs]

    def run(images: Tensor) -> Mapping[str, Tensor]:
        outputs = compiled([images.numpy()])
        return {name: torch.from_numpy(np.array(outputs[at])) for at, name in enumerate(names)}

    return run


def _write_torch(
    program: ExportedProgram, images: Tensor, names: Sequence[str], description: str, path: Path, how: Written
) -> None:
    content = io.BytesIO()  # written to a full disk by torch itself, it ends the process
    torch.export.save(program, content, extra_files={f"{KEY}.json": description})
    path.write_bytes(content.getbuffer())


def _load_torch(path: Path) -> NamedRunner:
    with quiet_tracing():
        network = torch.export.load(path).module()

    def run(images: Tensor) -> Mapping[str, Tensor]:
        with torch.no_grad():
            outputs: Mapping[str, Tensor] = network(images)
        return outputs

    return run


FORMATS = {
    "onnx": Format("onnx", ".onnx", "ONNX Runtime", _write_onnx, _load_onnx, identifiers=True),
    "openvino": Format("openvino", ".xml", "OpenVINO", _write_openvino, _load_openvino, companions=(".bin",)),
    "torch": Format("torch", ".pt2", "torch.export", _write_torch, _load_torch),
    "coreml": Format(
        *("coreml", ".mlpackage", "Core ML", write_coreml, load_coreml),
        identifiers=True,
        package="coremltools",
        runs_here=sys.platform == "darwin",
        batch=f"1 to {MOST_IMAGES}",
    ),
    "tflite": Format("tflite", ".tflite", "LiteRT", write_tflite, load_tflite, package="litert_torch", batch="1"),
}


def format_of(out: Path, name: str | None) -> Format:
    """The format of this name, by default the one that the file's suffix says.

    Raises CompileError for an unknown format, a suffix of another one, or a runtime that is not installed.
    """
    by_suffix = {kind.suffix: kind for kind in FORMATS.values()}
    if name is None and out.suffix not in by_suffix:
        raise CompileError(f"the suffix of {out.name} says no format; expected {', '.join(by_suffix)}")
    if name is not None and name not in FORMATS:
        raise CompileError(f"there is no format {name!r}; expected one of {', '.join(FORMATS)}")
    kind = by_suffix[out.suffix] if name is None else FORMATS[name]
    if out.suffix != kind.suffix:
        raise CompileError(f"a file of the format {kind.name!r} ends in {kind.suffix}, not as {out.name} does")
    if kind.name in BACKENDS:
        validate_backend(kind.name, "cpu")
    if kind.package and importlib.util.find_spec(kind.package) is None:
        raise CompileError(f"the format {kind.name!r} needs {kind.package}: pip install 'torchsnow[{kind.name}]'")
    return kind
