"""`torchsnow hub`: the store of tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from torchsnow.cli.output import percent, print_json, print_table, say

app = typer.Typer(
    help="List, show, remove and verify the tasks of a hub.",
    epilog="Example: torchsnow hub list --hub my-hub",
    no_args_is_help=True,
    rich_markup_mode=None,
)

HubFolder = Annotated[Path, typer.Option("--hub", help="Folder of the hub.")]
TaskName = Annotated[str, typer.Argument(help="Name of the task.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
def list_tasks(hub: HubFolder, json: AsJson = False) -> None:
    """All tasks of a hub.

    Example: torchsnow hub list --hub my-hub
    """
    from torchsnow.hub import Hub

    opened = Hub.open(hub)
    entries = opened.infos()
    if json:
        tasks = {
            name: {"sha256": e.sha256, "size_bytes": e.size_bytes, "num_classes": e.num_classes, "added": e.added}
            for name, e in entries.items()
        }
        print_json({"source": opened.source_info.to_dict(), "tasks": tasks})
        return
    say(f"source: {opened.source_info}; tasks: {len(entries)}")
    rows = [
        [name, e.num_classes, f"{e.size_bytes / 1e6:.2f} MB", e.added, e.sha256[:12]] for name, e in entries.items()
    ]
    print_table(["task", "classes", "size", "added", "version"], rows)


@app.command("show")
def show(task: TaskName, hub: HubFolder, json: AsJson = False) -> None:
    """What a task's file says about itself.

    Example: torchsnow hub show screws --hub my-hub
    """
    from torchsnow.hub import Hub

    info = Hub.open(hub).info(task)
    if json:
        print_json(
            {
                "name": info.name,
                "classes": info.classes,
                "spec": info.spec.to_dict(),
                "source": info.source_info.to_dict(),
                "subscription": info.subscription,
                "image_size": info.image_size,
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
        ["classes", ", ".join(info.classes)],
        ["source", info.source_info],
        ["image size", f"{info.image_size} px"],
        ["K, M", f"{info.spec.width_divisor}, {info.spec.pool_divisor}"],
        ["subscribes to", f"{sum(info.subscription.values())} channels of {len(info.subscription)} pools"],
        ["accuracy", ", ".join(f"{split} {value}" for split, value in accuracies.items()) or "-"],
        ["created", f"{info.created} by torchsnow {info.versions.get('torchsnow', '?')}"],
    ]
    print_table(["task", info.name], rows)


@app.command("remove")
def remove(task: TaskName, hub: HubFolder, json: AsJson = False) -> None:
    """Remove a task and its file.

    Example: torchsnow hub remove screws --hub my-hub
    """
    from torchsnow.hub import Hub

    Hub.open(hub).remove(task)
    if json:
        print_json({"removed": task})
    else:
        say(f"removed {task} from {hub}")


@app.command("verify")
def verify(hub: HubFolder, json: AsJson = False) -> None:
    """Check every file of a hub; exit code 2 if anything is wrong.

    Example: torchsnow hub verify --hub my-hub
    """
    from torchsnow.hub import Hub

    opened = Hub.open(hub)
    problems = opened.verify()
    if json:
        print_json({"problems": [{"task": p.task, "message": p.message} for p in problems]})
    else:
        for problem in problems:
            say(problem.message)
        say(f"tasks: {len(opened.names())}; problems: {len(problems)}")
    if problems:
        raise typer.Exit(2)
