"""`torchsnow bench`: time and memory of training, and of serving many tasks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from torchsnow.cli.output import counting, note, percent, print_json, print_table, say
from torchsnow.errors import ExperimentError

if TYPE_CHECKING:
    from torchsnow.experiments.bench import BenchSettings

_METHODS = "full,head,snow"
_TASKS = {"eager": "1,2,5,10,20,50", "openvino": "1,2,5,10"}  # compiling 50 deltas takes minutes


def bench(
    out: Annotated[Path, typer.Option(help="Folder for bench.json, bench.csv and bench.png.")],
    source: Annotated[str, typer.Option(help="timm model, or 'bundled'.")] = "resnet50",
    weights: Annotated[str | None, typer.Option(help="'random', the default; 'pretrained'; or a file.")] = None,
    image_size: Annotated[int, typer.Option(help="Pixels.")] = 224,
    batch_size: Annotated[int, typer.Option(help="Images per pass and per training step.")] = 8,
    only: Annotated[str | None, typer.Option(help="'training' or 'inference'; both by default.")] = None,
    backend: Annotated[str | None, typer.Option(help="Inference: 'eager', 'inductor', 'onnx', 'openvino'.")] = None,
    tasks: Annotated[
        str | None, typer.Option(help=f"Inference: {_TASKS['eager']} by default; {_TASKS['openvino']} in OpenVINO.")
    ] = None,
    methods: Annotated[str | None, typer.Option(help=f"Training: METHOD[:PRESET]; '{_METHODS}' by default.")] = None,
    precision: Annotated[str | None, typer.Option(help="Training: of the source pass, 'fp32' or 'bf16'.")] = None,
    rounds: Annotated[int, typer.Option(help="Rounds that count; times are their medians.")] = 5,
    device: Annotated[str, typer.Option(help="'auto', 'cpu', 'cuda' or 'cuda:1'.")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print JSON, and no progress.")] = False,
) -> None:
    """Measure time and memory, side by side in one run.

    Training: one step of every method. Inference: images per second through
    many tasks, as a network each, as heads on one source, and as SNOW deltas on
    one source, next to what the multiply-adds alone would allow.

    Example: torchsnow bench --backend openvino --tasks 1,10 --out bench
    """
    from torchsnow.experiments.bench import run_bench, write_bench
    from torchsnow.io.files import make_folder

    _validate_options(only, {"backend": backend, "tasks": tasks}, {"methods": methods, "precision": precision})
    given = {
        "source": source,
        "weights": weights,
        "image_size": image_size,
        "batch_size": batch_size,
        "methods": methods or _METHODS,
        "precision": precision or "fp32",
        "rounds": rounds,
    }
    settings = _settings(given, only, backend or "eager", tasks, device)
    make_folder(out, ExperimentError)
    with counting("measuring", quiet=json) as moved:
        done = 0

        def progress() -> None:
            nonlocal done
            done += 1
            moved(done, settings.num_steps)

        content = run_bench(settings, (lambda line: None) if json else note, progress)
    write_bench(content, out, note)
    for line in content["left_out"]:
        note(line)
    if json:
        print_json(content)
    else:
        _show(content, out)


def _validate_options(only: str | None, inference: dict[str, Any], training: dict[str, Any]) -> None:
    others = {"training": inference, "inference": training}.get(only or "", {})
    for name, value in others.items():
        if value is not None:
            raise ExperimentError(f"--only {only} and --{name} contradict each other: leave one of them out")


def _settings(given: dict[str, Any], only: str | None, backend: str, tasks: str | None, device: str) -> BenchSettings:
    from torchsnow.experiments.bench import PARTS, BenchSettings
    from torchsnow.source import PACKAGES
    from torchsnow.train import torch_device

    if given["weights"] is None:
        given["weights"] = "pretrained" if given["source"] in PACKAGES else "random"
    given["methods"] = tuple(name.strip() for name in given["methods"].split(","))
    found = torch_device(device).type
    return BenchSettings(
        **given,
        tasks=_numbers(_TASKS.get(backend, _TASKS["eager"]) if tasks is None else tasks),
        backend=backend,
        device="cpu" if backend == "openvino" and device == "auto" else found,
        parts=PARTS if only is None else (only,),
    )


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ExperimentError(
            f"tasks is {text!r}; expected whole numbers with commas between them, like 1,2,5"
        ) from error


def _show(content: dict[str, Any], out: Path) -> None:
    from torchsnow.experiments.serving_speed import KINDS

    if content["training"]:
        columns = ["training", "source pass", "step, s", "times full's speed", "peak, MiB", "of full's"]
        print_table(columns, [_training_cells(row) for row in content["training"]])
    if content["inference"]:
        columns = ["tasks", "inference", "images/s", "with decoding", "times separate", "by multiply-adds", "MiB"]
        print_table(
            columns,
            [
                [
                    row["tasks"],
                    KINDS[row["kind"]],
                    f"{row['images_per_s']:.3g}",
                    f"{row['images_per_s_with_decoding']:.3g}",
                    f"{row['speedup']:.2f}",
                    f"{row['limit']:.2f}",
                    _mib(row["memory_bytes"]),
                ]
                for row in content["inference"]["rows"]
            ],
        )
    say(f"bench.json, bench.csv and bench.png are in {out}")


def _training_cells(row: dict[str, Any]) -> list[Any]:
    speedup = "-" if row["speedup"] is None else f"{row['speedup']:.2f}"
    step = f"{row['step_s']:.4g}"
    return [row["method"], row["precision"], step, speedup, _mib(row["peak_bytes"]), percent(row["peak_over_full"])]


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:,.0f}"
