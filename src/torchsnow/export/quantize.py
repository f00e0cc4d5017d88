"""An exported file in int8, and what that costs."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from torchsnow.errors import CompileError
from torchsnow.export.description import INPUT, KEY
from torchsnow.export.formats import NamedRunner, save_openvino
from torchsnow.export.quiet import silence
from torchsnow.hub import Hub
from torchsnow.task_file import Task

LOW_AGREEMENT = 0.98  # below it, int8 is another classifier: a warning
_BATCH_SIZE = 8
_SOURCE = "source_pass."  # how the weights of a `Network`'s source begin


class LabelledImages(Protocol):
    """Normalised images (3, H, W) and labels, such as an `ImageSet`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Tensor, int]: ...


class Measured(NamedTuple):
    """Images of the data set `name` to calibrate on, and others to measure with; labels count in `classes`."""

    name: str
    classes: tuple[str, ...]
    calibration: LabelledImages
    held_out: LabelledImages


class Int8Cost(NamedTuple):
    """What int8 does to one task on `num_images` images: shares from 0 to 1.

    `agreement` is how often both name the same class; accuracies are None for a task of other classes than the data's.
    """

    task: str
    num_images: int
    agreement: float
    fp32_accuracy: float | None
    int8_accuracy: float | None


def validate_int8(kind: str) -> None:
    """Raise CompileError for a format that has no int8, or when what makes it is not installed."""
    if kind not in ("onnx", "openvino"):
        raise CompileError("int8 exists for the formats onnx and openvino; choose one of them, or leave out --int8")
    if kind == "openvino" and importlib.util.find_spec("nncf") is None:
        raise CompileError("int8 for OpenVINO needs NNCF: pip install 'torchsnow[int8]'; the format onnx does without")


def quantize(kind: str, fp32: Path, int8: Path, images: LabelledImages, description: str) -> None:
    """Write the int8 version of an exported file, calibrated on these images."""
    make = {"onnx": _quantize_onnx, "openvino": _quantize_openvino}[kind]
    with silence():
        make(fp32, int8, images, description)


def _quantize_onnx(fp32: Path, int8: Path, images: LabelledImages, description: str) -> None:
    """The source's convolutions read int8; deltas, which read sums and averages of its taps, stay in fp32."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = _batches(images)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {INPUT: batch[0].numpy()}

    quantize_static(
        fp32,
        int8,
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        nodes_to_quantize=_source_nodes(onnx.load(fp32).graph.node),
        # What a convolution returns has a wider range than what is left of it behind the activation.
        extra_options={"OpTypesToExcludeOutputQuantization": ["Conv"]},
    )
    quantized = onnx.load(int8)
    onnx.helper.set_model_props(quantized, {KEY: description})
    onnx.save(quantized, int8)


def _source_nodes(nodes: Sequence[Any]) -> list[str]:
    """The names of the source's convolutions, and of the activations behind them that int8 can hold."""
    convolutions = [node for node in nodes if node.op_type == "Conv" and node.input[1].startswith(_SOURCE)]
    outputs = {output for node in convolutions for output in node.output}
    activations = [node for node in nodes if node.op_type in ("Relu", "Clip") and node.input[0] in outputs]
    return [node.name for node in (*convolutions, *activations)]


def _quantize_openvino(fp32: Path, int8: Path, images: LabelledImages, description: str) -> None:
    """NNCF's choice of layers, deltas included; it also corrects the biases."""
    import nncf
    import openvino

    batches = [batch.numpy() for batch, _ in _batches(images, 1)]
    model = openvino.Core().read_model(fp32)
    quantized = nncf.quantize(model, nncf.Dataset(batches), subset_size=len(batches))
    save_openvino(quantized, description, int8)


def measure(
    hub: Hub, tasks: Sequence[Task], outputs: Mapping[str, str], run: NamedRunner, measured: Measured
) -> tuple[Int8Cost, ...]:
    """Compare an int8 file with the hub on the images that were held out of the calibration."""
    labels: list[int] = []
    fp32: dict[str, list[int]] = {task.name: [] for task in tasks}
    int8: dict[str, list[int]] = {task.name: [] for task in tasks}
    for images, batch_labels in _batches(measured.held_out):
        labels += batch_labels
        given = run(images)
        for name, logits in hub.predict(images, fp32).items():
            fp32[name] += logits.argmax(1).tolist()
            int8[name] += given[outputs[name]].argmax(1).tolist()
    return tuple(_cost(task, measured.classes, labels, fp32[task.name], int8[task.name]) for task in tasks)


def _cost(
    task: Task, classes: Sequence[str], labels: Sequence[int], fp32: Sequence[int], int8: Sequence[int]
) -> Int8Cost:
    agreement = _share_equal(fp32, int8)
    places = {name: place for place, name in enumerate(task.classes)}
    if not set(classes) <= set(places):
        return Int8Cost(task.name, len(labels), agreement, None, None)
    truth = [places[classes[label]] for label in labels]
    return Int8Cost(task.name, len(labels), agreement, _share_equal(fp32, truth), _share_equal(int8, truth))


def _share_equal(these: Sequence[int], those: Sequence[int]) -> float:
    return sum(a == b for a, b in zip(these, those, strict=True)) / len(these)


def _batches(images: LabelledImages, batch_size: int = _BATCH_SIZE) -> Iterator[tuple[Tensor, list[int]]]:
    for first in range(0, len(images), batch_size):
        part = [images[index] for index in range(first, min(first + batch_size, len(images)))]
        yield torch.stack([image for image, _ in part]), [label for _, label in part]
