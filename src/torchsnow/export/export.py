"""A hub, or some of its tasks, as one file that runs without torchsnow: one graph, one source pass."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchsnow.engines import DeltaRequest, Engine, Program
from torchsnow.engines.backends import HALF_TOLERANCE, TOLERANCE, clear_compiler_errors, difference
from torchsnow.errors import CompileError, HubError
from torchsnow.export.description import describe, output_names
from torchsnow.export.formats import Format, NamedRunner, Network, Written, format_of, traced
from torchsnow.export.quantize import Int8Cost, Measured, measure, quantize, validate_int8
from torchsnow.hub import Hub
from torchsnow.hub.live import unknown_scores
from torchsnow.io.files import TEMPORARY_SUFFIX, clear_os_errors, sync_folder, validate_writable_folder
from torchsnow.source import InputConfig, Source
from torchsnow.source.config import MAX_IMAGE_SIZE, Framing
from torchsnow.task_file import Task

_TRACED_BATCH = 2  # torch.export takes sizes of 0 and 1 for fixed
_CHECKED_BATCHES = (1, 5)


class Plan(NamedTuple):
    """An export that can be tried: `tasks` of `hub`, whose source is fp32, for images in one framing."""

    hub: Hub
    tasks: tuple[Task, ...]
    framing: Framing
    kind: Format
    out: Path
    how: Written

    @property
    def image_size(self) -> int:
        """Pixels a side."""
        return self.framing.image_size

    @property
    def outputs(self) -> dict[str, str]:
        """The names of the outputs by task."""
        return output_names((task.name for task in self.tasks), self.kind.identifiers)

    @property
    def unknown_outputs(self) -> dict[str, str]:
        """The names of the outputs for unknown scores, by task; of those that have one."""
        tasks = [task.name for task in self.tasks if task.unknown_above is not None]
        wanted = (f"{name}.unknown_score" for name in tasks)
        names = output_names(wanted, self.kind.identifiers, self.outputs.values())
        return dict(zip(tasks, names.values(), strict=True))


class Export(NamedTuple):
    """What was written: `files` belong to it (one may be a folder), `costs` is what int8 costs, empty for fp32."""

    plan: Plan
    files: tuple[Path, ...]
    size_bytes: int
    costs: tuple[Int8Cost, ...]


def plan_export(
    hub: Hub,
    out: Path,
    kind: str | None = None,
    names: Sequence[str] | None = None,
    image_size: int | None = None,
    int8: bool = False,
    how: Written = Written(),  # noqa: B008 # it cannot change
) -> Plan:
    """Check all that can be checked before anything is computed.

    `kind` is a name in `FORMATS`, by default what the suffix of `out` says; `names` are tasks, by default
    all; `image_size` in pixels, by default the one that the tasks were trained with; `how` is what a format may do in
    several ways. Raises CompileError for what does not fit together, HubError for unknown or damaged tasks and a hub
    without any.
    """
    chosen = format_of(out, kind)
    if int8:
        validate_int8(chosen.name)
    _validate_options(chosen, int8, how)
    _validate_place(out, chosen)
    hub = _in_fp32(hub)
    tasks = tuple(hub.task(name) for name in dict.fromkeys(names or hub.names()))
    if not tasks:
        raise HubError(f"the hub {hub.folder.path} has no tasks yet; train one first")
    if image_size is not None and not 1 <= image_size <= MAX_IMAGE_SIZE:
        raise CompileError(f"the image size is {image_size}; expected 1 to {MAX_IMAGE_SIZE} pixels")
    return Plan(hub, tasks, _one_framing(tasks, image_size), chosen, out, how)


def _validate_options(kind: Format, int8: bool, how: Written) -> None:
    if how.half and (int8 or kind.name in ("torch", "tflite")):
        other = "int8 has fewer bits than fp16 already" if int8 else f"the format {kind.name} has no fp16"
        raise CompileError(f"{other}; leave out --fp16")
    if how.opset is not None and kind.name != "onnx":
        raise CompileError(f"an opset is ONNX's, not of the format {kind.name}; leave out --opset")


def _validate_place(out: Path, kind: Format) -> None:
    with clear_os_errors("write", out, CompileError):
        if not out.parent.is_dir():
            raise CompileError(f"cannot write {out}: there is no folder {out.parent}; make it first")
        if out.is_dir() and not (kind.name == "coreml" and (out / "Manifest.json").is_file()):
            raise CompileError(f"cannot write {out}: this is a folder; name a file")
        if not _is_utf8(out.absolute()):
            raise CompileError(f"cannot write {out}: what reads such a file wants a path in UTF-8; choose another")
    validate_writable_folder(out.parent, CompileError)


def _is_utf8(path: Path) -> bool:
    with suppress(UnicodeEncodeError):
        return bool(str(path).encode())
    return False


def _in_fp32(hub: Hub) -> Hub:
    """The hub with a source pass in fp32: what a file of another runtime can be compared with."""
    source = hub.source
    if source.precision == "fp32":
        return hub
    return Hub.open(hub.folder.path, Source(source.model, source.name, source.input_config, source.weights))


def _one_framing(tasks: Sequence[Task], image_size: int | None) -> Framing:
    """The framing of all the tasks, at another size if one is given."""
    groups: dict[Framing, list[str]] = {}
    for task in tasks:
        framing = task.framing if image_size is None else task.framing._replace(image_size=image_size)
        groups.setdefault(framing, []).append(task.name)
    if len(groups) > 1:
        listed = "; ".join(f"{framing}: {', '.join(names)}" for framing, names in sorted(groups.items()))
        raise CompileError(
            f"the tasks were trained on images that were prepared differently ({listed}), and one file has one source "
            "pass; name tasks of one kind with --task, or one size for all of them with --image-size"
        )
    return next(iter(groups))


def write_export(plan: Plan, measured: Measured | None = None) -> Export:
    """Write the file; with images to calibrate on and to measure with, in int8.

    The fp32 file is loaded by its runtime and its outputs are compared with the hub's, for two batch sizes; the file
    appears at its place complete, or not at all. Where the runtime does not exist for this system, nothing is compared.
    Raises CompileError when the network cannot be exported, outputs
    differ by more than 1e-4 of the largest, or the disk refuses.
    """
    expected = _expected(plan)
    program = Program(plan.hub.source, [task.delta for task in plan.tasks])
    names = plan.unknown_outputs
    scores = [(names[task.name], task.unknown_above) if task.unknown_above else None for task in plan.tasks]
    network = Network(program, list(plan.outputs.values()), scores, plan.image_size)
    with _workshop(plan.out) as folder:
        file = folder / plan.out.name
        _write(plan, network, file, _description(plan, {"bits": 16} if plan.how.half else None))
        if plan.kind.runs_here:
            _validate_outputs(plan, _loaded(plan, file), expected)
        costs: tuple[Int8Cost, ...] = ()
        if measured is not None:
            (folder / "int8").mkdir()
            file, fp32 = folder / "int8" / plan.out.name, file
            description = _description(plan, {"bits": 8, "data": measured.name, "images": len(measured.calibration)})
            with clear_compiler_errors(f"{plan.kind.runtime} cannot quantise this network"):
                quantize(plan.kind.name, fp32, file, measured.calibration, description)
            costs = measure(plan.hub, plan.tasks, plan.outputs, _loaded(plan, file), measured)
        made = plan.kind.files(file)
        size_bytes = sum(part.stat().st_size for path in made for part in _parts(path) if part.is_file())
        _place(made, plan.kind.files(plan.out))
    return Export(plan, tuple(plan.kind.files(plan.out)), size_bytes, costs)


def smooth_images(batch_size: int, image_size: int, config: InputConfig) -> Tensor:
    """Random pictures, for want of photographs, with their large areas and few edges, normalised: (B, 3, S, S)."""
    generator = torch.Generator().manual_seed(batch_size)
    picture = torch.zeros(batch_size, 3, image_size, image_size)
    for cells in (2, 4, 8, 16, 32):
        layer = torch.rand(batch_size, 3, cells, cells, generator=generator)
        picture += torch.nn.functional.interpolate(layer, size=image_size, mode="bilinear") / cells
    picture /= picture.amax()
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (config.mean, config.std))
    return (picture - mean) / std


def _expected(plan: Plan) -> list[tuple[Tensor, Mapping[str, Tensor]]]:
    """Batches of different sizes and what the hub says of them, by output."""
    config, names = plan.hub.source.input_config, [task.name for task in plan.tasks]
    result: list[tuple[Tensor, Mapping[str, Tensor]]] = []
    with clear_compiler_errors(f"{plan.hub.source.name} cannot take images of {plan.image_size} px"):
        for batch_size in _CHECKED_BATCHES:
            images = smooth_images(batch_size, plan.image_size, config)
            logits = plan.hub.predict(images, names)
            scores = _expected_scores(plan, images)
            result.append((images, {plan.outputs[name]: value for name, value in logits.items()} | scores))
    return result


def _expected_scores(plan: Plan, images: Tensor) -> dict[str, Tensor]:
    engine, names = Engine(plan.hub.source), plan.unknown_outputs
    tasks = [task for task in plan.tasks if task.name in names]
    work = [DeltaRequest(engine.prepare(task.delta), tuple(range(len(images)))) for task in tasks]
    outputs = zip(tasks, engine.run(images, work) if work else [], strict=True)
    scores = {names[task.name]: unknown_scores(one.distances, task.unknown_above) for task, one in outputs}
    return {name: values for name, values in scores.items() if values is not None}


def _write(plan: Plan, network: Network, file: Path, description: str) -> None:
    images = smooth_images(_TRACED_BATCH, plan.image_size, plan.hub.source.input_config)
    program = traced(network, images)
    with clear_compiler_errors(f"cannot write {plan.out} as {plan.kind.name}"):
        plan.kind.write(program, images, network.names, description, file, plan.how)


def _description(plan: Plan, quantized: Mapping[str, Any] | None) -> str:
    hashes = {name: entry.sha256 for name, entry in plan.hub.infos().items()}
    info = plan.hub.source_info
    names = plan.outputs, plan.unknown_outputs
    return describe(plan.tasks, *names, hashes, info, plan.framing, version("torchsnow"), quantized)


def _loaded(plan: Plan, file: Path) -> NamedRunner:
    with clear_compiler_errors(f"{plan.kind.runtime} cannot load what was made for {plan.out}"):
        return plan.kind.load(file)


def _validate_outputs(plan: Plan, run: NamedRunner, batches: Sequence[tuple[Tensor, Mapping[str, Tensor]]]) -> None:
    for images, expected in batches:
        with clear_compiler_errors(f"{plan.kind.runtime} cannot run what was made for {plan.out}"):
            given = run(images)
        for name, logits in expected.items():
            if how_far := difference(given[name], logits, HALF_TOLERANCE if plan.how.half else TOLERANCE):
                raise CompileError(
                    f"{plan.out} was not written: {plan.kind.runtime}'s output {name!r} differs from PyTorch's "
                    f"{how_far}; try another format, or another version of it"
                )


@contextmanager
def _workshop(out: Path) -> Iterator[Path]:
    """A folder next to the file, from which it can be renamed into its place; gone in the end."""
    with (
        clear_os_errors("write", out, CompileError),
        tempfile.TemporaryDirectory(prefix=".", suffix=TEMPORARY_SUFFIX, dir=out.parent) as folder,
    ):
        yield Path(folder)


def _place(made: Sequence[Path], places: Sequence[Path]) -> None:
    """Let finished files reach the disk and rename them, the one that names the export last."""
    for part in (part for path in made for part in _parts(path)):
        if part.is_dir():
            sync_folder(part)
        else:
            with part.open("rb") as file:
                os.fsync(file.fileno())
    for path, place in zip(made, places, strict=True):
        if path.is_dir() and place.exists():  # a folder cannot be replaced in one step
            os.replace(place, path.with_name(f"former-{path.name}"))
        os.replace(path, place)
    sync_folder(places[-1].parent)


def _parts(path: Path) -> list[Path]:
    """A file, or a folder and all that is in it, the innermost first."""
    return [*sorted(path.rglob("*"), reverse=True), path]
