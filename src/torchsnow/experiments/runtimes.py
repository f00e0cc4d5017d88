"""What runs a network: PyTorch as it is, or a compiled graph in OpenVINO."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from torchsnow.errors import ExperimentError
from torchsnow.experiments.measuring import wait_for

Runner = Callable[[Tensor], Sequence[Tensor]]
"""Images (B, 3, H, W) -> one tensor per output, computed to the end."""

TOLERANCE = 1e-4  # of the largest output, and at least absolute


def eager(network: nn.Module, images: Tensor) -> Runner:
    """PyTorch, operation by operation, on the device of the images."""
    network = network.eval().to(images.device)

    def run(images: Tensor) -> Sequence[Tensor]:
        with torch.no_grad():
            outputs: Sequence[Tensor] = network(images)
        wait_for(images.device.type)
        return outputs

    return run


def openvino(network: nn.Module, images: Tensor) -> Runner:
    """OpenVINO on the CPU, in fp32, on as many threads as PyTorch uses, compiled for batches of this size.

    A batch is worked on in parts, one thread each: threads that share one part wait for each other after every one of
    the thousands of small steps of many deltas, and what a small part leaves behind is still in the cache when the
    deltas read it. Outputs are compared with PyTorch's on these images. Raises ExperimentError when they differ by
    more than 1e-4, when OpenVINO is not installed, or for images on another device.
    """
    check_runtime("openvino", images.device.type)
    part = part_size(len(images), torch.get_num_threads())
    expected = eager(network, images)(images)  # also makes what a network makes in its first pass
    queue = _queue(network, images[:part])
    done: dict[int, list[np.ndarray]] = {}
    queue.set_callback(lambda request, first: done.update({first: [out.data.copy() for out in request.output_tensors]}))

    def run(images: Tensor) -> Sequence[Tensor]:
        done.clear()
        for first in range(0, len(images), part):
            queue.start_async([images[first : first + part].numpy()], first)
        queue.wait_all()
        parts = [done[first] for first in sorted(done)]
        return [torch.from_numpy(np.concatenate(outputs)) for outputs in zip(*parts, strict=True)]

    _refuse_other_outputs(run(images), expected)
    return run


def part_size(batch_size: int, num_threads: int) -> int:
    """Images that one thread takes at once: two where that leaves none idle and all parts are alike, else one."""
    return 2 if batch_size % 2 == 0 and batch_size >= 2 * num_threads else 1


def _queue(network: nn.Module, images: Tensor) -> Any:
    """Requests to a compiled network, as many as there are threads."""
    with warnings.catch_warnings():
        # OpenVINO reads a network through torch.jit.trace, which is deprecated.
        for kind in (FutureWarning, DeprecationWarning, torch.jit.TracerWarning):  # type: ignore[attr-defined]
            warnings.simplefilter("ignore", kind)
        import openvino

        with torch.no_grad():
            # Its own check is left out: the outputs are compared instead.
            traced = torch.jit.trace(network, images, check_trace=False)  # type: ignore[no-untyped-call]
            model = openvino.convert_model(traced, example_input=images)
    model.reshape(list(images.shape))
    num_threads = torch.get_num_threads()
    settings = {
        "PERFORMANCE_HINT": "THROUGHPUT",
        "NUM_STREAMS": num_threads,
        "INFERENCE_NUM_THREADS": num_threads,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    return openvino.AsyncInferQueue(openvino.Core().compile_model(model, "CPU", settings), num_threads)


def _refuse_other_outputs(given: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    assert len(given) == len(expected)
    for own, eagers in zip(given, expected, strict=True):
        difference, largest = float((own - eagers).abs().max()), float(eagers.abs().max())
        if not difference <= TOLERANCE * max(1.0, largest):
            raise ExperimentError(
                f"OpenVINO's outputs differ from PyTorch's by {difference:.1e} where the largest is {largest:.1e}; "
                "nothing was timed. Another version of OpenVINO may do better, and --runtime eager does without"
            )


RUNTIMES: Mapping[str, Callable[[nn.Module, Tensor], Runner]] = {"eager": eager, "openvino": openvino}
"""By name: (network, images like those that will come) -> what runs it."""


def check_runtime(name: str, device: str) -> None:
    """Raise ExperimentError for a runtime that does not exist, is not installed, or does not work on a device."""
    if name not in RUNTIMES:
        raise ExperimentError(f"there is no runtime {name!r}; expected one of {', '.join(RUNTIMES)}")
    if name != "openvino":
        return
    if device != "cpu":
        raise ExperimentError("the runtime 'openvino' works on the CPU; use --device cpu, or --runtime eager")
    if importlib.util.find_spec("openvino") is None:
        raise ExperimentError("the runtime 'openvino' needs OpenVINO: pip install 'torchsnow[openvino]'")
