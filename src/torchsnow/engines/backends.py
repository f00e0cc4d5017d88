"""What runs a network: PyTorch itself, or a compiled graph in another runtime."""

from __future__ import annotations

import importlib.util
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from torchsnow.errors import CompileError, TorchsnowError

Runner = Callable[[Tensor], Sequence[Tensor]]
"""Images (B, 3, H, W) -> one tensor per output, computed to the end."""

TOLERANCE = 1e-4
"""How far outputs may be from PyTorch's: of the largest output, and at least absolute."""

HALF_TOLERANCE = 1e-2
"""The same, for weights that are stored in 16 bits."""


def eager(network: nn.Module, images: Tensor) -> Runner:
    """PyTorch, operation by operation, on the device of the images."""
    network = network.eval().to(images.device)

    def run(images: Tensor) -> Sequence[Tensor]:
        with torch.no_grad():
            outputs: Sequence[Tensor] = network(images)
        _wait_for(images)
        return outputs

    return run


def inductor(network: nn.Module, images: Tensor) -> Runner:
    """`torch.compile`, for batches of this size; on CUDA with CUDA graphs. It needs a C++ compiler on the CPU.

    Raises CompileError when it cannot compile the network, or its outputs differ by more than 1e-4.
    """
    expected = eager(network, images)(images)
    mode = "max-autotune-no-cudagraphs" if images.device.type == "cpu" else "reduce-overhead"
    compiled = torch.compile(network, mode=mode, dynamic=False)
    run = eager_of(compiled)
    with clear_compiler_errors("torch.compile cannot compile this network"):
        given = run(images)
    validate_outputs("torch.compile", given, expected)
    return run


def onnx(network: nn.Module, images: Tensor) -> Runner:
    """ONNX Runtime on the CPU, in fp32, on as many threads as PyTorch uses.

    Raises CompileError when its outputs differ by more than 1e-4, or it is not installed.
    """
    validate_backend("onnx", images.device.type)
    expected = eager(network, images)(images)
    session = onnx_session(onnx_model(network, images))
    name = session.get_inputs()[0].name

    def run(images: Tensor) -> Sequence[Tensor]:
        return [torch.from_numpy(output) for output in session.run(None, {name: images.numpy()})]

    validate_outputs("ONNX Runtime", run(images), expected)
    return run


def openvino(network: nn.Module, images: Tensor) -> Runner:
    """OpenVINO on the CPU, in fp32, on as many threads as PyTorch uses, compiled for batches of this size.

    A batch is worked on in parts, one thread each: threads that share one part wait for each other after every one of
    the thousands of small steps of many deltas, and what a small part leaves behind is still in the cache when the
    deltas read it. Outputs are compared with PyTorch's on these images. Raises CompileError when they differ by
    more than 1e-4, when OpenVINO is not installed, or for images on another device.
    """
    validate_backend("openvino", images.device.type)
    part = part_size(len(images), torch.get_num_threads())
    expected = eager(network, images)(images)  # also makes what a network makes in its first pass
    queue = _queue(openvino_model(network, images[:part]), images[:part])
    done: dict[int, list[np.ndarray]] = {}
    queue.set_callback(lambda request, first: done.update({first: [out.data.copy() for out in request.output_tensors]}))

    def run(images: Tensor) -> Sequence[Tensor]:
        done.clear()
        for first in range(0, len(images), part):
            queue.start_async([images[first : first + part].numpy()], first)
        queue.wait_all()
        parts = [done[first] for first in sorted(done)]
        return [torch.from_numpy(np.concatenate(outputs)) for outputs in zip(*parts, strict=True)]

    validate_outputs("OpenVINO", run(images), expected)
    return run


def part_size(batch_size: int, num_threads: int) -> int:
    """Images that one thread takes at once: two where that leaves none idle and all parts are alike, else one."""
    return 2 if batch_size % 2 == 0 and batch_size >= 2 * num_threads else 1


def eager_of(compiled: Callable[[Tensor], Sequence[Tensor]]) -> Runner:
    """A runner of what PyTorch calls, without gradients and to the end."""

    def run(images: Tensor) -> Sequence[Tensor]:
        with torch.no_grad():
            outputs = [output.clone() for output in compiled(images)]  # CUDA graphs write into the same memory again
        _wait_for(images)
        return outputs

    return run


def onnx_model(network: nn.Module, images: Tensor) -> bytes:
    """A network as an ONNX file for batches of any size; its input is named "images"."""
    file = io.BytesIO()
    with quiet_tracing(), torch.no_grad():
        program = torch.onnx.export(
            network,
            (images,),
            input_names=["images"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        file.write(program.model_proto.SerializeToString())
    return file.getvalue()


def onnx_session(model: bytes | str) -> Any:
    """An ONNX file, or its content, ready to run on the CPU on as many threads as PyTorch uses."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def openvino_model(network: nn.Module, images: Tensor) -> Any:
    """A network as an OpenVINO model, its shapes still open."""
    with quiet_tracing():
        import openvino

        with torch.no_grad():
            # Its own check is left out: the outputs are compared instead.
            traced = torch.jit.trace(network, images, check_trace=False)  # type: ignore[no-untyped-call]
            return openvino.convert_model(traced, example_input=images)


@contextmanager
def quiet_tracing() -> Iterator[None]:
    """Without the warnings of tracers: OpenVINO reads a network through torch.jit.trace, which is deprecated."""
    with warnings.catch_warnings():
        for kind in (FutureWarning, DeprecationWarning, UserWarning, torch.jit.TracerWarning):  # type: ignore[attr-defined]
            warnings.simplefilter("ignore", kind)
        # An opset that cannot be reached is logged with a traceback; who asked for it compares the result.
        converter = logging.getLogger("onnxscript.version_converter")
        was, converter.disabled = converter.disabled, True
        try:
            yield
        finally:
            converter.disabled = was


def _queue(model: Any, images: Tensor) -> Any:
    """Requests to a compiled network, as many as there are threads."""
    import openvino

    model.reshape(list(images.shape))
    num_threads = torch.get_num_threads()
    settings = {
        "PERFORMANCE_HINT": "THROUGHPUT",
        "NUM_STREAMS": num_threads,
        "INFERENCE_NUM_THREADS": num_threads,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    return openvino.AsyncInferQueue(openvino.Core().compile_model(model, "CPU", settings), num_threads)


def validate_outputs(what: str, given: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Raise CompileError unless the outputs equal PyTorch's within `TOLERANCE` of the largest of each."""
    if len(given) != len(expected):
        raise CompileError(f"{what} gave {len(given)} outputs where PyTorch gave {len(expected)}")
    for own, eagers in zip(given, expected, strict=True):
        if how_far := difference(own, eagers):
            raise CompileError(
                f"{what}'s outputs differ from PyTorch's {how_far}; they are not used. Another version of it may do "
                "better, and the backend 'eager' does without"
            )


def difference(given: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> str:
    """In words, how far an output is from PyTorch's; empty within this share of the largest value."""
    largest = float(expected.abs().max()) if expected.numel() else 0.0
    apart = float((given - expected).abs().max()) if expected.numel() else 0.0
    near = apart <= tolerance * max(1.0, largest)
    return "" if near else f"by {apart:.1e} where the largest is {largest:.1e}"


def _wait_for(images: Tensor) -> None:
    if images.device.type == "cuda":
        torch.cuda.synchronize()


@contextmanager
def clear_compiler_errors(what: str) -> Iterator[None]:
    """Turn whatever a compiler throws into a CompileError: "WHAT: its first line"."""
    try:
        yield
    except (TorchsnowError, OSError):
        raise
    except Exception as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CompileError(f"{what}: {first_line[:300]}") from error


BACKENDS: Mapping[str, Callable[[nn.Module, Tensor], Runner]] = {
    "eager": eager,
    "inductor": inductor,
    "onnx": onnx,
    "openvino": openvino,
}
"""By name: (network, images like those that will come) -> what runs it."""

_PACKAGES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "onnx": ("ONNX Runtime", ("onnx", "onnxruntime", "onnxscript")),
    "openvino": ("OpenVINO", ("openvino",)),
}


def validate_backend(name: str, device: str) -> None:
    """Raise CompileError for a backend that does not exist, is not installed, or does not work on a device."""
    if name not in BACKENDS:
        raise CompileError(f"there is no backend {name!r}; expected one of {', '.join(BACKENDS)}")
    if name not in _PACKAGES:
        return
    words, packages = _PACKAGES[name]
    if device != "cpu":
        raise CompileError(f"the backend {name!r} works on the CPU; use --device cpu, or --backend eager")
    if any(importlib.util.find_spec(package) is None for package in packages):
        raise CompileError(f"the backend {name!r} needs {words}: pip install 'torchsnow[{name}]'")
