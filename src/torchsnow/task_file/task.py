"""A task: a name, its classes, its frozen delta and the source it belongs to; in one .safetensors file, written whole
and read strictly. Nothing is ever unpickled."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from torch import Tensor

from torchsnow.delta import Delta, DeltaSpec
from torchsnow.delta.delta import GRID
from torchsnow.delta.rounding import from_bytes, packed_shape, to_bytes
from torchsnow.errors import TaskFileError
from torchsnow.io.files import write_atomically
from torchsnow.pooling import Subscription
from torchsnow.source import Source
from torchsnow.source.config import Framing
from torchsnow.task_file.info import (
    MAX_HEADER_BYTES,
    MAX_SIZE_BYTES,
    METADATA_KEY,
    Limits,
    TaskInfo,
    content_hash,
    decode_header,
    encode_info,
    kept_metrics,
    naming,
    opened,
    validate_classes,
    validate_framing,
    validate_task_name,
    validate_training,
)
from torchsnow.task_file.source_info import SourceInfo


@dataclass(frozen=True, eq=False, repr=False)
class Task(TaskInfo):
    """A task with its frozen delta."""

    delta: Delta


def make_task(
    source: Source,
    delta: Delta,
    name: str,
    classes: Sequence[str],
    framing: Framing | None = None,
    training: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    limits: Limits = Limits(),  # noqa: B008 # it cannot change
) -> Task:
    """A new task from a source and a frozen delta; `framing` is how pictures are shown to it, by default whole and at
    the source's own size.

    `training` (settings) is a JSON object without NaN; `metrics` are results by split, of which `kept_metrics` says
    what is kept. Raises TaskFileError for anything that could not be stored.
    """
    framing = Framing(source.input_config.input_size[1]) if framing is None else framing
    validate_task_name(name)
    validate_classes(classes, delta.spec.num_classes)
    validate_framing(framing)
    if not delta.frozen:
        raise TaskFileError(
            "this delta is not frozen: a task stores the chosen channels only; use delta.freeze(source)"
        )
    plain = _plain("training", training or {})
    validate_training(plain)
    return Task(
        name=name,
        classes=tuple(classes),
        spec=delta.spec,
        source_info=SourceInfo.of(source),
        subscription=subscription_of(delta),
        image_size=framing.image_size,
        crop_mode=framing.crop_mode,
        grey_range=framing.grey_range,
        unknown_above=limits.unknown_above,
        thresholds=limits.thresholds,
        training=plain,
        metrics=_kept(_plain("metrics", metrics or {})),
        versions={"torchsnow": version("torchsnow"), "torch": str(torch.__version__), "timm": timm.__version__},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        delta=delta,
    )


def subscription_of(delta: Delta) -> dict[str, int]:
    """The number of chosen channels of a frozen delta, by tap name, those of a grid body as "grid", the head's last
    as "head"."""
    pools = [module for module in delta.pools.values() if isinstance(module, Subscription)]
    names = delta.taps if delta.grid_pool is None else [GRID]
    numbers = {name: pool.num_pooled for name, pool in zip(names, pools, strict=True)}
    head = getattr(delta.head, "pool", None)
    return numbers | ({"head": head.num_pooled} if isinstance(head, Subscription) else {})


def _kept(metrics: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return kept_metrics(metrics)
    except ValueError as error:
        raise TaskFileError(f"{error}; metrics are results by split, as in {{'val': metrics.to_dict()}}") from error


def _plain(what: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as they will be read back: lists for tuples, texts for keys."""
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(values), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise TaskFileError(
            f"{what} cannot be stored as JSON ({error}); give numbers, texts, lists and dicts"
        ) from error
    return plain


_MAX_LOGIT = 1e9
_SCALE = ".scale"  # behind the name of a matrix in a byte per number: its scales


def encode_task(task: Task) -> bytes:
    """The bytes of a task file; the same for the same task.

    Raises TaskFileError for NaN or infinite numbers, and for all else that the reader would refuse.
    """
    validate_numbers(task.delta)
    tensors: dict[str, Tensor] = {}
    for key, tensor in task.delta.state_dict().items():
        tensors |= _shortest(key, tensor.detach().cpu().contiguous())
    content = bytes(safetensors.torch.save(tensors, {METADATA_KEY: encode_info(task)}))
    _validate_readable(content, task.delta)
    return content


def save_task(task: Task, path: Path | str) -> None:
    """Write a task file; an existing one is replaced as a whole or, on any error, left alone.

    Raises TaskFileError for what could not be read again, a full disk, a folder that is missing or read-only.
    """
    with naming(Path(path)):
        content = encode_task(task)
    write_atomically(path, content, TaskFileError)


def load_task(
    path: Path | str, source: Source, sha256: str | None = None, max_size_bytes: int = MAX_SIZE_BYTES
) -> Task:
    """Read a task file; the delta comes in eval mode, on the source's device.

    Raises TaskFileError, naming the file and the first thing wrong: too large, another kind of file, other content
    than `sha256` if that is given, of a newer version, of another source, or tensors of other names, shapes, types,
    or with numbers that cannot be, or are too large to compute with.
    """
    path = Path(path)
    with opened(path, max_size_bytes) as file, naming(path):
        content = file.read()
        if sha256 is not None and content_hash(content) != sha256:
            raise TaskFileError(f"damaged: its SHA-256 is {content_hash(content)[:12]}..., expected {sha256[:12]}...")
        return decode_task(content, source)


def validate_task_size(source: Source, spec: DeltaSpec, classes: Sequence[str]) -> None:
    """Raise TaskFileError for a task that a file may have no room for: to be asked before its training."""
    validate_classes(classes, spec.num_classes)
    names_bytes = 2 * len(json.dumps(list(classes), allow_nan=False))  # at most: they are JSON within JSON
    numbers_bytes = sum(tensor.nbytes for tensor in _empty_delta(source, spec).state_dict().values())
    size_bytes = numbers_bytes + names_bytes + 2**20  # for all else
    if size_bytes > MAX_SIZE_BYTES:
        raise TaskFileError(
            f"a task of {len(classes)} classes may take {size_bytes} bytes with these settings, more than the "
            f"{MAX_SIZE_BYTES} that a task file may have; choose a smaller preset ('paper' has the smallest head), or "
            "fewer classes"
        )


def validate_numbers(delta: Delta) -> None:
    """Raise TaskFileError unless a delta is frozen, in float32, finite, and its chosen channels exist, once each;
    those of a grid in ascending order."""
    if not delta.frozen:
        raise TaskFileError(
            "this delta is not frozen: a task stores the chosen channels only; use delta.freeze(source)"
        )
    for key, tensor in delta.state_dict().items():
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise TaskFileError(f"tensor {key!r} is {tensor.dtype}; expected torch.float32")
        if not tensor.isfinite().all():
            raise TaskFileError(f"tensor {key!r} holds {int((~tensor.isfinite()).sum())} NaN or infinite numbers")
    for name, pool in delta.named_modules():
        if isinstance(pool, Subscription):
            _validate_index(f"{name}.index", pool)
    if delta.grid_pool is not None and not bool((delta.grid_pool.index.diff() > 0).all()):
        raise TaskFileError("tensor 'pools.grid.index' is not in ascending order")


def _validate_index(key: str, pool: Subscription) -> None:
    index = pool.index
    if int(index.min()) < 0 or int(index.max()) >= pool.num_chs:
        outside = index[(index < 0) | (index >= pool.num_chs)][0]
        raise TaskFileError(f"tensor {key!r} chooses channel {int(outside)} of 0 to {pool.num_chs - 1}")
    if len(set(index.tolist())) != len(index):
        raise TaskFileError(f"tensor {key!r} chooses a channel twice")


def _validate_readable(content: bytes, delta: Delta) -> None:
    """By the reader's own rules, as far as they need no source: what is stored and lost must show before it is."""
    for what, size, most in (
        ("file", len(content), MAX_SIZE_BYTES),
        ("header", int.from_bytes(content[:8], "little"), MAX_HEADER_BYTES),
    ):
        if size > most:
            raise TaskFileError(f"its {what} would have {size} bytes, more than the {most} that are read again")
    info = decode_header(content)
    if info.spec != delta.spec:
        raise TaskFileError(f"its spec is {info.spec}, and its delta was made by {delta.spec}; they must be the same")
    _validate_subscription(info, delta)


def decode_task(content: bytes, source: Source) -> Task:
    """The task of a file's content; see `load_task`, but for the size and without the file's name in errors."""
    info = decode_header(content)
    wanted = SourceInfo.of(source)
    difference = info.source_info.difference(wanted)
    if difference:
        raise TaskFileError(f"it belongs to another source: {difference}. Load the task's own source to use it")
    if info.source_info.contradicts(wanted):
        raise TaskFileError("metadata.source_info has another name or input_config than its fingerprint is of")
    try:
        tensors = safetensors.torch.load(content)
    except Exception as error:  # the reader raises what it likes for a damaged header
        raise TaskFileError(f"not a readable .safetensors file: {error}") from error
    delta = _delta_of(info, tensors, source)
    _validate_subscription(info, delta)
    return Task(**{**vars(info), "delta": delta})


def _validate_subscription(info: TaskInfo, delta: Delta) -> None:
    if info.subscription != subscription_of(delta):
        raise TaskFileError("metadata.subscription does not say what the file holds")


def _delta_of(info: TaskInfo, tensors: Mapping[str, Tensor], source: Source) -> Delta:
    delta = _empty_delta(source, info.spec)
    wanted = delta.state_dict()
    scales = {key: tensors[key + _SCALE] for key, tensor in tensors.items() if _is_short(key, tensor, tensors)}
    given = {key: tensor for key, tensor in tensors.items() if key.removesuffix(_SCALE) not in scales or key in scales}
    _validate_tensors(given, scales, wanted)
    device = next(source.parameters()).device
    # the tensors of the file become the delta's own
    own = {
        key: from_bytes(tensor, scales[key], wanted[key].shape).to(device)
        if key in scales
        else tensor.to(device, copy=True)
        for key, tensor in given.items()
    }
    delta.load_state_dict(own, assign=True)
    delta.to(device)  # fixed filters are no part of the file
    validate_numbers(delta)
    _try(delta.eval(), source)
    return delta


def _try(delta: Delta, source: Source) -> None:
    """Raise TaskFileError unless a delta gives sane logits for a picture of noise: what is made of finite weights need
    not be finite."""
    features = source.trial(delta.reduction)
    try:
        with torch.no_grad():
            largest = float(delta(features).abs().max())
    except Exception as error:  # the layers raise what they like
        raise TaskFileError(f"its delta cannot be computed on this source: {error}") from error
    if not largest <= _MAX_LOGIT:
        raise TaskFileError(
            f"its numbers are too large to compute with: a logit for a picture of noise is {largest:.3g}, and "
            f"{_MAX_LOGIT:g} is far beyond what training leaves"
        )


def _empty_delta(source: Source, spec: DeltaSpec) -> Delta:
    """A frozen delta without numbers: on the meta device even an absurd spec takes no memory."""
    with torch.device("meta"):
        return Delta(source, spec, frozen=True)


def stored_bytes(tensors: Mapping[str, Tensor]) -> int:
    """What tensors take in a file, without its header."""
    return sum(
        short.nbytes for key, tensor in tensors.items() for short in _shortest(key, tensor.detach().cpu()).values()
    )


def _shortest(key: str, tensor: Tensor) -> dict[str, Tensor]:
    """A tensor by name; a matrix in a byte per number or half of one, with its scales, if that loses nothing."""
    if tensor.dtype == torch.float32 and tensor.ndim > 1 and (short := to_bytes(tensor)) is not None:
        return {key: short[0], key + _SCALE: short[1]}
    return {key: tensor}


def _is_short(key: str, tensor: Tensor, tensors: Mapping[str, Tensor]) -> bool:
    """Whether a tensor is a matrix in a byte per number or half of one, with its scales."""
    return tensor.dtype in (torch.int8, torch.uint8) and tensor.ndim > 1 and key + _SCALE in tensors


def _validate_tensors(given: Mapping[str, Tensor], scales: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    missing, unknown = sorted(set(wanted) - set(given)), sorted(set(given) - set(wanted))
    if missing:
        raise TaskFileError(f"it lacks the tensor {missing[0]!r} ({len(missing)} in all)")
    if unknown:
        raise TaskFileError(f"it has an unknown tensor {unknown[0]!r} ({len(unknown)} in all)")
    for key, tensor in wanted.items():
        halves = key in scales and given[key].dtype == torch.uint8 and tensor.ndim > 1
        shape = packed_shape(tensor.shape) if halves else tuple(tensor.shape)
        if tuple(given[key].shape) != shape:
            shapes = f"{tuple(given[key].shape)}, expected {shape}"
            raise TaskFileError(f"tensor {key!r} has shape {shapes}")
        if given[key].dtype != tensor.dtype and not (key in scales and tensor.dtype == torch.float32):
            raise TaskFileError(f"tensor {key!r} is {given[key].dtype}, expected {tensor.dtype}")
    for key, scale in scales.items():
        if scale.dtype != torch.float32 or scale.shape != given[key].shape[:1]:
            raise TaskFileError(
                f"tensor {key + _SCALE!r} is {scale.dtype} of shape {tuple(scale.shape)}, expected torch.float32 of "
                f"shape {(len(given[key]),)}"
            )
