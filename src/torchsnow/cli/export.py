"""`torchsnow export`: the tasks of a hub as one file for another runtime."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from torchsnow.cli.data_options import HUB, HubFolder
from torchsnow.cli.output import load_checked, note, percent, print_json, print_table, say

if TYPE_CHECKING:
    from torchsnow.export.export import Export


def export(
    out: Annotated[
        Path,
        typer.Option(help="File to write: .onnx, .xml (OpenVINO), .pt2 (torch.export), .mlpackage (Core ML), .tflite."),
    ],
    hub: HubFolder = HUB,
    format: Annotated[
        str | None,
        typer.Option(help="onnx, openvino, torch, coreml or tflite; by default what the suffix says."),
    ] = None,
    task: Annotated[list[str] | None, typer.Option(help="Name of a task; may be repeated; all by default.")] = None,
    image_size: Annotated[
        int | None, typer.Option(min=1, help="Pixels; by default the size that the tasks were trained with.")
    ] = None,
    int8: Annotated[bool, typer.Option("--int8", help="Quantise the source to 8 bits; needs --calibrate.")] = False,
    calibrate: Annotated[
        str | None, typer.Option(help="Labelled images for --int8, as for train; shows what int8 costs.")
    ] = None,
    fp16: Annotated[
        bool, typer.Option("--fp16", help="Store weights in 16 bits: half the size. ONNX, OpenVINO, Core ML.")
    ] = False,
    opset: Annotated[int | None, typer.Option(min=1, help="ONNX's opset; by default the exporter's own.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, and no progress.")] = False,
) -> None:
    """Write all tasks of a hub, or the named ones, as one graph with one source.

    The file runs without torchsnow and says in its metadata how to prepare
    images and what the classes are. It is compared with PyTorch first.

    Example: torchsnow export --hub my-hub --out my-hub.onnx
    """
    from torchsnow.export.export import plan_export, write_export
    from torchsnow.export.formats import Written
    from torchsnow.hub import Hub
    from torchsnow.workflows.training import int8_images

    if int8 != (calibrate is not None):
        raise typer.BadParameter("--int8 and --calibrate DATA go together: give both or none")
    plan = plan_export(Hub.open(hub), out, format, task, image_size, int8, Written(fp16, opset))
    measured = None
    if calibrate is not None:
        data = load_checked(calibrate, quiet=json, distinct_names=True)
        measured = int8_images(data, plan.hub.source.input_config, plan.framing)
    exported = write_export(plan, measured)
    if json:
        print_json(_document(exported))
    else:
        _show(exported)
    _warn(exported)


def _document(exported: Export) -> dict[str, Any]:
    plan = exported.plan
    return {
        "files": [str(path) for path in exported.files],
        "size_bytes": exported.size_bytes,
        "format": plan.kind.name,
        "image_size": plan.image_size,
        "outputs": plan.outputs,
        "unknown_outputs": plan.unknown_outputs,
        "checked": plan.kind.runs_here,
        "fp16": plan.how.half,
        "int8": [cost._asdict() for cost in exported.costs],
    }


def _show(exported: Export) -> None:
    plan = exported.plan
    rows = [[task.name, plan.outputs[task.name], len(task.classes)] for task in plan.tasks]
    print_table(["task", "output", "classes"], rows)
    if exported.costs:
        columns = ["task", "images", "fp32 accuracy", "int8 accuracy", "same class"]
        rows = [
            [c.task, c.num_images, percent(c.fp32_accuracy), percent(c.int8_accuracy), percent(c.agreement)]
            for c in exported.costs
        ]
        print_table(columns, rows)
    size = f"{exported.size_bytes / 1e6:.1f} MB, input ({plan.kind.batch}, 3, {plan.image_size}, {plan.image_size})"
    equal = "in fp16 near PyTorch's fp32" if plan.how.half else "in fp32 equal to PyTorch within 1e-4"
    if not plan.kind.runs_here:
        equal = f"not checked, as {plan.kind.runtime} does not exist for this system"
    say(f"wrote {' and '.join(map(str, exported.files))}: {size}, {equal}")


def _warn(exported: Export) -> None:
    from torchsnow.export.quantize import LOW_AGREEMENT

    for cost in exported.costs:
        if cost.agreement < LOW_AGREEMENT:
            note(
                f"warning: int8 names another class than fp32 on {percent(1 - cost.agreement)} of the images for task "
                f"{cost.task!r}; compare the accuracies before you use this file"
            )
