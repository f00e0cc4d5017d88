"""`torchsnow hub`: the store of tasks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from torchsnow.cli.data_options import HUB, HubFolder
from torchsnow.cli.output import counting, note, percent, print_json, print_table, say

if TYPE_CHECKING:
    from torchsnow.delta import DeltaSpec
    from torchsnow.hub import Entry

app = typer.Typer(
    help="List, show, remove, roll back and verify the tasks of a hub.",
    epilog="Example: torchsnow hub list --hub my-hub",
    no_args_is_help=True,
    rich_markup_mode=None,
)

TaskName = Annotated[str, typer.Argument(help="Name of the task.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

_MOST_NAMES = 20  # of classes that are shown


@app.command("list")
def list_tasks(hub: HubFolder = HUB, json: AsJson = False) -> None:
    """All tasks of a hub, and how many former versions of them are kept.

    Example: torchsnow hub list --hub my-hub
    """
    from torchsnow.hub import Hub

    opened = Hub.open(hub)
    entries, former = opened.infos(), opened.former()
    removed = {name: versions for name, versions in former.items() if name not in entries}
    if json:
        tasks = {name: {**vars(entry), "former": _sums(former.get(name, ()))} for name, entry in entries.items()}
        print_json(
            {
                "source": opened.source_info.to_dict(),
                "tasks": tasks,
                "removed": {name: _sums(versions) for name, versions in removed.items()},
            }
        )
        return
    say(f"source: {opened.source_info}; tasks: {len(entries)}")
    rows = [
        [name, e.num_classes, f"{e.size_bytes / 1e6:.2f} MB", e.added, e.sha256[:12], len(former.get(name, ()))]
        for name, e in entries.items()
    ]
    print_table(["task", "classes", "size", "added", "version", "former"], rows)
    if removed:
        say(f"removed, and kept until gc: {', '.join(removed)}")


@app.command("show")
def show(task: TaskName, hub: HubFolder = HUB, json: AsJson = False) -> None:
    """What a task's file says about itself.

    Example: torchsnow hub show screws --hub my-hub
    """
    from torchsnow.data.names import first_few
    from torchsnow.hub import Hub

    opened = Hub.open(hub)
    info, entry, former = opened.info(task), opened.entry(task), opened.former().get(task, ())
    if json:
        print_json(
            {
                "name": info.name,
                "sha256": entry.sha256,
                "former": _sums(former),
                "classes": info.classes,
                "spec": info.spec.to_dict(),
                "source": info.source_info.to_dict(),
                "subscription": info.subscription,
                "image_size": info.image_size,
                "crop_mode": info.crop_mode,
                "grey_range": info.grey_range,
                "training": info.training,
                "metrics": info.metrics,
                "versions": info.versions,
                "created": info.created,
            }
        )
        return
    accuracies = {
        split: percent(values["accuracy"]) for split, values in info.metrics.items() if values and "accuracy" in values
    }
    rows: list[list[Any]] = [
        ["classes", first_few(info.classes, _MOST_NAMES, ", ")],
        ["source", info.source_info],
        ["images", info.framing],
        ["layers", _body(info.spec)],
        ["subscribes to", f"{sum(info.subscription.values())} channels of {len(info.subscription)} pools"],
        ["accuracy", ", ".join(f"{split} {value}" for split, value in accuracies.items()) or "-"],
        ["created", f"{info.created} by torchsnow {info.versions.get('torchsnow', '?')}"],
        ["version", f"{entry.sha256[:12]}, added {entry.added}; former versions: {len(former)}"],
    ]
    print_table(["task", info.name], rows)


@app.command("remove")
def remove(task: TaskName, hub: HubFolder = HUB, json: AsJson = False) -> None:
    """Remove a task. Until gc deletes its file, a rollback brings it back.

    Example: torchsnow hub remove screws --hub my-hub
    """
    from torchsnow.hub import Hub

    Hub.open(hub).remove(task)
    if json:
        print_json({"removed": task})
    else:
        say(f"removed {task} from {hub}")


@app.command("rollback")
def rollback(task: TaskName, hub: HubFolder = HUB, json: AsJson = False) -> None:
    """Make the former version of a task current again, or bring back a removed task.

    Example: torchsnow hub rollback screws --hub my-hub
    """
    from torchsnow.hub import Hub

    entry = Hub.open(hub).rollback(task)
    if json:
        print_json({"task": task, **vars(entry)})
    else:
        say(f"{task} is version {entry.sha256[:12]}, added {entry.added}, again")


@app.command("gc")
def gc(hub: HubFolder = HUB, json: AsJson = False) -> None:
    """Delete former versions, and what killed processes left.

    Files that no hub writes are named and left alone.

    Example: torchsnow hub gc --hub my-hub
    """
    from torchsnow.hub import Hub

    cleanup = Hub.open(hub).gc()
    if json:
        left_alone = [str(path) for path in cleanup.left_alone]
        print_json({"files": cleanup.num_files, "size_bytes": cleanup.size_bytes, "left_alone": left_alone})
        return
    say(f"deleted files: {cleanup.num_files}; {cleanup.size_bytes / 1e6:.2f} MB")
    for path in cleanup.left_alone:
        note(f"left alone: {path} is no part of the hub")


@app.command("verify")
def verify(hub: HubFolder = HUB, json: AsJson = False) -> None:
    """Check every file of a hub; exit code 2 if anything is wrong.

    Example: torchsnow hub verify --hub my-hub
    """
    from torchsnow.hub import Hub

    opened = Hub.open(hub)
    with counting("checking tasks", json) as progress:
        problems = opened.verify(progress)
    if json:
        print_json({"problems": [{"task": p.task, "message": p.message} for p in problems]})
    else:
        for problem in problems:
            say(problem.message)
        num_former = sum(map(len, opened.former().values()))
        say(f"tasks: {len(opened.names())}; former versions: {num_former}; problems: {len(problems)}")
    if problems:
        raise typer.Exit(2)


def _body(spec: DeltaSpec) -> str:
    if spec.grid_width is not None:
        return f"grid, width {spec.grid_width}, {spec.grid_blocks} blocks, one channel in {spec.pool_divisor}"
    if spec.width_divisor is None:
        return "none: a head alone"
    return f"K {spec.width_divisor}, M {spec.pool_divisor}, entry reduction {spec.entry_reduction}"


def _sums(versions: Iterable[Entry]) -> list[str]:
    return [entry.sha256 for entry in versions]
